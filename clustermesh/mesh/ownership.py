"""Whose etcd the own one is: one etcd describes one cluster, and who writes there under another name would take it all
away.

What a cluster says of itself is evidence: its config, unless a mirror has `cached` it, and its canaries under
cilium/state. Those hang on leases: who was there and is no more is forgotten by and by.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterable
from contextlib import suppress
from typing import Final

from clustermesh.errors import ClusterMeshError, DecodeError
from clustermesh.model import Cluster
from clustermesh.store.backoff import Backoff
from clustermesh.store.client import EtcdClient
from clustermesh.store.operations import KeyValue
from clustermesh.wire import cluster_config, keys

AGAIN: Final = 5.0
"""Seconds between two looks at an etcd that is another cluster's."""

_LOG: Final = logging.getLogger(__name__)


def is_copy(key: bytes, value: bytes) -> bool:
    """Whether what is at `key`, a cluster's config or canary, may be a mirror's; what nobody can read may be."""
    with suppress(DecodeError):
        if key.startswith(keys.CLUSTER_CONFIGS):
            return cluster_config.decode(value).cached
        return keys.parse_canary(key).cached
    return True


def clusters_of(found: Iterable[KeyValue]) -> set[str]:
    """Those that say of themselves that they are here."""
    names = set[str]()
    for kv in found:
        with suppress(DecodeError):
            if not is_copy(kv.key, kv.value):
                config = kv.key.startswith(keys.CLUSTER_CONFIGS)
                names.add(keys.parse_cluster_config(kv.key) if config else keys.parse_canary(kv.key).cluster)
    return names


def objection(etcd: str, own: str, found: Iterable[KeyValue]) -> str:
    """One sentence where the etcd is another cluster's; "" where it is ours."""
    others = sorted(clusters_of(found) - {own})
    if not others:
        return ""
    names = " and ".join(others)
    return (
        f"etcd at {etcd} is that of cluster {names}, and this is {own}: nothing is done there; correct the name or the "
        f"endpoint, or, where {names} is to be called {own} now, delete what is under "
        + " and ".join(f"cilium/cluster-config/{name} and cilium/synced/{name}/" for name in others)
    )


async def evidence(client: EtcdClient) -> list[KeyValue]:
    """All that may say whose etcd it is."""
    configs, canaries = await asyncio.gather(client.range(keys.CLUSTER_CONFIGS), client.range(keys.SYNCED))
    return [*configs.kvs, *canaries.kvs]


class Ownership:
    """Of the etcd that `client` leads to: a clustermesh.store.election.Owner."""

    def __init__(self, client: EtcdClient, cluster: Cluster, etcd: str, again: float = AGAIN) -> None:
        self.waiting = "whose etcd it is is not known yet"
        self._other_id = cluster.id  # what was said of it
        self._client, self._cluster, self._etcd, self._again = client, cluster, etcd, again

    async def wait(self) -> None:
        """Until the etcd is ours."""
        while True:
            if await self.look():
                return
            await asyncio.sleep(self._again)

    async def look(self) -> bool:
        """Whether it is ours, as soon as it answers."""
        backoff = Backoff(last=self._again)
        while True:
            try:
                found = await evidence(self._client)
            except ClusterMeshError as e:
                self._say(f"whose etcd it is is not known yet: etcd at {self._etcd}: {e}", quietly=True)
                await asyncio.sleep(backoff.next())
                continue
            self._say(objection(self._etcd, self._cluster.name, found))
            self._compare_ids(found)
            return not self.waiting

    def _say(self, sentence: str, *, quietly: bool = False) -> None:
        if sentence == self.waiting:
            return
        if sentence:
            _LOG.log(logging.INFO if quietly else logging.ERROR, "%s", sentence)
        self.waiting = sentence

    def _compare_ids(self, found: Iterable[KeyValue]) -> None:
        key = keys.cluster_config_key(self._cluster.name)
        with suppress(DecodeError):
            for before in (cluster_config.decode(kv.value).id for kv in found if kv.key == key):
                if before not in (self._cluster.id, self._other_id):
                    self._other_id = before
                    _LOG.warning(
                        "etcd at %s: cluster %s had the id %d, and has %d now: identities are numbered anew; where that"
                        " is not wished, correct the id",
                        *(self._etcd, self._cluster.name, before, self._cluster.id),
                    )
