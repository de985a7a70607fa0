"""The agent's domains together, over a kernel of dictionaries: what is planned when, and what outlives what."""

from __future__ import annotations

import asyncio
import selectors
from collections.abc import AsyncIterator, Callable, Collection, Mapping
from itertools import pairwise

import pytest
from fake_kernel import Bed
from fake_wireguard import numbered_key
from msgspec.structs import replace

from agent.bpf.layouts import IpcacheValue, Number, pack, pack_evicted, pack_factors
from agent.domains import domains, gate, tunnels
from agent.domains.addresses import INIT
from agent.plan.attached import AttachedPod
from agent.plan.routes import RouteKey
from agent.state import AgentState
from agent.wireguard.peer import PeerState
from clustermesh.address import parse, parse_prefix, prefix_text
from clustermesh.errors import Refused, Unavailable
from clustermesh.mesh.authority import Authority, Ground, Place
from clustermesh.mesh.claims import Holder
from clustermesh.mesh.holdings import Holdings, Objection, Wanted
from clustermesh.mesh.session import Session, State
from clustermesh.model import ClusterConfig, Endpoint, Node, NodeAddress, Outside, Stamp


@pytest.fixture
def bed() -> Bed:
    return Bed()


async def until(condition: Callable[[], object]) -> None:
    async with asyncio.timeout(20):
        while not condition():
            await asyncio.sleep(0.01)


async def test_a_node_gets_its_device_its_tunnels_and_its_services(bed: Bed) -> None:
    bed.add_node("alpha", 1)
    bed.add_node("beta", 2)
    bed.add_web("10.1.1.5")
    bed.add_remote_web("beta", "10.2.2.6")
    await bed.step()
    assert list(bed.device.states) == [numbered_key(2)]
    assert RouteKey(parse_prefix("10.2.2.0/24"), 0) in bed.tables["routes"].held
    assert bed.served() == ["5", "6"]
    assert bed.domains.ready_at is not None
    assert bed.domains.tunnels.prepared.is_set()


async def test_backends_are_there_before_and_gone_after_what_names_them(bed: Bed) -> None:
    bed.add_node("alpha", 1)
    bed.add_node("beta", 2)
    bed.add_web("10.1.1.5")
    await bed.step()
    order = [line.split()[0] for line in bed.journal]
    assert order.index("backends") < order.index("services")
    bed.journal.clear()
    bed.sink.remove("alpha", "local_services", ("n", "web"), 0)
    await bed.step()
    assert [line.split()[0] for line in bed.journal] == ["services", "groups", "slots", "backends"]


# -- pruning ----------------------------------------------------------------------------------------------------------


async def test_nothing_is_deleted_before_the_own_clusters_first_whole_list(bed: Bed) -> None:
    bed.tables["ipcache"].held[parse("10.1.1.9")] = object()
    await bed.adopt()
    for state in (State.CONNECTING, State.SYNCING):
        bed.own = bed.reader("alpha", state)
        await bed.step()
        assert bed.tables["ipcache"].held
    bed.own = bed.reader("alpha", State.FRESH)
    await bed.step()
    assert not bed.tables["ipcache"].held


async def test_nothing_is_deleted_before_the_peers_folder_was_read_and_every_peer_listed(bed: Bed) -> None:
    bed.tables["ipcache"].held[parse("10.2.1.9")] = object()
    await bed.adopt()
    bed.peers.synced_once = False
    await bed.step()
    assert bed.tables["ipcache"].held
    bed.peers.synced_once = True
    bed.connect("beta", State.SYNCING)
    await bed.step()
    assert bed.tables["ipcache"].held
    assert bed.domains.ready_at is None
    bed.connect("beta", State.FRESH)
    await bed.step()
    assert not bed.tables["ipcache"].held


async def test_what_came_after_the_last_save_outlives_a_restart_until_its_cluster_was_heard(bed: Bed) -> None:
    newer = parse("10.2.1.9")
    bed.tables["ipcache"].held[newer] = object()
    await bed.adopt()
    beta = bed.connect("beta", State.STALE)  # restored from disk
    await bed.step()
    assert bed.tables["ipcache"].held
    assert bed.domains.ready_at is not None, "nobody waits for that"
    beta.brain.session = beta.session.enter(State.FRESH, 1.0).enter(State.STALE, 2.0, "cut")
    await bed.step()
    assert not bed.tables["ipcache"].held


async def test_what_came_after_the_last_save_outlives_a_restart_until_a_silent_peer_was_waited_for(bed: Bed) -> None:
    bed.tables["ipcache"].held[parse("10.2.1.9")] = object()
    await bed.adopt()
    bed.connect("beta", State.STALE)
    await bed.step()
    bed.now += domains.SYNC_TIMEOUT + 1.0
    bed.own = bed.reader("alpha", State.STALE)
    await bed.step()
    assert bed.tables["ipcache"].held, "its own cluster knows of it first"
    bed.own = bed.reader("alpha")
    await bed.step()
    assert not bed.tables["ipcache"].held


async def test_a_cluster_whose_memory_cannot_be_read_keeps_what_the_kernel_holds_until_it_is_heard_of(bed: Bed) -> None:
    bed.tables["ipcache"].held[parse("10.2.1.9")] = object()
    await bed.adopt()
    bed.peers.lost.add("beta")
    bed.connect("beta", State.CONNECTING)
    bed.now += domains.SYNC_TIMEOUT + 1.0
    await bed.step()
    assert bed.domains.ready_at is not None, "nobody waits for that"
    assert bed.tables["ipcache"].held
    bed.connect("beta")
    await bed.step()
    assert not bed.tables["ipcache"].held


