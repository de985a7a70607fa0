"""Keys that were deleted are told from those that died with their lease, as far as etcd remembers; and when a lease was
renewed."""

from __future__ import annotations

import asyncio

from clustermesh.store.client import EtcdClient
from clustermesh.store.lease_ends import find_lease_ends, find_renewals


async def test_a_deletion_is_told_from_the_end_of_a_lease(client: EtcdClient) -> None:
    heartbeat, living, ending = [await client.grant(600) for _ in range(3)]
    for key, lease in ((b"a", 0), (b"b", living), (b"c", ending), (b"d", ending), (b"e", heartbeat)):
        await client.put(key, b"", lease)
    deleted = {await client.delete(key): key for key in (b"a", b"b", b"c", b"e")}
    assert await find_lease_ends(client, deleted, heartbeat) == frozenset()
    await client.revoke(ending)
    *_, fourth = deleted
    ended = fourth + 1
    third = next(revision for revision, key in deleted.items() if key == b"c")
    assert await find_lease_ends(client, {**deleted, ended: b"d"}, heartbeat) == {third, ended}, "c may have died, too"
    assert await find_lease_ends(client, {ended: b"nobody's"}, heartbeat) == frozenset()
    await client.compact(await client.put(b"f", b""))
    forgotten = {third: b"c", ended: b"d"}
    assert await find_lease_ends(client, forgotten, heartbeat) == forgotten.keys(), (
        "nothing says that they were deleted"
    )


async def test_who_holds_a_lease_is_known_by_when_it_was_renewed(client: EtcdClient) -> None:
    began = asyncio.get_running_loop().time()
    held, left, ended = [await client.grant(600) for _ in range(3)]
    await client.revoke(ended)
    first = await find_renewals(client, [held, left, ended])
    assert first.ages.keys() == {held, left}
    await asyncio.sleep(2.1)
    await client.keep_alive([held])
    found = await find_renewals(client, [held, left, ended])
    passed = asyncio.get_running_loop().time() - began
    assert found.term == first.term > 0
    assert 2 <= found.ages[left] <= passed + 1, "etcd rounds what is left down to seconds"
    assert found.ages[held] <= passed - 2.1 + 1
