"""Services for which it matters which node this is: its addresses, its zone, what it lives by; and over a restart."""

from __future__ import annotations

import pytest
from fake_kernel import NODE, VIP, Bed
from msgspec.structs import replace
from service_maps import Node as Maps

from agent.plan.services import ServiceTrackers
from clustermesh.address import Address, parse, single, text
from clustermesh.mesh.authority import Ground, Place
from clustermesh.mesh.resolve import Frontend, Scope
from clustermesh.mesh.session import State
from clustermesh.model import BackendDetail, HostPorts, LocalService, NodeAddress, Outside, Port, Protocol, Service

TCP, UDP = Protocol.TCP, Protocol.UDP
PORTS = {"http": Port(protocol=TCP, port=80)}
TARGETS = {"http": Port(protocol=TCP, port=8080)}
HERE, THERE = parse("10.1.1.5"), parse("10.1.2.6")
LB = parse("198.51.100.1")
Entry = tuple[Address, int, Protocol]


@pytest.fixture
def bed() -> Bed:
    return Bed()


def say(bed: Bed, *, port: int = 30080, protocol: Protocol = TCP, **more: object) -> None:
    """n/web of the own cluster, with a backend on this node and one on another."""
    ports = {"http": Port(protocol=protocol, port=80)}
    targets = {"http": Port(protocol=protocol, port=8080)}
    outside = Outside(node_ports={"http": Port(protocol=protocol, port=port)}, load_balancer_ips=(LB,))
    service = Service(
        cluster="alpha",
        cluster_id=1,
        namespace="n",
        name="web",
        frontends={VIP: ports},
        backends={HERE: targets, THERE: targets},
    )
    details = {HERE: BackendDetail(node=NODE, for_zones=("a",)), THERE: BackendDetail(node="n2", for_zones=("b",))}
    fields = {"service": service, "outside": outside, "details": details} | more
    bed.say("alpha", "local_services", ("n", "web"), LocalService(**fields))  # type: ignore[arg-type]


def called_at(bed: Bed) -> set[str]:
    return {f"{text(key[:16])}:{int.from_bytes(key[16:18])}" for key in bed.tables["services"].held}  # type: ignore[arg-type]


def answers(bed: Bed, address: Address, port: int, scope: Scope = Scope.ANY) -> set[str]:
    found = Maps(bed.tables).chances(Frontend(address, port, TCP, scope))  # type: ignore[arg-type]
    return {at for _, at in found}


def kernel(bed: Bed) -> dict[str, dict[object, object]]:
    return {name: dict(bed.tables[name].held) for name in ServiceTrackers._fields}


async def test_node_ports_are_at_the_addresses_that_the_own_node_has_now(bed: Bed) -> None:
    own = bed.add_node("alpha", 1)
    say(bed)
    await bed.step()
    everywhere = {f"{text(VIP)}:80", "198.51.100.1:80", "127.0.0.1:30080"}
    assert called_at(bed) == everywhere | {"192.0.2.1:30080"}
    more = NodeAddress(type="ExternalIP", ip=parse("203.0.113.9"))
    bed.say("alpha", "nodes", NODE, replace(own, addresses=(*own.addresses, more)))
    await bed.step()
    assert called_at(bed) == everywhere | {"192.0.2.1:30080", "203.0.113.9:30080"}
    bed.sink.remove("alpha", "nodes", NODE, 0)
    await bed.step()
    assert called_at(bed) == everywhere | {"192.0.2.1:30080", "203.0.113.9:30080"}, "its Node is made anew, perhaps"
    bed.say("alpha", "nodes", NODE, own)
    await bed.step()
    assert called_at(bed) == everywhere | {"192.0.2.1:30080"}


async def test_hints_follow_the_zone_of_the_own_node(bed: Bed) -> None:
    say(bed)
    for zone, found in (("a", {HERE}), ("b", {THERE}), ("c", {HERE, THERE}), ("a", {HERE})):
        bed.add_node("alpha", 1, labels={"topology.kubernetes.io/zone": zone})
        await bed.step()
        assert answers(bed, VIP, 80) == {f"{text(each)}:8080" for each in found}