async def test_a_peer_found_on_the_device_stays_while_its_node_is_still_to_be_planned(bed: Bed) -> None:
    released, cidrs = asyncio.Event(), bed.tables["cidrs"]
    write = cidrs.upsert
    held: list[object] = []

    async def hold(entries: Mapping[object, object]) -> None:
        held.append(entries)
        await released.wait()
        await write(entries)

    bed.device.there = True
    bed.device.states = {numbered_key(2): PeerState(), numbered_key(9): PeerState()}
    bed.tables["ipcache"].held[parse("10.2.1.9")] = object()
    bed.add_node("alpha", 1)
    beta = bed.connect("beta", State.SYNCING)
    running = await bed.running()
    await until(lambda: bed.attached)
    cidrs.upsert = hold
    bed.add_node("beta", 3)
    await until(lambda: held)
    bed.add_node("beta", 2)
    beta.brain.session = Session(state=State.FRESH)
    bed.peers.on_complete()
    await until(lambda: not bed.tables["ipcache"].held)
    for _ in range(100):
        await asyncio.sleep(0)
    assert not bed.device.removed
    released.set()
    await until(lambda: bed.device.removed)
    assert bed.device.removed == [numbered_key(9)], "nobody's"
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)


@pytest.mark.parametrize("fault", [None, Unavailable("no buffer space")])
async def test_a_node_that_comes_while_its_peer_is_being_removed_has_one_again(
    bed: Bed, fault: Unavailable | None
) -> None:
    remove = bed.device.remove_peers

    async def remove_late(keys: Collection[str]) -> None:
        bed.device.remove_peers = remove
        if fault is None:
            bed.add_node("beta", 2)
            await bed.domains.network.step()
        await remove(keys)
        if fault is not None:
            raise fault

    bed.add_node("alpha", 1)
    bed.add_node("beta", 2)
    await bed.step()
    bed.sink.drain("beta")
    bed.restart()
    bed.add_node("alpha", 1, pod_cidrs=(parse_prefix("10.1.77.0/24"),))
    bed.device.remove_peers = remove_late
    await bed.adopt()
    await bed.step()
    bed.add_node("beta", 2)
    await bed.step()
    assert bed.device.removed == [numbered_key(2)]
    assert list(bed.device.states) == [numbered_key(2)]
    assert bed.domains.tunnels.settled


async def test_backends_of_a_cluster_that_is_not_known_yet_stay_behind_the_services(bed: Bed) -> None:
    served_by_both(bed)
    await bed.step()
    begin_without_beta(bed)
    bed.peers.lost.add("beta")
    bed.connect("beta", State.CONNECTING)
    await bed.adopt()
    bed.add_web("10.1.1.5", "10.1.1.6")
    await bed.step()
    assert bed.served() == ["5", "6", "7"], "the own ones wait for nobody"
    bed.add_web("10.1.1.6")
    bed.now += domains.SYNC_TIMEOUT + 1.0
    await bed.step()
    assert bed.served() == ["6", "7"]
    bed.add_node("beta", 2)
    bed.add_remote_web("beta", "10.2.2.8")
    await bed.step()
    assert bed.served() == ["6", "7"], "nobody has said yet that it is gone"
    bed.connect("beta")
    await bed.step()
    assert bed.served() == ["6", "8"]


async def test_backends_of_a_peer_that_stays_silent_go_from_the_services_when_it_was_waited_for(bed: Bed) -> None:
    served_by_both(bed)
    await bed.step()
    begin_without_beta(bed)
    bed.connect("beta", State.CONNECTING)
    await bed.adopt()
    bed.add_web("10.1.1.5")
    await bed.step()
    assert bed.served() == ["5", "7"]
    bed.now += domains.SYNC_TIMEOUT + 1.0
    await bed.step()
    assert bed.served() == ["5"]
    assert len(bed.tables["backends"].held) == 1


async def test_backends_of_a_cluster_that_waits_for_its_tunnels_stay_behind_the_services(bed: Bed) -> None:
    served_by_both(bed)
    await bed.step()
    begin_without_beta(bed)
    bed.peers.newcomers.add("beta")
    bed.domains.greet(bed.own, bed.peers)  # type: ignore[arg-type]
    await bed.adopt()
    bed.add_web()
    bed.add_node("beta", 2)
    bed.add_remote_web("beta", "10.2.2.7", "10.2.2.8")
    await bed.step()
    assert bed.domains.gate.waiting
    assert bed.served() == ["7"]
    bed.now += gate.WELCOME + 1.0
    await bed.domains.gate.look()
    await bed.step()
    assert bed.served() == ["7", "8"]


@pytest.mark.parametrize(("nodes", "state"), [(0, State.FRESH), (1, State.REMOVED)])
async def test_backends_of_a_cluster_that_has_no_node_or_was_disconnected_wait_at_no_gate(
    bed: Bed, nodes: int, state: State
) -> None:
    served_by_both(bed)
    await bed.step()
    begin_without_beta(bed)
    beta = bed.connect("beta")
    bed.peers.newcomers.add("beta")
    bed.domains.greet(bed.own, bed.peers)  # type: ignore[arg-type]
    await bed.adopt()
    bed.add_web("10.1.1.5")
    for number in range(nodes):
        bed.add_node("beta", 2 + number)
    beta.brain.session = Session(state=state)
    await bed.step()
    assert bed.domains.gate.waiting
    assert bed.served() == ["5"]


