"""Peers as a target: each ends as wanted, whatever moves between them and whatever fails on the way."""

from __future__ import annotations

import asyncio

import pytest
from fake_wireguard import FakeDevice, numbered_key
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from agent.targets.wireguard import GREETING_DELAY, PeerTracker, WireGuardTarget
from agent.wireguard.peer import Peer, PeerKey, sort_allowed_ips
from clustermesh.address import Prefix, parse, parse_prefix
from clustermesh.errors import ApplyError
from clustermesh.reconcile import Reconciler, Tracker

A, B, C = (numbered_key(number) for number in (1, 2, 3))
a, b, c = (PeerKey("beta", name) for name in ("n1", "n2", "n3"))
X, Y, Z = map(parse_prefix, ("10.1.0.0/24", "10.2.0.0/24", "fd00:10:3::/64"))


def peer(key: str, *cidrs: Prefix, endpoint: str = "192.0.2.1") -> Peer:
    return Peer(public_key=key, endpoint=parse(endpoint), port=51871, allowed_ips=sort_allowed_ips(cidrs))


def cidr_owners(names: list[PeerKey]) -> st.SearchStrategy[dict[PeerKey, Peer]]:
    """Any peers with disjoint allowed IPs and keys of their own: each CIDR has one owner or none."""
    owners = st.fixed_dictionaries({cidr: st.sampled_from([*names, None]) for cidr in (X, Y, Z)})
    keys = st.permutations([A, B, C])
    present = st.sets(st.sampled_from(names))
    return st.tuples(owners, keys, present).map(
        lambda t: {
            name: peer(key, *(cidr for cidr, owner in t[0].items() if owner == name))
            for name, key in zip(names, t[1], strict=True)
            if name in t[2]
        }
    )


@given(st.lists(cidr_owners([a, b, c]), min_size=1, max_size=6))
def test_reconciled_device_holds_what_is_wanted_after_any_moves(stages: list[dict[PeerKey, Peer]]) -> None:
    async def follow() -> None:
        device = FakeDevice()
        tracker = Tracker("peers", WireGuardTarget(device))
        reconciler = Reconciler(tracker)
        reconciler.may_delete = True
        for wanted in stages:
            tracker.replace(wanted)
            await reconciler.flush()
            assert reconciler.settled
            assert await tracker.target.dump() == wanted
            assert await reconciler.audit() == 0

    asyncio.run(follow())


async def test_a_peer_that_gets_more_networks_keeps_its_own_meanwhile_also_one_of_the_agent_before() -> None:
    device = FakeDevice()
    await WireGuardTarget(device).upsert({a: peer(A, X)})
    target = WireGuardTarget(device)
    await target.dump()
    for networks in ((X, Z), (X, Y, Z)):
        await target.upsert({a: peer(A, *networks)})
        assert await target.dump() == {a: peer(A, *networks)}
    assert device.emptied == []
    await target.upsert({a: peer(A, X)})
    assert device.emptied == [A]


async def test_after_a_write_of_unknown_outcome_networks_are_replaced_as_a_whole() -> None:
    device = FakeDevice()
    target = WireGuardTarget(device)
    await target.upsert({a: peer(A, X)})
    device.refuse = {B}
    with pytest.raises(ApplyError):
        await target.upsert({a: peer(A, X, Y), b: peer(B, Z)})
    await target.upsert({a: peer(A, X)})
    assert await target.dump() == {a: peer(A, X)}


async def test_two_peers_swap_their_allowed_ips() -> None:
    target = WireGuardTarget(FakeDevice())
    await target.upsert({a: peer(A, X), b: peer(B, Y)})
    await target.upsert({a: peer(A, Y), b: peer(B, X)})
    assert await target.dump() == {a: peer(A, Y), b: peer(B, X)}


