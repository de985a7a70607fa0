"""The agent's one loop, over a kernel of dictionaries: what is planned when, and what outlives what."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import pytest
from fake_kernel import Bed
from fake_wireguard import numbered_key

from agent import engine as agent_engine
from agent.bpf.layouts import AddressKey
from agent.plan.routes import RouteKey
from clustermesh.address import parse, parse_prefix, prefix_text
from clustermesh.errors import Unavailable
from clustermesh.mesh.session import State
from clustermesh.model import Endpoint, NodeAddress, Stamp


@pytest.fixture
def bed(monkeypatch: pytest.MonkeyPatch) -> Bed:
    return Bed(monkeypatch)


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
    assert bed.engine.ready_at is not None
    assert bed.engine.prepared.is_set()


async def test_backends_are_there_before_and_gone_after_what_names_them(bed: Bed) -> None:
    bed.add_node("alpha", 1)
    bed.add_node("beta", 2)
    bed.add_web("10.1.1.5")
    await bed.step()
    order = [line.split()[0] for line in bed.journal]
    assert order.index("routes") < order.index("backends") < order.index("services")
    bed.journal.clear()
    bed.sink.remove("alpha", "local_services", ("n", "web"), 0)
    bed.sink.remove("beta", "nodes", "n2", 0)
    await bed.step()
    assert [line.split()[0] for line in bed.journal] == ["services", "groups", "slots", "backends", "routes", "cidrs"]


# -- pruning ----------------------------------------------------------------------------------------------------------


async def test_nothing_is_deleted_before_the_own_clusters_first_whole_list(bed: Bed) -> None:
    bed.tables["ipcache"].held[AddressKey(parse("10.1.1.9"))] = object()
    await bed.kernel.adopt()
    for state in (State.CONNECTING, State.SYNCING):
        bed.own = bed.reader("alpha", state)
        await bed.step()
        assert bed.tables["ipcache"].held
    bed.own = bed.reader("alpha", State.FRESH)
    await bed.step()
    assert not bed.tables["ipcache"].held


async def test_nothing_is_deleted_before_the_peers_folder_was_read_and_every_peer_listed(bed: Bed) -> None:
    bed.tables["ipcache"].held[AddressKey(parse("10.2.1.9"))] = object()
    await bed.kernel.adopt()
    bed.peers.synced_once = False
    await bed.step()
    assert bed.tables["ipcache"].held
    bed.peers.synced_once = True
    bed.connect("beta", State.SYNCING)
    await bed.step()
    assert bed.tables["ipcache"].held
    assert bed.engine.ready_at is None
    bed.connect("beta", State.STALE)  # restored from disk
    await bed.step()
    assert not bed.tables["ipcache"].held


async def test_a_silent_peer_holds_up_pruning_for_so_long_only_and_the_own_cluster_for_ever(
    bed: Bed, monkeypatch: pytest.MonkeyPatch
) -> None:
    bed.tables["ipcache"].held[AddressKey(parse("10.2.1.9"))] = object()
    await bed.kernel.adopt()
    monkeypatch.setattr(agent_engine, "SYNC_TIMEOUT", -1.0)
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
    bed.new_engine()
    for view in list(bed.state.views):
        for kind in ("nodes", "services", "local_services"):
            for name, value in list(bed.state.views[view].table(kind).items()):
                bed.state.remove(view, kind, name)
                bed.state.put(view, kind, name, value)
    await bed.kernel.adopt()
    bed.engine.services.adopt()
    await bed.step()
    assert bed.journal == []
    assert {name: dict(table.held) for name, table in bed.tables.items()} == held


# -- the underlay -----------------------------------------------------------------------------------------------------


async def test_services_go_on_while_the_underlay_cannot_be_made(bed: Bed) -> None:
    bed.underlay.fault = Unavailable("no interface has this node's address 192.0.2.1")
    bed.add_node("alpha", 1)
    bed.add_node("beta", 2)
    bed.add_web("10.1.1.5")
    await bed.step()
    assert bed.served() == ["5"]
    assert "192.0.2.1" in bed.engine.underlay_error
    assert not bed.engine.prepared.is_set()
    bed.underlay.fault = None
    await bed.step()
    assert bed.engine.underlay_error == ""
    assert bed.engine.prepared.is_set()
    assert list(bed.device.states) == [numbered_key(2)]


async def test_without_a_node_object_services_work_and_the_error_names_the_node(bed: Bed) -> None:
    bed.add_node("beta", 2)
    bed.add_web("10.1.1.5")
    await bed.step()
    assert bed.served() == ["5"]
    assert bed.engine.underlay_error == "Node n1 is not in cluster alpha"
    bed.add_node("alpha", 1)
    await bed.step()
    assert bed.engine.underlay_error == ""


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
    monkeypatch.setattr(agent_engine, "_TICK", 0.01)
    bed.add_node("alpha", 1)
    bed.add_node("beta", 2)
    async with asyncio.timeout(20):
        running = asyncio.create_task(bed.engine.run(bed.own, bed.peers))  # type: ignore[arg-type]
        await until(lambda: bed.device.states)
        for _ in range(2):
            bed.device.die()
            await until(lambda: bed.device.there and numbered_key(2) in bed.device.states)
            assert not running.done()
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)


async def test_looking_after_the_device_may_fail(bed: Bed, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(agent_engine, "_TICK", 0.01)
    bed.add_node("alpha", 1)
    bed.device.fail = Unavailable("look up device: no buffer space")
    running = asyncio.create_task(bed.engine.run(bed.own, bed.peers))  # type: ignore[arg-type]
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
    assert list(bed.tables["ipcache"].held) == [AddressKey(parse("10.2.2.9"))]


@pytest.mark.parametrize("address", ["0.0.0.0", "224.0.0.1", "255.255.255.255", "127.0.0.1"])
async def test_a_peers_node_at_no_ones_address_keeps_nothing_else_from_being_applied(bed: Bed, address: str) -> None:
    bed.connect("evil")
    bed.add_node("alpha", 1)
    bed.add_node("beta", 2)
    bed.add_node("evil", 3, addresses=(NodeAddress(type="InternalIP", ip=parse(address)),))
    await bed.step()
    assert list(bed.device.states) == [numbered_key(2)]
    assert bed.engine.ready_at is not None
    assert not bed.kernel.failed


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
        bed.engine.underlay_error
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
    bed.sink.put("beta", "stamps", ("n", "web"), Stamp(observed=1, published=2), revision)


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


async def test_a_change_that_comes_while_the_device_is_made_counts_with_the_next_flush(bed: Bed) -> None:
    bed.add_node("alpha", 1)
    bed.add_node("beta", 2)
    bed.add_web()
    await bed.step()

    def arrive() -> None:
        bed.underlay.during = lambda: None
        bed.add_remote_web("beta", "10.2.2.6", revision=7)
        stamp(bed, 7)

    bed.underlay.during = arrive
    bed.add_node("alpha", 1, labels={"zone": "a"})
    await bed.step()
    assert bed.served() == []
    assert not bed.propagation.recent, "it is in no map yet"
    await bed.step()
    assert bed.served() == ["6"]
    assert len(bed.propagation.recent) == 1


# -- full tables ------------------------------------------------------------------------------------------------------


async def test_a_full_map_is_an_error_that_goes_when_there_is_room(bed: Bed) -> None:
    bed.add_node("alpha", 1)
    bed.tables["backends"].full = 1
    bed.add_web("10.1.1.5", "10.1.1.6")
    await bed.step()
    assert bed.kernel.services.backends.error
    assert bed.engine.ready_at is None
    bed.add_web("10.1.1.5")
    await bed.step()
    await bed.step()
    assert bed.served() == ["5"]
    assert bed.kernel.services.backends.error is None
    assert bed.engine.ready_at is not None


async def test_what_somebody_else_changed_is_counted_and_repaired(bed: Bed) -> None:
    bed.add_node("alpha", 1)
    bed.add_web("10.1.1.5")
    await bed.step()
    bed.tables["backends"].held.clear()
    await bed.engine._audit()
    await bed.step()
    assert bed.served() == ["5"]
    assert bed.kernel.services.backends.drift == 1