async def test_backends_of_a_restored_cluster_stay_while_the_own_one_is_not_known(bed: Bed) -> None:
    """Until it is, no peer's node stands, and so none of its backends."""
    served_by_both(bed)
    await bed.step()
    bed.state = bed.sink = AgentState("alpha", bed.propagation)
    bed.restart()
    bed.own = bed.reader("alpha", State.SYNCING)
    bed.connect("beta", State.STALE)
    bed.domains.greet(bed.own, bed.peers)  # type: ignore[arg-type]
    bed.add_node("beta", 2)
    bed.add_remote_web("beta", "10.2.2.7")
    bed.add_web("10.1.1.5", "10.1.1.6")
    await bed.adopt()
    await bed.step()
    assert bed.served() == ["5", "6", "7"]
    bed.add_node("alpha", 1)
    bed.state.admit_peers()
    await bed.step()
    assert bed.served() == ["5", "6", "7"]
    bed.add_remote_web("beta", "10.2.2.8")
    await bed.step()
    assert bed.served() == ["5", "6", "8"]


@pytest.mark.parametrize("cluster", ["alpha", "beta"])
async def test_an_older_memory_than_the_kernel_adds_and_takes_no_backend_until_its_cluster_is_heard_of(
    bed: Bed, cluster: str
) -> None:
    served_by_both(bed)
    await bed.step()
    begin_from_memory(bed)
    remember = {"alpha": [[], ["10.2.2.7"]], "beta": [["10.1.1.5"], []]}[cluster]
    bed.add_web(*remember[0], *(["10.1.1.9"] if cluster == "alpha" else []))
    bed.add_remote_web("beta", *remember[1], *(["10.2.2.9"] if cluster == "beta" else []))
    await bed.adopt()
    bed.journal.clear()
    await bed.step()
    assert bed.served() == ["5", "7"]
    assert not [line for line in bed.journal if line.split()[0] in ("backends", "slots", "groups", "services")]
    bed.now += domains.SYNC_TIMEOUT + 1.0
    await bed.step()
    assert bed.served() == ["5", "7"]
    hear(bed, cluster)
    await bed.step()
    assert bed.served() == {"alpha": ["7", "9"], "beta": ["5", "9"]}[cluster]


@pytest.mark.parametrize("admitted", [True, False])
async def test_a_cluster_that_has_none_behind_a_service_in_the_kernel_gets_none_from_an_older_memory(
    bed: Bed, admitted: bool
) -> None:
    served_by_both(bed)
    bed.add_remote_web("beta")
    await bed.step()
    begin_from_memory(bed)
    bed.add_web("10.1.1.5")
    bed.domains._admitting = not admitted
    if not admitted:
        bed.state.withheld.add("beta")
    bed.add_remote_web("beta", "10.2.2.9")
    await bed.adopt()
    await bed.step()
    bed.domains._admitting = False
    bed.state.release("beta")
    await bed.step()
    assert bed.served() == ["5"]
    hear(bed, "beta")
    await bed.step()
    assert bed.served() == ["5", "9"]


async def test_a_service_that_the_kernel_does_not_have_is_programmed_as_it_is_remembered(bed: Bed) -> None:
    served_by_both(bed)
    await bed.step()
    begin_from_memory(bed)
    for table in bed.tables.values():
        table.held.clear()
    bed.add_web("10.1.1.5")
    bed.add_remote_web("beta", "10.2.2.7")
    await bed.adopt()
    await bed.step()
    assert bed.served() == ["5", "7"]


async def test_an_agent_that_remembers_what_the_kernel_has_looks_at_no_service_twice(bed: Bed) -> None:
    served_by_both(bed)
    await bed.step()
    begin_from_memory(bed)
    bed.add_web("10.1.1.5")
    bed.add_remote_web("beta", "10.2.2.7")
    await bed.adopt()
    await bed.step()
    hear(bed, "alpha")
    hear(bed, "beta")
    assert not bed.domains.services.take()


def begin_from_memory(bed: Bed) -> None:
    """The next agent, before it heard of anybody."""
    bed.state = bed.sink = AgentState("alpha", bed.propagation)
    bed.state.admit_peers()
    bed.state.authorize(Authority(name="beta"))
    bed.restart()
    bed.own = bed.reader("alpha", State.STALE)
    bed.connect("beta", State.STALE)
    bed.domains.greet(bed.own, bed.peers)  # type: ignore[arg-type]
    bed.add_node("alpha", 1)
    bed.add_node("beta", 2)


def hear(bed: Bed, cluster: str) -> None:
    reader = bed.own if cluster == "alpha" else bed.peers.readers[cluster]
    reader.brain.session = reader.session.enter(State.FRESH, 1.0)


async def test_backends_go_with_a_service_that_is_known_to_have_none_in_another_cluster(bed: Bed) -> None:
    """While another peer is waited for: of its own cluster nobody is."""
    served_by_both(bed)
    await bed.step()
    begin_without_beta(bed)
    bed.connect("gamma", State.CONNECTING).brain.config = ClusterConfig(id=3)
    await bed.adopt()
    bed.add_web("10.1.1.5")
    await bed.step()
    assert bed.served() == ["5"]


def served_by_both(bed: Bed) -> None:
    bed.connect("beta")
    bed.add_node("alpha", 1)
    bed.add_node("beta", 2)
    bed.add_web("10.1.1.5")
    bed.add_remote_web("beta", "10.2.2.7")