async def test_whoever_is_given_what_another_gives_up_is_written_first() -> None:
    """So the device moves it: given up first, it would be nobody's until the next part."""
    device = FakeDevice()
    target = WireGuardTarget(device)
    await target.upsert({a: peer(A, X), b: peer(B, Y)})
    await target.upsert({a: peer(A), c: peer(C, Z), b: peer(B, X, Y)})
    assert device.writes[-1] == [B, A, C]


odd = PeerKey("beta", "odd")


async def test_invalid_peer_does_not_keep_the_others_out() -> None:
    target = WireGuardTarget(FakeDevice())
    with pytest.raises(ApplyError) as caught:
        await target.upsert({odd: peer("nonsense", X), a: peer(A, X), b: peer(B, Y, endpoint="224.0.0.1")})
    assert set(caught.value.failed) == {odd, b}
    assert await target.dump() == {a: peer(A, X)}


async def test_after_a_refused_batch_the_rest_is_read_and_written_singly() -> None:
    device = FakeDevice()
    device.refuse = {B}
    target = WireGuardTarget(device)
    with pytest.raises(ApplyError) as caught:
        await target.upsert({a: peer(A, X), b: peer(B, Y), c: peer(C, Z)})
    assert set(caught.value.failed) == {b}
    assert await target.dump() == {a: peer(A, X), c: peer(C, Z)}
    assert device.writes == [[A, B, C], [B], [C]]  # A was there already


async def test_peer_that_roamed_is_no_drift_until_its_session_is_dead() -> None:
    device = FakeDevice()
    target = WireGuardTarget(device, clock=lambda: 1000.0)
    await target.upsert({a: peer(A, X)})
    device.states[A] = replace(device.states[A], endpoint=(parse("fd00::7"), 4500), last_handshake=900.0)
    assert await target.dump() == {a: peer(A, X)}
    device.states[A] = replace(device.states[A], last_handshake=819.0)
    assert (await target.dump())[a].endpoint == parse("fd00::7")


async def test_deleting_what_is_absent_is_success() -> None:
    target = WireGuardTarget(FakeDevice())
    await target.upsert({a: peer(A, X)})
    await target.delete([a, b])
    await target.delete([a, b])
    assert await target.dump() == {}


async def test_of_two_new_peers_the_one_with_the_greater_key_lets_the_other_speak_first() -> None:
    time = [1000.0]
    device = FakeDevice()
    target = WireGuardTarget(device, own_key=B, timer=lambda: time[0])
    await target.upsert({a: peer(A, X), c: peer(C, Z)})
    assert (device.states[A].keepalive, device.states[C].keepalive) == (0, 25)
    assert await target.dump() == {a: peer(A, X), c: peer(C, Z)}  # no drift: it is meant to be so for now
    await target.greet()
    assert device.states[A].keepalive == 0
    time[0] += GREETING_DELAY
    await target.greet()
    assert device.states[A].keepalive == 25
    await target.upsert({a: peer(A, X, Y)})
    assert device.states[A].keepalive == 25


async def test_silent_peer_is_greeted_in_its_time_without_being_asked_for() -> None:
    device = FakeDevice()
    target = WireGuardTarget(device, own_key=B)
    async with asyncio.TaskGroup() as tasks:
        greeting = tasks.create_task(target.greet_forever())
        await target.upsert({a: peer(A, X)})
        async with asyncio.timeout(30):
            while device.states[A].keepalive == 0:
                await asyncio.sleep(0.01)
        greeting.cancel()


async def test_silent_peer_that_leaves_is_not_greeted() -> None:
    time = [1000.0]
    device = FakeDevice()
    target = WireGuardTarget(device, own_key=B, timer=lambda: time[0])
    await target.upsert({a: peer(A, X)})
    await target.delete([a])
    time[0] += GREETING_DELAY
    await target.greet()
    assert device.states == {}


