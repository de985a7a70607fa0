"""A watch whose stream is cut in the middle of an answer: of a revision all is told, once, or nothing yet."""

from __future__ import annotations

import pytest
from etcd_maintenance import delete_prefix
from mirror import Mirror
from tcp_proxy import TcpProxy, port_of

from clustermesh.store.client import EtcdClient, Put
from clustermesh.store.follow import Changed
from clustermesh.store.local import LocalEtcd

KEYS = {b"p/%04d/" % number + b"k" * 10_000: b"" for number in range(500)}
"""Deleted in one revision they are 5 MB, which come in parts."""


@pytest.mark.parametrize("size", [100_000, 1_400_000, 1_700_000, 3_300_000, 4_900_000])
async def test_what_is_cut_in_an_answer_is_told_whole_or_not_at_all(
    size: int, etcd: LocalEtcd, client: EtcdClient, make_client
) -> None:
    await client.transact([Put(key, value) for key, value in KEYS.items()])
    async with TcpProxy(port_of(etcd)) as proxy, Mirror(make_client(proxy.url), b"p/") as mirror:
        await mirror.until_table(KEYS)
        await proxy.ration(size)
        assert await delete_prefix(client, b"p/") == len(KEYS)
        accepted = proxy.accepted
        await mirror.until(lambda: bool(mirror.errors) and (proxy.accepted > accepted + 1 or not mirror.table))
        assert mirror.table in (KEYS, {})
        proxy.heal()
        await client.put(b"p/last", b"x")
        await mirror.until_table({b"p/last": b"x"})
    assert sorted(mirror.deletions) == sorted(KEYS)
    assert len(mirror.lists) == 1
    told = [len(item.events) for item in mirror.items if isinstance(item, Changed) and item.events]
    assert told[0] >= len(KEYS), "all of the revision at once"