def begin_without_beta(bed: Bed) -> None:
    """The next agent, with nothing of what the one before had kept of beta."""
    bed.state.drain("beta")
    bed.restart()


async def test_what_is_taken_back_goes_at_once_also_while_a_peer_is_silent(bed: Bed) -> None:
    bed.connect("beta", State.STALE)
    bed.add_web("10.1.1.5")
    await bed.step()
    assert bed.served() == ["5"]
    bed.sink.remove("alpha", "local_services", ("n", "web"), 0)
    await bed.step()
    assert not bed.tables["services"].held


async def test_a_silent_peer_holds_up_pruning_for_so_long_only_and_the_own_cluster_for_ever(
    bed: Bed, monkeypatch: pytest.MonkeyPatch
) -> None:
    bed.tables["ipcache"].held[parse("10.2.1.9")] = object()
    await bed.adopt()
    bed.now += domains.SYNC_TIMEOUT + 1.0
    bed.connect("beta", State.CONNECTING)
    bed.own = bed.reader("alpha", State.CONNECTING)
    await bed.step()
    assert bed.tables["ipcache"].held
    bed.own = bed.reader("alpha")
    await bed.step()
    assert not bed.tables["ipcache"].held


async def test_a_restart_in_the_middle_changes_nothing_that_is_still_wanted(bed: Bed) -> None:
    bed.add_node("alpha", 1)
    bed.add_node("beta", 2)
    bed.add_web("10.1.1.5")
    bed.add_remote_web("beta", "10.2.2.6")
    await bed.step()
    held = {name: dict(table.held) for name, table in bed.tables.items()}
    bed.journal.clear()
    bed.restart()
    for view in list(bed.state.views):
        for kind in ("nodes", "services", "local_services"):
            for name, value in list(bed.state.views[view].table(kind).items()):
                bed.state.remove(view, kind, name)
                bed.state.put(view, kind, name, value)
    await bed.adopt()
    await bed.step()
    assert bed.journal == []
    assert {name: dict(table.held) for name, table in bed.tables.items()} == held


async def test_a_service_keeps_its_backends_elsewhere_while_their_cluster_is_still_to_be_restored(bed: Bed) -> None:
    bed.add_node("alpha", 1)
    bed.add_node("beta", 2)
    bed.add_web()
    bed.add_remote_web("beta", "10.2.2.6")
    await bed.step()
    kept = bed.state.views["beta"].services[("n", "web")]
    bed.state.drain("beta")
    bed.restart()
    bed.peers.looked.clear()
    running = await bed.running()
    await until(lambda: bed.domains.network.ended)
    for _ in range(10):
        await asyncio.sleep(0)
    assert bed.served() == ["6"]
    bed.add_node("beta", 2)
    bed.say("beta", "services", ("n", "web"), kept)
    bed.peers.looked.set()
    await until(lambda: bed.domains.services.ended)
    assert bed.served() == ["6"]
    running.cancel()


async def test_an_agent_that_cannot_attach_to_sockets_ends_and_says_what_to_do(
    bed: Bed, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(domains, "cgroup2_root", lambda: None)
    with pytest.RaisesGroup(pytest.RaisesExc(Refused, match="mount -t cgroup2")):
        async with asyncio.timeout(20):
            await (await bed.running())
    assert bed.domains.ready_at is None


async def test_a_cluster_that_is_listed_is_heard_of_at_once(bed: Bed) -> None:
    """No look at it by the clock: what waits is told."""
    beta = bed.connect("beta", State.SYNCING)
    running = await bed.running()
    await until(lambda: bed.attached)
    beta.brain.session = Session(state=State.FRESH)
    bed.peers.on_complete()
    for _ in range(200):
        await asyncio.sleep(0)
    assert bed.domains.ready_at is not None
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)


# -- the underlay -----------------------------------------------------------------------------------------------------


async def test_services_go_on_while_the_underlay_cannot_be_made(bed: Bed) -> None:
    bed.underlay.fault = Unavailable("no interface has this node's address 192.0.2.1")
    bed.add_node("alpha", 1)
    bed.add_node("beta", 2)
    bed.add_web("10.1.1.5")
    await bed.step()
    assert bed.served() == ["5"]
    assert "192.0.2.1" in bed.domains.tunnels.error
    assert not bed.domains.tunnels.prepared.is_set()
    bed.underlay.fault = None
    await bed.step()
    assert bed.domains.tunnels.error == ""
    assert bed.domains.tunnels.prepared.is_set()
    assert list(bed.device.states) == [numbered_key(2)]


async def test_an_agent_under_another_machines_name_makes_no_way_to_any_node_and_takes_none_away(bed: Bed) -> None:
    bed.add_node("alpha", 1)
    bed.add_node("beta", 2)
    await bed.step()
    routes = bed.tables["routes"].held
    before = dict(routes)
    again = Bed()
    again.tables, again.device, again.underlay = bed.tables, bed.device, bed.underlay
    again.underlay.elsewhere = Unavailable("no interface has this node's address 192.0.2.1")
    again.tables["ipcache"].held[parse("10.2.1.9")] = object()
    again.restart()
    again.add_node("alpha", 1)
    again.add_node("beta", 3)
    running = await again.running()
    await until(lambda: not again.tables["ipcache"].held and "192.0.2.1" in again.domains.tunnels.error)
    assert (routes, list(again.device.states)) == (before, [numbered_key(2)])
    assert before
    assert not again.domains.note_ready()
    again.underlay.elsewhere = None
    again.domains.tunnels.look_after()
    await until(lambda: not routes.keys() & before.keys())
    await until(lambda: routes and list(again.device.states) == [numbered_key(3)])
    await until(again.domains.note_ready)
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)


