"""Peers as a target: each ends as wanted, whatever moves between them and whatever fails on the way."""

from __future__ import annotations

import asyncio

import pytest
from fake_wireguard import FakeDevice, numbered_key
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from agent.targets.wireguard import GREETING_DELAY, WireGuardTarget, drop_overlaps, sort_out
from agent.wireguard.peer import Peer, PeerState, is_down, sort_allowed_ips
from clustermesh.address import Prefix, parse, parse_prefix
from clustermesh.errors import ApplyError
from clustermesh.reconcile import Reconciler, Tracker

A, B, C = (numbered_key(number) for number in (1, 2, 3))
X, Y, Z = map(parse_prefix, ("10.1.0.0/24", "10.2.0.0/24", "fd00:10:3::/64"))


def peer(*cidrs: Prefix, endpoint: str = "192.0.2.1") -> Peer:
    return Peer(endpoint=parse(endpoint), port=51871, allowed_ips=sort_allowed_ips(cidrs))


def cidr_owners(keys: list[str]) -> st.SearchStrategy[dict[str, Peer]]:
    """Any peers with disjoint allowed IPs: each CIDR has one owner or none."""
    owners = st.fixed_dictionaries({cidr: st.sampled_from([*keys, ""]) for cidr in (X, Y, Z)})
    present = st.sets(st.sampled_from(keys))
    return st.tuples(owners, present).map(
        lambda t: {key: peer(*(c for c, owner in t[0].items() if owner == key)) for key in sorted(t[1])}
    )


@given(st.lists(cidr_owners([A, B, C]), min_size=1, max_size=6))
def test_reconciled_device_holds_what_is_wanted_after_any_moves(stages: list[dict[str, Peer]]) -> None:
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


async def test_two_peers_swap_their_allowed_ips() -> None:
    target = WireGuardTarget(FakeDevice())
    await target.upsert({A: peer(X), B: peer(Y)})
    await target.upsert({A: peer(Y), B: peer(X)})
    assert await target.dump() == {A: peer(Y), B: peer(X)}


async def test_second_peer_that_wants_the_same_cidr_is_refused_and_the_first_keeps_it() -> None:
    target = WireGuardTarget(FakeDevice())
    with pytest.raises(ApplyError) as caught:
        await target.upsert({A: peer(X), B: peer(X, Y), C: peer(Z)})
    assert caught.value.failed == {B: f"allowed IP 10.1.0.0/24 belongs to peer {A}"}
    assert await target.dump() == {A: peer(X), C: peer(Z)}


async def test_invalid_peer_does_not_keep_the_others_out() -> None:
    target = WireGuardTarget(FakeDevice())
    with pytest.raises(ApplyError) as caught:
        await target.upsert({"nonsense": peer(X), A: peer(X), B: peer(Y, endpoint="224.0.0.1")})
    assert set(caught.value.failed) == {"nonsense", B}
    assert await target.dump() == {A: peer(X)}


async def test_after_a_refused_batch_the_rest_is_read_and_written_singly() -> None:
    device = FakeDevice()
    device.refuse = {B}
    target = WireGuardTarget(device)
    with pytest.raises(ApplyError) as caught:
        await target.upsert({A: peer(X), B: peer(Y), C: peer(Z)})
    assert set(caught.value.failed) == {B}
    assert await target.dump() == {A: peer(X), C: peer(Z)}
    assert device.writes == [[A, B, C], [B], [C]]  # A was there already


async def test_peer_that_roamed_is_no_drift_until_its_session_is_dead() -> None:
    device = FakeDevice()
    target = WireGuardTarget(device, clock=lambda: 1000.0)
    await target.upsert({A: peer(X)})
    device.states[A] = replace(device.states[A], endpoint=(parse("fd00::7"), 4500), last_handshake=900.0)
    assert await target.dump() == {A: peer(X)}
    device.states[A] = replace(device.states[A], last_handshake=819.0)
    assert (await target.dump())[A].endpoint == parse("fd00::7")


async def test_deleting_what_is_absent_is_success() -> None:
    target = WireGuardTarget(FakeDevice())
    await target.upsert({A: peer(X)})
    await target.delete([A, B])
    await target.delete([A, B])
    assert await target.dump() == {}