async def test_silent_peer_that_the_device_lost_is_not_made_again_behind_the_trackers_back() -> None:
    time = [1000.0]
    device = FakeDevice()
    target = WireGuardTarget(device, own_key=B, timer=lambda: time[0])
    await target.upsert({a: peer(A, X)})
    device.states.clear()
    time[0] += GREETING_DELAY
    await target.greet()
    assert await target.dump() == {}


async def test_silent_peer_in_a_refused_batch_is_still_silent() -> None:
    device = FakeDevice()
    device.refuse = {C}
    target = WireGuardTarget(device, own_key=B)
    with pytest.raises(ApplyError):
        await target.upsert({c: peer(C, Z), a: peer(A, X)})
    assert device.states[A].keepalive == 0


async def test_drift_of_a_silent_peer_is_seen() -> None:
    device = FakeDevice()
    target = WireGuardTarget(device, own_key=B, clock=lambda: 1000.0)
    await target.upsert({a: peer(A, X)})
    device.states[A] = replace(device.states[A], allowed_ips=())
    assert (await target.dump())[a].allowed_ips == ()


# -- whose peer it is -------------------------------------------------------------------------------------------------


async def test_a_node_with_a_new_key_has_only_that_one_afterwards() -> None:
    device = FakeDevice()
    target = WireGuardTarget(device)
    await target.upsert({a: peer(A, X), b: peer(B, Y)})
    await target.upsert({a: peer(C, X)})
    assert device.states.keys() == {B, C}
    assert await target.dump() == {a: peer(C, X), b: peer(B, Y)}


async def test_two_nodes_exchange_their_keys() -> None:
    device = FakeDevice()
    target = WireGuardTarget(device)
    await target.upsert({a: peer(A, X), b: peer(B, Y)})
    await target.upsert({a: peer(B, X), b: peer(A, Y)})
    assert await target.dump() == {a: peer(B, X), b: peer(A, Y)}
    await target.delete([a])
    assert device.states.keys() == {A}


async def test_a_key_that_another_has_by_now_stays_when_its_first_owner_goes() -> None:
    device = FakeDevice()
    target = WireGuardTarget(device)
    await target.upsert({a: peer(A, X)})
    await target.upsert({b: peer(A, X)})
    await target.delete([a])
    assert await target.dump() == {b: peer(A, X)}


async def test_two_generations_of_one_node_stand_beside_each_other() -> None:
    target = WireGuardTarget(FakeDevice())
    later = a._replace(generation=1)
    await target.upsert({a: peer(A, X), later: peer(B, Y)})
    await target.delete([a])
    assert await target.dump() == {later: peer(B, Y)}


@given(st.lists(cidr_owners([a, b, c]), min_size=1, max_size=6), st.integers(0, 5))
async def test_an_agent_started_again_takes_over_what_is_still_wanted(
    stages: list[dict[PeerKey, Peer]], restart: int
) -> None:
    device = FakeDevice()
    tracker = PeerTracker("peers", WireGuardTarget(device))
    for number, wanted in enumerate(stages):
        if number == restart:
            tracker = PeerTracker("peers", WireGuardTarget(device))
            await tracker.adopt()
        reconciler = Reconciler(tracker)
        reconciler.may_delete = True
        tracker.replace(wanted)
        await reconciler.flush()
        assert reconciler.settled
        assert await reconciler.audit() == 0
        assert device.states.keys() == {peer.public_key for peer in wanted.values()}


async def test_a_restart_writes_nothing_that_the_device_has_already() -> None:
    device = FakeDevice()
    await WireGuardTarget(device).upsert({a: peer(A, X), b: peer(B, Y), c: peer(C, Z)})
    device.writes.clear()
    tracker = PeerTracker("peers", WireGuardTarget(device))
    reconciler = Reconciler(tracker)
    reconciler.may_delete = True
    await tracker.adopt()
    tracker.set(a, peer(A, X))
    tracker.set(b, peer(B, Z))
    await reconciler.flush()
    assert device.writes == [[B]]
    assert device.states.keys() == {A, B}