async def test_without_a_node_object_services_work_and_the_error_names_the_node(bed: Bed) -> None:
    bed.add_node("beta", 2)
    bed.add_web("10.1.1.5")
    await bed.step()
    assert bed.served() == ["5"]
    assert bed.domains.tunnels.error == "Node n1 is not in cluster alpha: make it one, or name another with --node"
    bed.add_node("alpha", 1)
    await bed.step()
    assert bed.domains.tunnels.error == ""


async def test_a_node_that_changes_is_set_up_again(bed: Bed) -> None:
    bed.add_node("alpha", 1)
    await bed.step()
    bed.add_node("beta", 2)
    await bed.step()
    assert len(bed.underlay.applied) == 1
    bed.add_node("alpha", 1, pod_cidrs=(parse_prefix("10.1.77.0/24"),))
    await bed.step()
    assert [prefix_text(*node.pod_cidrs) for node in bed.underlay.applied] == ["10.1.1.0/24", "10.1.77.0/24"]


async def test_a_device_that_dies_is_made_again_with_its_peers(bed: Bed, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tunnels, "_BREATH", 0.01)
    bed.add_node("alpha", 1)
    bed.add_node("beta", 2)
    async with asyncio.timeout(20):
        running = await bed.running()
        await until(lambda: bed.device.states)
        for _ in range(2):
            bed.device.die()
            await until(lambda: bed.device.there and numbered_key(2) in bed.device.states)
            assert not running.done()
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)


async def test_looking_after_the_device_may_fail(bed: Bed, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tunnels, "_BREATH", 0.01)
    bed.add_node("alpha", 1)
    bed.device.fail = Unavailable("look up device: no buffer space")
    running = await bed.running()
    await until(lambda: bed.device.fail is None or running.done())
    bed.add_node("beta", 2)
    await until(lambda: bed.device.states or running.done())
    assert not running.done()
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)


# -- what is said by others -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("address", ["10.2.0.0/16", "fd00::/64"])
async def test_an_endpoint_that_is_no_single_address_is_passed_over(bed: Bed, address: str) -> None:
    prefix = parse_prefix(address)
    bed.add_node("alpha", 1)
    bed.add_node("beta", 2)
    bed.say("beta", "endpoints", prefix, Endpoint(ip=prefix.address, prefix_length=prefix.length, identity=2))
    bed.say("beta", "endpoints", parse("10.2.2.9"), Endpoint(ip=parse("10.2.2.9"), identity=131073))
    await bed.step()
    assert list(bed.tables["ipcache"].held) == [parse("10.2.2.9")]


@pytest.mark.parametrize("address", ["0.0.0.0", "224.0.0.1", "255.255.255.255", "127.0.0.1"])
async def test_a_peers_node_at_no_ones_address_keeps_nothing_else_from_being_applied(bed: Bed, address: str) -> None:
    bed.connect("evil")
    bed.add_node("alpha", 1)
    bed.add_node("beta", 2)
    bed.add_node("evil", 3, addresses=(NodeAddress(type="InternalIP", ip=parse(address)),))
    await bed.step()
    assert list(bed.device.states) == [numbered_key(2)]
    assert bed.domains.ready_at is not None
    assert not any(tracker.problems for tracker in bed.domains.trackers)


async def test_a_route_that_cannot_be_written_does_not_keep_removed_nodes_connected(bed: Bed) -> None:
    """The administrator has a route of his own at one pod CIDR. Another cluster is disconnected all the same."""
    bed.add_node("alpha", 1)
    bed.add_node("beta", 2)
    bed.add_node("gamma", 3, cluster_id=3)
    bed.tables["routes"].refuse.add(RouteKey(parse_prefix("10.2.2.0/24"), 0))
    await bed.step()
    assert numbered_key(3) in bed.device.states
    bed.sink.drain("gamma")
    await bed.step()
    assert numbered_key(3) not in bed.device.states


async def test_this_nodes_own_node_may_be_refused_and_that_is_said(bed: Bed) -> None:
    bed.add_node("beta", 2, pod_cidrs=(parse_prefix("10.1.0.0/16"),))
    bed.add_node("alpha", 1)
    await bed.step()
    assert "Node n1 is refused: pod CIDR 10.1.1.0/24 overlaps 10.1.0.0/16 of node n2 of cluster beta" in (
        bed.domains.tunnels.error
    )


@pytest.mark.parametrize("cidr", ["10.1.1.1/32", "10.1.1.0/31"])
async def test_a_pod_cidr_with_hardly_an_address_ends_nothing(bed: Bed, cidr: str) -> None:
    bed.add_node("alpha", 1, pod_cidrs=(parse_prefix(cidr),))
    bed.add_node("beta", 2)
    bed.add_web("10.1.1.5")
    await bed.step()
    assert bed.served() == ["5"]


# -- propagation ------------------------------------------------------------------------------------------------------


def stamp(bed: Bed, revision: int) -> None:
    bed.sink.put("beta", "stamps", "services", {("n", "web"): Stamp(observed=1, published=2)}, revision)


async def test_a_change_counts_once_it_is_in_the_maps(bed: Bed) -> None:
    bed.add_node("alpha", 1)
    bed.add_web()
    bed.add_remote_web("beta", "10.2.2.6", revision=7)
    stamp(bed, 7)
    assert not bed.propagation.recent
    await bed.step()
    assert len(bed.propagation.recent) == 1