@pytest.mark.parametrize(("protocol", "port"), [(UDP, 51871), (TCP, 9962)])
async def test_a_node_port_that_this_agent_has_itself_is_left_out_and_said(
    bed: Bed, protocol: Protocol, port: int
) -> None:
    bed.add_node("alpha", 1)
    say(bed, port=port, protocol=protocol)
    await bed.step()
    assert called_at(bed) == {f"{text(VIP)}:80", "198.51.100.1:80"}
    assert f"at port {port}, and has to be reached itself" in bed.domains.services.left_out["n", "web"]


async def test_a_pod_has_host_ports_at_addresses_of_its_own_node_alone(bed: Bed) -> None:
    """Who may make a Pod would else answer for whatever address it names."""
    own = bed.add_node("alpha", 1)
    ports = {"": Port(protocol=TCP, port=80)}
    service = Service(
        cluster="alpha",
        cluster_id=1,
        namespace="n",
        name="p.host-ports",
        backends={HERE: {"": Port(protocol=TCP, port=8080)}},
        shared=False,
    )
    for host_ip, served in (
        *((text(each.ip), True) for each in own.addresses),
        ("8.8.8.8", False),
        ("192.0.2.2", False),
        (text(THERE), False),
        (text(VIP), False),
    ):
        said = HostPorts(node=NODE, ports=ports, addresses={"": parse(host_ip)})
        pod = LocalService(service=service, host_ports=said)
        bed.say("alpha", "local_services", ("n", "p.host-ports"), pod)
        await bed.step()
        assert called_at(bed) == ({f"{host_ip}:80"} if served else set()), host_ip
        why = bed.domains.services.left_out.get(("n", "p.host-ports"), "")
        assert bool(why) is not served
        assert served or why.startswith(f"{host_ip} is no address of this Node, which `hostIP` must be (192.0.2.1")


async def test_a_load_balancers_address_that_a_node_has_is_served_but_where_its_etcd_is(bed: Bed) -> None:
    bed.add_node("alpha", 1)
    bed.add_node("alpha", 2, addresses=(NodeAddress(type="InternalIP", ip=LB),))
    say(bed)
    await bed.step()
    assert answers(bed, LB, 80)
    for port, is_there in ((2379, True), (80, False)):
        etcd = Place(single(LB), "the etcd of alpha", lifeline=True, cluster="alpha", ports=(port,))
        bed.state.stand_on(Ground([etcd]))
        await bed.step()
        assert (f"{text(LB)}:80" in called_at(bed)) is is_there
        assert bool(bed.domains.services.left_out) is not is_there
    bed.state.stand_on(Ground([]))
    await bed.step()
    assert f"{text(LB)}:80" in called_at(bed)


async def test_a_cluster_ip_that_a_node_has_is_left_out_as_a_whole(bed: Bed) -> None:
    bed.add_node("alpha", 1)
    bed.add_node("alpha", 2, addresses=(NodeAddress(type="InternalIP", ip=VIP),))
    say(bed)
    await bed.step()
    assert f"{text(VIP)}:80" not in called_at(bed)


@pytest.mark.parametrize("outside_too", [True, False])
async def test_what_the_kernel_has_of_a_policy_local_stays_while_what_was_kept_is_older(
    bed: Bed, outside_too: bool
) -> None:
    """The agent before knew of another backend on this node."""
    bed.add_node("alpha", 1)
    say(bed, local_only=True, outside=Outside(load_balancer_ips=(LB,) if outside_too else (), local_only=True))
    await bed.step()
    held = kernel(bed)
    bed.restart()
    bed.own = bed.reader("alpha", State.STALE)
    kept = bed.state.views["alpha"].local_services["n", "web"]
    older = replace(kept.service, backends={parse("10.1.1.9"): TARGETS})
    bed.say("alpha", "local_services", ("n", "web"), replace(kept, service=older, details={}))
    await bed.adopt()
    await bed.step()
    assert kernel(bed) == held
    assert answers(bed, VIP, 80) == {"10.1.1.5:8080"}


async def test_a_restart_changes_no_entry_of_a_service_that_is_called_from_outside(bed: Bed) -> None:
    bed.add_node("alpha", 1)
    say(bed, local_only=True)
    await bed.step()
    held = kernel(bed)
    bed.journal.clear()
    bed.restart()
    kept = bed.state.views["alpha"].local_services["n", "web"]
    bed.sink.remove("alpha", "local_services", ("n", "web"), 0)
    bed.say("alpha", "local_services", ("n", "web"), kept)
    await bed.adopt()
    await bed.step()
    assert not [line for line in bed.journal if line.split()[0] in ServiceTrackers._fields]
    assert kernel(bed) == held
