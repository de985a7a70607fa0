"""One watch of one prefix on one stream: etcd's responses as `WatchMessage`s, and silence as an error."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any, Final

from clustermesh.errors import Unavailable
from clustermesh.store import methods
from clustermesh.store import rpc_pb2 as pb
from clustermesh.store.client import EtcdClient, key_value
from clustermesh.store.follower import Deleted, Event, Put, WatchMessage
from clustermesh.store.operations import prefix_end
from clustermesh.store.silence import Chatter, Silence
from clustermesh.store.stream import Stream

# Answered at once, for the whole stream (etcd 3.4 and newer). The revision in that answer may be ahead of events still
# to come (etcd issue 15220), so it is a sign of life and nothing else.
_PROBE: Final = pb.WatchRequest(progress_request=pb.WatchProgressRequest())
_DELETE: Final = pb.Event.DELETE


class Watch:
    """An open watch, whose silence is borne for as long as `silence` says."""

    def __init__(self, stream: Stream, silence: Silence) -> None:
        self._stream, self._silence = stream, silence
        self._id: int | None = None
        self._chatter = Chatter()

    async def read(self) -> WatchMessage:
        """The next response. Raises ClusterMeshError when the stream is over or etcd silent."""
        if self._id is None:
            response = await self._stream.read(self._silence)
            self._id = response.watch_id
        else:
            response = await self._stream.read(self._silence, _PROBE)
        if not response.events:
            self._check_chatter(response.ByteSize())
        return _message(response, response.watch_id == self._id)

    def _check_chatter(self, size: int) -> None:
        if self._chatter.is_too_much(asyncio.get_running_loop().time(), size):
            raise Unavailable("etcd says much on a watch and tells of no change")


@asynccontextmanager
async def open_watch(client: EtcdClient, prefix: bytes, revision: int, silence: Silence) -> AsyncIterator[Watch]:
    """Watch every key under `prefix` from `revision` on, until the block is left."""
    create = pb.WatchCreateRequest(
        key=prefix or b"\0",
        range_end=prefix_end(prefix),
        start_revision=revision,
        progress_notify=True,
    )
    async with client.stream(methods.WATCH) as stream:
        await stream.write(pb.WatchRequest(create_request=create), client.timeout)
        yield Watch(stream, silence)


def _message(response: Any, own: bool) -> WatchMessage:
    return WatchMessage(
        revision=response.header.revision,
        cluster_id=response.header.cluster_id,
        created=response.created,
        canceled=response.canceled,
        reason=response.cancel_reason,
        compact_revision=response.compact_revision,
        fragment=response.fragment,
        own=own,
        events=[(event.kv.mod_revision, _event(event)) for event in response.events],
    )


def _event(event: Any) -> Event:
    return Deleted(event.kv.key, event.kv.mod_revision) if event.type == _DELETE else Put(key_value(event.kv))