async def test_a_change_that_could_not_be_applied_does_not_count(bed: Bed) -> None:
    bed.add_node("alpha", 1)
    bed.add_node("beta", 2)
    bed.add_web()
    bed.tables["backends"].full = 0
    bed.add_remote_web("beta", "10.2.2.6", revision=7)
    stamp(bed, 7)
    await bed.step()
    assert not bed.propagation.recent


async def test_a_change_that_could_not_be_planned_does_not_count_until_it_is(bed: Bed) -> None:
    bed.add_node("alpha", 1)
    bed.add_node("beta", 2)
    bed.add_web()
    services, update = bed.domains.services, bed.domains.services.planner.update

    def refuse(*_: object) -> None:
        raise Unavailable("no room")

    services.planner.update = refuse  # type: ignore[method-assign]
    services.left_out["n", "web"] = "of before"
    bed.add_remote_web("beta", "10.2.2.6", revision=7)
    stamp(bed, 7)
    await bed.step()
    assert not bed.propagation.recent
    assert not services.left_out, "and what is said of it is of now"
    services.planner.update = update  # type: ignore[method-assign]
    bed.state.release("beta")
    await bed.step()
    assert len(bed.propagation.recent) == 1


# -- full tables ------------------------------------------------------------------------------------------------------


async def test_a_full_map_is_an_error_that_goes_when_there_is_room(bed: Bed) -> None:
    bed.add_node("alpha", 1)
    bed.tables["backends"].full = 1
    bed.add_web("10.1.1.5", "10.1.1.6")
    await bed.step()
    assert bed.domains.services.tables.backends.error
    assert bed.domains.ready_at is None
    bed.add_web("10.1.1.5")
    await bed.step()
    await bed.step()
    assert bed.served() == ["5"]
    assert bed.domains.services.tables.backends.error is None
    assert bed.domains.ready_at is not None


async def test_what_somebody_else_changed_is_counted_and_repaired(bed: Bed) -> None:
    bed.add_node("alpha", 1)
    bed.add_web("10.1.1.5")
    await bed.step()
    bed.tables["backends"].held.clear()
    await bed.domains.services.audit()
    await bed.step()
    assert bed.served() == ["5"]
    assert bed.domains.services.tables.backends.drift == 1


async def test_routes_that_go_with_their_device_during_an_audit_come_back(bed: Bed) -> None:
    routes = bed.tables["routes"]

    async def pages() -> AsyncIterator[Mapping[object, object]]:
        """What was read is handed out one by one. After the first the device is new, and its routes are gone."""
        for number, (key, value) in enumerate(list(routes.held.items())):
            yield {key: value}
            if number == 0:
                routes.refuse = set(routes.held)
                routes.held.clear()
                bed.domains.network.lose_routes()

    for cluster, number in (("alpha", 1), ("beta", 2), ("beta", 3)):
        bed.add_node(cluster, number)
    await bed.step()
    before = dict(routes.held)
    routes.pages = pages
    await bed.domains.network.audit()
    routes.refuse.clear()
    await bed.step()
    assert len(before) > 2
    assert routes.held == before
    assert bed.domains.network.routes.drift == 0


# -- what hangs, and what cannot be planned ---------------------------------------------------------------------------


async def test_a_device_that_hangs_for_ever_keeps_no_service_from_being_changed(bed: Bed) -> None:
    bed.add_node("alpha", 1)
    bed.add_node("beta", 2)
    bed.add_web("10.1.1.5")
    running = await bed.running()
    await until(lambda: bed.domains.ready_at)
    bed.device.hang()
    bed.add_node("beta", 3)
    await until(lambda: bed.device.hanging)
    bed.add_web("10.1.1.5", "10.1.1.6")
    bed.say("alpha", "endpoints", parse("10.1.1.6"), Endpoint(ip=parse("10.1.1.6"), identity=70000))
    await until(lambda: bed.served() == ["5", "6"])
    await until(lambda: bed.tables["ipcache"].held)
    assert RouteKey(parse_prefix("10.2.3.0/24"), 0) in bed.tables["routes"].held
    assert bed.device.hanging, "and it is still the first call that hangs"
    assert numbered_key(3) not in bed.device.states
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)


async def test_a_device_that_hangs_when_the_agent_starts_keeps_no_service_from_being_programmed(bed: Bed) -> None:
    bed.device.hang()
    bed.add_node("alpha", 1)
    bed.add_web("10.1.1.5")
    running = await bed.running()
    await until(lambda: bed.served() == ["5"])
    await until(lambda: bed.attached)
    assert bed.device.hanging
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)


async def test_what_kills_the_planning_of_one_service_kills_neither_this_agent_nor_the_next(bed: Bed) -> None:
    bed.add_node("alpha", 1)
    bed.add_web("10.1.1.5")
    local = bed.state.views["alpha"].local_services[("n", "web")]
    poisoned = replace(local, service=replace(local.service, name="bad", frontends={parse("10.96.0.2"): None}))
    bed.say("alpha", "local_services", ("n", "bad"), poisoned)
    for _ in range(2):
        await bed.step()
        assert bed.served() == ["5"]
        assert bed.domains.ready_at is not None
        assert [(*said.split(": ")[:2], bug) for said, bug in bed.domains.problems()] == [("services", "n/bad", True)]
        bed.restart()
        for name, value in list(bed.state.views["alpha"].local_services.items()):
            bed.state.remove("alpha", "local_services", name)
            bed.state.put("alpha", "local_services", name, value)
        await bed.adopt()