async def test_of_two_new_peers_the_one_with_the_greater_key_lets_the_other_speak_first() -> None:
    time = [1000.0]
    device = FakeDevice()
    target = WireGuardTarget(device, own_key=B, clock=lambda: time[0])
    await target.upsert({A: peer(X), C: peer(Z)})
    assert (device.states[A].keepalive, device.states[C].keepalive) == (0, 25)
    assert await target.dump() == {A: peer(X), C: peer(Z)}  # no drift: it is meant to be so for now
    await target.greet()
    assert device.states[A].keepalive == 0
    time[0] += GREETING_DELAY
    await target.greet()
    assert device.states[A].keepalive == 25
    await target.upsert({A: peer(X, Y)})
    assert device.states[A].keepalive == 25


async def test_silent_peer_is_greeted_in_its_time_without_being_asked_for() -> None:
    device = FakeDevice()
    target = WireGuardTarget(device, own_key=B)
    async with asyncio.TaskGroup() as tasks:
        greeting = tasks.create_task(target.greet_forever())
        await target.upsert({A: peer(X)})
        async with asyncio.timeout(30):
            while device.states[A].keepalive == 0:
                await asyncio.sleep(0.01)
        greeting.cancel()


async def test_silent_peer_that_leaves_is_not_greeted() -> None:
    time = [1000.0]
    device = FakeDevice()
    target = WireGuardTarget(device, own_key=B, clock=lambda: time[0])
    await target.upsert({A: peer(X)})
    await target.delete([A])
    time[0] += GREETING_DELAY
    await target.greet()
    assert device.states == {}


async def test_silent_peer_that_the_device_lost_is_not_made_again_behind_the_trackers_back() -> None:
    time = [1000.0]
    device = FakeDevice()
    target = WireGuardTarget(device, own_key=B, clock=lambda: time[0])
    await target.upsert({A: peer(X)})
    device.states.clear()
    time[0] += GREETING_DELAY
    await target.greet()
    assert await target.dump() == {}


async def test_node_is_not_its_own_peer() -> None:
    target = WireGuardTarget(FakeDevice(), own_key=A)
    with pytest.raises(ApplyError, match="this node's own"):
        await target.upsert({A: peer(X), B: peer(Y)})
    assert await target.dump() == {B: peer(Y)}


async def test_silent_peer_in_a_refused_batch_is_still_silent() -> None:
    device = FakeDevice()
    device.refuse = {C}
    target = WireGuardTarget(device, own_key=B)
    with pytest.raises(ApplyError):
        await target.upsert({C: peer(Z), A: peer(X)})
    assert device.states[A].keepalive == 0


async def test_drift_of_a_silent_peer_is_seen() -> None:
    device = FakeDevice()
    target = WireGuardTarget(device, own_key=B, clock=lambda: 1000.0)
    await target.upsert({A: peer(X)})
    device.states[A] = replace(device.states[A], allowed_ips=())
    assert (await target.dump())[A].allowed_ips == ()


overlapping = st.dictionaries(
    st.sampled_from([A, B, C]), st.lists(st.sampled_from([X, Y, Z]), max_size=3).map(lambda cidrs: peer(*cidrs))
)


@given(overlapping)
def test_overlaps_are_dropped_from_all_but_the_first(peers: dict[str, Peer]) -> None:
    kept, lost = drop_overlaps(peers)
    assert sort_out(kept) == (kept, {})
    for cidr in (X, Y, Z):
        wanting = [key for key in peers if cidr in peers[key].allowed_ips]
        assert [key for key in kept if cidr in kept[key].allowed_ips] == wanting[:1]
    assert lost.keys() == {key for key in peers if kept[key] != peers[key]}


@pytest.mark.parametrize(
    ("before", "now", "down"),
    [
        (PeerState(last_handshake=900.0, tx=5), PeerState(last_handshake=900.0, tx=9), False),
        (PeerState(last_handshake=800.0, tx=5), PeerState(last_handshake=800.0, tx=9), True),
        (PeerState(last_handshake=800.0, tx=5, rx=1), PeerState(last_handshake=800.0, tx=9, rx=2), False),
        (PeerState(last_handshake=800.0, tx=5), PeerState(last_handshake=800.0, tx=5), False),
    ],
    ids=["session alive", "sent and nothing came back", "something came back", "nothing was sent"],
)
def test_peer_is_down_when_nothing_comes_back(before: PeerState, now: PeerState, down: bool) -> None:
    assert is_down(before, now, 1000.0) is down
