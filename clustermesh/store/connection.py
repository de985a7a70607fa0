"""Connections to etcd: one at a time, replaced when it fails, always to the same etcd cluster.

A connection that failed is retired: no new call uses it, those under way end by themselves, the last one closes it. The
next call dials the next endpoint, with the certificate files as they are then. Who logs in does so on each connection.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from functools import partial
from typing import Any, Final

from clustermesh.errors import ClusterMeshError, Invalid, Refused, Unavailable
from clustermesh.store import methods
from clustermesh.store.channel import Channel, Failed, Outcome
from clustermesh.store.endpoint import Endpoint, parse
from clustermesh.store.faults import AuthChanged, AuthDisabled, ClusterIdChanged, TokenEnded, fault, is_severing
from clustermesh.store.frames import Metadata
from clustermesh.store.login import Login
from clustermesh.store.methods import Method, decode
from clustermesh.store.silence import Pulse
from clustermesh.store.stream import Stream
from clustermesh.store.tls import Tls

# A member cut off from its majority answers with an error instead of stale data and silence.
_REQUIRE_LEADER: Final[Metadata] = (("hasleader", "true"),)


class Connection:
    """One channel. Refused where the files of `tls` are no good."""

    def __init__(self, endpoint: Endpoint, address: str, tls: Tls | None) -> None:
        self.endpoint = endpoint
        self.channel = Channel(endpoint, address, tls)
        self.retired = False
        self.users = 0
        self.pulse = Pulse()
        self.metadata: Metadata | None = None  # of every call, once it is known
        self.logging_in = asyncio.Lock()


class Dialer:
    """Makes and replaces connections to one etcd cluster, and watches that it stays that one.

    `aliases` maps a host to the address to dial for it; its certificate must still be the host's.
    """

    def __init__(
        self,
        urls: Sequence[str],
        tls: Tls | None,
        aliases: Mapping[str, Sequence[str]],
        timeout: float,
        login: Login | None = None,
    ) -> None:
        self._endpoints = [
            (checked, address)
            for checked in (_checked(parse(url), tls) for url in urls)
            for address in aliases.get(checked.host) or (checked.host,)
        ]
        if not self._endpoints:
            raise Invalid("endpoints", list(urls), "must name at least one")
        self._tls, self._timeout, self._login = tls, timeout, login
        self._turn = random.randrange(len(self._endpoints))
        self._current: Connection | None = None
        self._open: set[Connection] = set()
        self.cluster_id = 0
        self.revision = 0  # at which etcd was, as the last answer says
        self._closed = False

    @asynccontextmanager
    async def _connection(self) -> AsyncIterator[Connection]:
        if self._closed:
            raise Unavailable("this etcd client is closed")
        if self._current is not None and not self._current.channel.usable:
            over = self._current
            self.retire(over)
            await self._drop_unused(over)
        if self._current is None:
            self._current = self._dial()
        connection = self._current
        connection.users += 1
        try:
            yield connection
        finally:
            connection.users -= 1
            await self._drop_unused(connection)

    async def _drop_unused(self, connection: Connection) -> None:
        if connection.retired and not connection.users:
            self._open.discard(connection)
            await connection.channel.close()

    def _dial(self) -> Connection:
        endpoint, address = self._endpoints[self._turn % len(self._endpoints)]
        tls = self._tls if endpoint.secure else None
        connection = Connection(endpoint, address, tls)
        self._open.add(connection)
        return connection

    def retire(self, connection: Connection) -> None:
        """Let the next call dial anew, at the next endpoint."""
        connection.retired = True
        if self._current is connection:
            self._current = None
            self._turn += 1

    async def unary(self, method: Method, request: Any, patience: float) -> Any:
        """One call, one answer. Raises ClusterMeshError."""
        async with self._connection() as connection:
            return await self._call(connection, method, request, patience, await self._metadata(connection))

    async def _call(
        self, connection: Connection, method: Method, request: Any, patience: float, metadata: Metadata
    ) -> Any:
        try:
            response = decode(
                method, await connection.channel.unary(method.path, request.SerializeToString(), patience, metadata)
            )
        except Failed as e:
            raise self.failure(connection, e.outcome) from e
        self.observe(connection, response.header)
        return response

    async def _metadata(self, connection: Connection) -> Metadata:
        if self._login is None:
            return _REQUIRE_LEADER
        async with connection.logging_in:
            if connection.metadata is None:
                connection.metadata = await self._log_in(connection, self._login)
            return connection.metadata

    async def _log_in(self, connection: Connection, login: Login) -> Metadata:
        request = methods.AUTHENTICATE.request(name=login.name, password=login.password)
        try:
            response = await self._call(connection, methods.AUTHENTICATE, request, self._timeout, _REQUIRE_LEADER)
        except AuthDisabled:
            return _REQUIRE_LEADER
        except Refused as e:
            raise Refused(f"user {login.name!r}: {e}") from e
        return (*_REQUIRE_LEADER, ("token", response.token))

    @asynccontextmanager
    async def stream(self, method: Method) -> AsyncIterator[Stream]:
        """A call that goes on: write requests, read responses. Ended when the block is left."""
        async with self._connection() as connection:
            metadata = await self._metadata(connection)
            translate = partial(self.failure, connection)
            try:
                call = await connection.channel.stream(method.path, metadata, self._timeout)
            except Failed as e:
                raise translate(e.outcome) from e
            stream = Stream(method, call, connection.pulse, partial(self.observe, connection), translate)
            try:
                yield stream
            finally:
                stream.close()

    def observe(self, connection: Connection, header: Any) -> None:
        """Check that an answer comes from the cluster all earlier ones came from."""
        found, known = header.cluster_id, self.cluster_id
        connection.pulse.heard = asyncio.get_running_loop().time()
        self.revision = header.revision
        if found and found == known:
            return
        if not found:
            self.retire(connection)
            raise Unavailable(f"etcd at {connection.endpoint} does not say which cluster it belongs to")
        self.cluster_id = 0 if known else found
        if known:
            self.retire(connection)
            raise ClusterIdChanged(f"etcd at {connection.endpoint} is cluster {found:x}, not {known:x} as before")

    def failure(self, connection: Connection, outcome: Outcome) -> ClusterMeshError:
        """The error for a failed call."""
        if is_severing(outcome.code):
            self.retire(connection)
        error = outcome.reason or fault(outcome.code, outcome.details, str(connection.endpoint))
        if self._login is not None and isinstance(error, TokenEnded | AuthChanged):
            self.retire(connection)  # the next one has a token of its own
        return error

    async def close(self) -> None:
        self._closed = True
        self._current = None
        while self._open:
            await self._open.pop().channel.close()


def _checked(endpoint: Endpoint, tls: Tls | None) -> Endpoint:
    if endpoint.secure and tls is None:
        raise Invalid("endpoint", str(endpoint), "https needs a CA, a certificate and a key")
    if not endpoint.secure and tls is not None:
        raise Invalid("endpoint", str(endpoint), "must be https where certificates are given")
    return endpoint