async def test_what_kills_the_decision_on_one_node_kills_neither_this_agent_nor_what_it_serves(
    bed: Bed, monkeypatch: pytest.MonkeyPatch
) -> None:
    judge = Holdings.object

    def judge_unless_poison(self: Holdings, holder: Holder, wanted: Wanted, kept: Wanted) -> Objection | None:
        if holder.node == "n66" and self.own_is_known:
            raise ZeroDivisionError("a bug of ours")
        return judge(self, holder, wanted, kept)

    monkeypatch.setattr(Holdings, "object", judge_unless_poison)
    bed.state = bed.sink = AgentState("alpha", bed.propagation)
    bed.restart()
    bed.connect("beta")
    bed.add_node("alpha", 1)
    bed.add_web("10.1.1.5")
    for number in (2, 3, 66, 4):
        bed.add_node("beta", number)
    running = await bed.running()
    await until(lambda: running.done() or bed.domains.ready_at)
    assert not running.done()
    assert bed.served() == ["5"]
    assert {node.name for node in bed.state.admitted_nodes()} == {"n1", "n2", "n3", "n4"}
    assert set(bed.state.refusals("beta").named(9)) == {"nodes/n66"}
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)


# -- the two phases of the start --------------------------------------------------------------------------------------


async def test_sockets_get_the_programs_when_the_maps_are_filled_and_not_before(bed: Bed) -> None:
    bed.own = bed.reader("alpha", State.SYNCING)
    bed.add_node("alpha", 1)
    bed.add_web("10.1.1.5")
    served: list[list[str]] = []
    bed.datapath.attach_sockets = lambda cgroup: (served.append(bed.served()), bed.attached.append(cgroup))
    running = await bed.running()
    await until(lambda: bed.served() == ["5"])
    assert not bed.attached, "of the own cluster there may be more to come"
    bed.add_web("10.1.1.5", "10.1.1.6")
    bed.own.brain.session = Session(state=State.FRESH)
    await until(lambda: bed.attached)
    assert served == [["5", "6"]]
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)


async def test_programs_of_another_layout_go_on_until_every_cluster_is_known(bed: Bed) -> None:
    bed.datapath.has_predecessor = True
    bed.add_node("alpha", 1)
    bed.add_node("beta", 2)
    bed.add_web("10.1.1.5")
    beta = bed.connect("beta", State.SYNCING)
    running = await bed.running()
    await until(lambda: bed.served() == ["5"])
    for _ in range(3):
        await asyncio.sleep(0.01)
        assert not bed.attached, "beta's backends are served by the programs before"
    bed.add_remote_web("beta", "10.2.2.6")
    beta.brain.session = Session(state=State.FRESH)
    await until(lambda: bed.attached)
    assert bed.served() == ["5", "6"]
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)


# -- pods attached here -----------------------------------------------------------------------------------------------


async def test_a_pod_is_known_from_its_add_on_until_its_delete(bed: Bed) -> None:
    ip = parse("10.1.1.7")
    entries = bed.tables["ipcache"].held
    pod = AttachedPod(container_id="c", ifname="eth0", addresses=(ip,), namespace="n", name="p")
    bed.add_node("alpha", 1)
    bed.domains.attached_pods.attached(pod)
    await bed.step()
    assert list(entries.values()) == [pack(IpcacheValue(INIT))]
    bed.say("alpha", "endpoints", ip, Endpoint(ip=ip, identity=70000, namespace="n", pod_name="p"))
    await bed.step()
    assert list(entries.values()) == [pack(IpcacheValue(70000))]
    bed.sink.remove("alpha", "endpoints", ip, 0)
    await bed.step()
    assert list(entries.values()) == [pack(IpcacheValue(INIT))]
    bed.domains.attached_pods.detached("c", "eth0")
    await bed.step()
    assert not entries


async def test_what_etcd_says_of_the_pod_before_is_not_believed_of_the_one_that_has_its_address_now(bed: Bed) -> None:
    ip = parse("10.1.1.7")
    bed.add_node("alpha", 1)
    bed.say("alpha", "endpoints", ip, Endpoint(ip=ip, identity=70000, namespace="n", pod_name="old"))
    pod = AttachedPod(container_id="c", ifname="eth0", addresses=(ip,), namespace="n", name="new")
    bed.domains.attached_pods.attached(pod)
    await bed.step()
    assert list(bed.tables["ipcache"].held.values()) == [pack(IpcacheValue(INIT))]


async def test_a_service_waits_for_the_way_to_its_backends_and_for_one_that_hangs_only_once(bed: Bed) -> None:
    bed.add_node("alpha", 1)
    bed.add_web("10.1.1.5")
    running = await bed.running()
    await until(lambda: bed.domains.ready_at)
    order: list[str] = []
    bed.domains.tunnels.on_step = lambda: order.append("tunnels")
    bed.domains.services.on_step = lambda: order.append("services") if bed.served() == ["5", "6"] else None
    bed.add_node("beta", 2)
    bed.add_web("10.1.1.5", "10.1.1.6")
    await until(lambda: "services" in order)
    assert order[0] == "tunnels"
    bed.device.hang()
    bed.add_node("beta", 3)
    await until(lambda: bed.device.hanging)
    waits = 0
    for number in range(7, 12):
        bed.add_web("10.1.1.5", f"10.1.1.{number}")
        waits += bed.domains.tunnels in bed.domains.services.is_to_wait_for()
        await until(lambda number=number: bed.served() == sorted(["5", str(number)]))
    assert waits == 1
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)


class Skipping(selectors.DefaultSelector):
    """Whoever waits for a time has waited: what it would have been is `slept`."""

    slept = 0.0

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        self.slept += timeout or 0.0
        return super().select(0 if timeout else timeout)


def test_a_device_that_hangs_delays_a_service_by_50_ms_at_most() -> None:
    selector = Skipping()
    with asyncio.Runner(loop_factory=lambda: asyncio.SelectorEventLoop(selector)) as runner:
        loop = runner.get_loop()
        loop.time = lambda: selector.slept  # type: ignore[method-assign]

        async def wait() -> float:
            bed = Bed()
            bed.domains.tunnels.wake()
            bed.add_web("10.1.1.5")
            began = loop.time()
            bed.domains.services.factors.set(b"", b"")
            await bed.domains.services.prepare()
            return loop.time() - began

        assert 0 < runner.run(wait()) <= 0.05


async def test_a_change_wakes_only_those_whom_it_concerns(bed: Bed) -> None:
    bed.add_node("alpha", 1)
    await bed.step()
    network, addresses, services = bed.domains.network, bed.domains.addresses, bed.domains.services

    def woken() -> list[str]:
        return [each.name for each in (network, addresses, services) if not each.idle.is_set()]

    bed.add_web("10.1.1.5")
    assert woken() == ["services"]
    await bed.step()
    bed.say("alpha", "endpoints", parse("10.1.1.5"), Endpoint(ip=parse("10.1.1.5"), identity=65537))
    assert woken() == ["addresses", "services"]
    await bed.step()
    bed.add_node("beta", 2)
    assert woken() == ["network", "services"]


async def test_a_clusters_factor_is_one_entry_and_repaired_as_any_other(bed: Bed) -> None:
    await bed.adopt()
    await bed.step()
    assert bed.tables["clusters"].held == {pack(Number(0)): pack_factors({})}
    bed.domains.services.set_factors({2: 0.25})
    await bed.step()
    assert bed.tables["clusters"].held == {pack(Number(0)): pack_factors({2: 0.25})}
    bed.tables["clusters"].held.clear()
    await bed.domains.services.audit()
    await bed.step()
    assert bed.tables["clusters"].held == {pack(Number(0)): pack_factors({2: 0.25})}


async def test_an_evicted_cluster_is_out_before_the_programs_hear_that_it_is_evicted(bed: Bed) -> None:
    await bed.adopt()
    await bed.step()
    first = pack(Number(0))
    assert bed.tables["evicted"].held == {first: pack_evicted(())}
    bed.journal.clear()
    bed.domains.services.set_factors({2: 0.0, 3: 0.0, 4: 0.5}, evicted={2, 4, 5})
    await bed.step()
    assert [each for each in bed.journal if each.startswith(("clusters", "evicted"))] == ["clusters +1", "evicted +1"]
    assert bed.tables["clusters"].held == {first: pack_factors({2: 0.0, 3: 0.0, 4: 0.5})}
    assert bed.tables["evicted"].held == {first: pack_evicted({2})}, "only who is out altogether is"
    bed.domains.services.set_factors({})
    await bed.step()
    assert bed.tables["evicted"].held == {first: pack_evicted(())}


async def test_who_may_not_ask_any_more_is_out_while_a_silent_peer_holds_up_all_other_deletions(bed: Bed) -> None:
    def balanced(*ranges: str) -> None:
        outside = Outside(load_balancer_ips=(parse("192.0.2.99"),), source_ranges=tuple(map(parse_prefix, ranges)))
        before = bed.state.views["alpha"].local_services["n", "web"]
        bed.say("alpha", "local_services", ("n", "web"), replace(before, outside=outside))

    bed.add_web("10.1.1.5")
    balanced("10.0.0.0/8", "198.51.100.0/24")
    await bed.adopt()
    await bed.step()
    assert len(bed.tables["source_ranges"].held) == 2
    bed.connect("beta", State.CONNECTING)
    bed.restart()
    balanced("10.0.0.0/8")
    await bed.adopt()
    await bed.step()
    assert not bed.domains.knows_all()
    assert len(bed.tables["source_ranges"].held) == 1


async def test_nodes_that_wait_are_decided_on_in_turns_and_nothing_waits_for_them(bed: Bed) -> None:
    bed.state.stand_on(Ground([Place(parse_prefix("10.64.0.0/10"), "the network on docker0")]))
    for n in range(500):
        cidrs = (parse_prefix(f"10.{64 + n // 250}.{n % 250}.0/24"),)
        bed.state.put("beta", "nodes", f"n{n}", Node(cluster="beta", cluster_id=2, name=f"n{n}", pod_cidrs=cidrs))
    await bed.step()
    bed.state.stand_on(Ground())
    judging = asyncio.create_task(bed.domains._judge())
    standing = [sum(1 for _ in bed.state.admitted_nodes())]

    async def watch() -> None:
        while True:
            standing.append(sum(1 for _ in bed.state.admitted_nodes()))
            await asyncio.sleep(0)

    watching = asyncio.create_task(watch())
    await bed.domains.services.step()
    assert bed.state.is_behind, "a step does not wait"
    while bed.state.is_behind:
        await asyncio.sleep(0)
    watching.cancel()
    judging.cancel()
    standing.append(sum(1 for _ in bed.state.admitted_nodes()))
    assert standing[0] > 0
    assert standing[-1] == 500
    assert max(after - before for before, after in pairwise(standing)) < 100
