"""Who may answer whom: random services of every kind, policy, state and hint, decided one call and one backend at a
time, against the maps that are planned of them, looked up as the programs look them up."""

from __future__ import annotations

from collections.abc import Iterator
from fractions import Fraction
from typing import NamedTuple

from hypothesis import given
from hypothesis import strategies as st
from service_maps import Node

from clustermesh.address import Address, is_ipv4, parse, parse_prefix, prefix_text, text
from clustermesh.mesh.answering import NOWHERE, Here
from clustermesh.mesh.resolve import Frontend, Kind, Scope, ServiceFlag, resolve
from clustermesh.model import (
    Affinity,
    Algorithm,
    BackendDetail,
    BackendState,
    HostPorts,
    LocalService,
    Outside,
    Port,
    Protocol,
    Service,
    Zone,
)

TCP, UDP = Protocol.TCP, Protocol.UDP
NAMES = {"": (TCP, 80), "dns": (UDP, 53), "web": (TCP, 8080)}
HERE = Here(name="n1", zone="a", addresses=(parse("192.0.2.1"), parse("2001:db8::1")))
LOOPBACK = (parse("127.0.0.1"), parse("::1"))


class Called(NamedTuple):
    """Where, and by whom."""

    address: Address
    port: int
    protocol: Protocol
    outside: bool


class Answered(NamedTuple):
    """By each backend with this chance; what the client's address becomes, who may ask, for how long it stays."""

    chances: dict[tuple[int, str], Fraction]
    keeps_source: bool
    allowed: set[str] | None
    seconds: int
    maglev: bool


class Endpoint(NamedTuple):
    cluster: int
    address: Address
    port: int
    state: BackendState
    weight: int
    node: str
    zones: tuple[str, ...]
    nodes: tuple[str, ...]
    serves: bool


# -- the stupid twin --------------------------------------------------------------------------------------------------


def endpoints(local: LocalService, remotes: list[Service], name: str, ipv4: bool) -> Iterator[Endpoint]:
    protocol, _ = NAMES[name]
    for draining, table in ((False, local.service.backends), (True, local.draining)):
        for address, ports in table.items():
            if name in ports and ports[name].protocol == protocol and is_ipv4(address) == ipv4:
                said = local.details.get(address, BackendDetail())
                state = BackendState.TERMINATING if draining else said.state
                serves = not draining and state <= BackendState.TERMINATING
                more = said.weight, said.node, said.for_zones, said.for_nodes, serves
                yield Endpoint(1, address, ports[name].port, state, *more)
    for remote in remotes:
        for address, ports in remote.backends.items():
            if not (local.is_global and remote.shared) or name not in ports:
                continue
            if ports[name].protocol == protocol and is_ipv4(address) == ipv4:
                zones = remote.zones.get(address, Zone()).for_zones
                port = ports[name].port
                yield Endpoint(remote.cluster_id, address, port, BackendState.ACTIVE, 100, "", zones, (), True)


def among(everyone: list[Endpoint], affinity: Affinity, here: Here, local_only: bool) -> list[Endpoint]:
    """Those that may be given."""
    ready = [each for each in everyone if each.state == BackendState.ACTIVE]
    leaving = [each for each in everyone if each.state == BackendState.TERMINATING and each.serves]
    if local_only:
        for some in (ready, leaving):
            if found := [each for each in some if each.cluster == 1 and each.node and each.node == here.name]:
                return found
        return []
    own, others = ([each for each in ready + leaving if (each.cluster == 1) is mine] for mine in (True, False))
    if affinity is Affinity.LOCAL and (any(each in ready for each in own) or not others):
        ready, leaving = ([each for each in some if each.cluster == 1] for some in (ready, leaving))
    if affinity is Affinity.REMOTE and (others or not own):
        ready, leaving = ([each for each in some if each.cluster != 1] for some in (ready, leaving))
    if not ready:
        return leaving
    if here.name and all(each.nodes for each in ready) and any(here.name in each.nodes for each in ready):
        return [each for each in ready if here.name in each.nodes]
    if here.zone and all(each.zones for each in ready) and any(here.zone in each.zones for each in ready):
        return [each for each in ready if here.zone in each.zones]
    return ready


def twin(local: LocalService, remotes: list[Service], here: Here, call: Called) -> Answered | None:
    outside, frontends = local.outside, local.service.frontends
    families = {is_ipv4(each) for each in frontends}
    where = call.port, call.protocol
    of_service = {(port, protocol): name for name, (protocol, port) in NAMES.items() if name in NAMES}
    of_node = {(port.port, port.protocol): name for name, port in outside.node_ports.items()}
    used = {name for ports in frontends.values() for name in ports}
    name = of_service.get(where)
    inner = name is not None and name in used
    if call.address in frontends and inner:
        kind = Kind.CLUSTER_IP
    elif call.address in (*here.addresses, *LOOPBACK) and where in of_node and is_ipv4(call.address) in families:
        kind, name = Kind.NODE_PORT, of_node[where]
    elif call.address in outside.load_balancer_ips and inner and is_ipv4(call.address) in families:
        kind = Kind.LOAD_BALANCER
    elif call.address in outside.external_ips and inner and is_ipv4(call.address) in families:
        kind = Kind.EXTERNAL_IP
    else:
        return None
    if call.outside and kind is Kind.CLUSTER_IP:
        return None
    assert name is not None
    if kind is Kind.CLUSTER_IP:
        only_here = local.local_only
    else:
        only_here = outside.local_only and call.outside and call.address not in LOOPBACK
    everyone = list(endpoints(local, remotes, name, is_ipv4(call.address)))
    found = among(everyone, local.affinity, here, only_here)
    whole = sum(each.weight for each in found)
    allowed = None
    if kind is Kind.LOAD_BALANCER and outside.source_ranges is not None:
        allowed = {prefix_text(each) for each in outside.source_ranges}
    return Answered(
        {(each.cluster, f"{text(each.address)}:{each.port}"): Fraction(each.weight, whole) for each in found},
        only_here and kind is not Kind.CLUSTER_IP,
        allowed,
        local.affinity_seconds,
        local.algorithm is Algorithm.MAGLEV,
    )


# -- what the maps say ------------------------------------------------------------------------------------------------


def look_up(node: Node, call: Called) -> Answered | None:
    """As bpf/lb.h does (lb_find)."""
    at = Frontend(call.address, call.port, call.protocol)
    head = node.head(at)
    if head is None or (call.outside and head.kind == Kind.CLUSTER_IP):
        return None
    if call.outside and head.flags & ServiceFlag.EXTERNAL:
        at = Frontend(call.address, call.port, call.protocol, Scope.EXTERNAL)
        head = node.head(at)
        assert head is not None
    slots: dict[tuple[int, str], Fraction] = node.chances(at)
    assert set(node.places(at) or slots) == set(slots), "a table has those that the slots have"
    keeps = bool(head.flags & ServiceFlag.KEEP_SOURCE)
    return Answered(slots, keeps, node.may_ask(at), head.affinity_seconds, bool(head.algorithm))


# -- tables -----------------------------------------------------------------------------------------------------------

own_ips = [parse(ip) for ip in ("10.1.0.1", "10.1.0.2", "10.1.0.3", "fd01::1", "fd01::2")]
other_ips = [parse(ip) for ip in ("10.2.0.1", "10.2.0.2", "fd02::1")]
cluster_ips = [parse(ip) for ip in ("10.96.0.1", "10.96.0.2", "fd96::1")]
reached_at = [parse(ip) for ip in ("198.51.100.1", "198.51.100.2", "2001:db8:1::1")]
names = st.sets(st.sampled_from(sorted(NAMES)), min_size=1)
targets = st.fixed_dictionaries(
    {},
    optional={
        name: st.builds(lambda port, protocol=protocol: Port(protocol=protocol, port=port), st.integers(9000, 9001))
        for name, (protocol, _) in NAMES.items()
    },
)
hints = st.sampled_from([(), (), ("a",), ("b",), ("a", "b")])
nodes = st.sampled_from([(), (), ("n1",), ("n2",)])
details = st.builds(
    BackendDetail,
    state=st.sampled_from([BackendState.ACTIVE, *BackendState]),
    weight=st.sampled_from([100, 100, 50, 1]),
    node=st.sampled_from(["", "n1", "n2"]),
    for_zones=hints,
    for_nodes=nodes,
)
alike_details = st.builds(  # all with hints, as Kubernetes gives them
    lambda those, zone, node: {
        each: BackendDetail(for_zones=(zone[at % 2],), for_nodes=(node[at % 2],)) for at, each in enumerate(those)
    },
    st.just(own_ips),
    st.permutations(["a", "b"]),
    st.permutations(["n1", "n2"]),
)
ranges = st.none() | st.sets(st.sampled_from(["10.0.0.0/8", "fd00::/8"]).map(parse_prefix)).map(tuple)


def node_ports(used: set[str]) -> dict[str, Port]:
    return {name: Port(protocol=NAMES[name][0], port=30000 + NAMES[name][1]) for name in used}


@st.composite
def locals_(draw: st.DrawFn) -> LocalService:
    used = draw(names)
    ports = {name: Port(protocol=NAMES[name][0], port=NAMES[name][1]) for name in used}
    service = Service(
        cluster="c1",
        cluster_id=1,
        namespace="n",
        name="s",
        frontends=dict.fromkeys(draw(st.sets(st.sampled_from(cluster_ips), min_size=1)), ports),
        backends=draw(st.dictionaries(st.sampled_from(own_ips), targets)),
    )
    outside = Outside(
        node_ports=node_ports(used) if draw(st.booleans()) else {},
        external_ips=tuple(draw(st.sets(st.sampled_from(reached_at)))),
        load_balancer_ips=tuple(draw(st.sets(st.sampled_from(reached_at)))),
        source_ranges=draw(ranges),
        local_only=draw(st.booleans()),
    )
    return LocalService(
        service=service,
        is_global=draw(st.booleans()),
        affinity=draw(st.sampled_from(Affinity)),
        outside=draw(st.sampled_from([outside, Outside()])),
        local_only=draw(st.booleans()),
        affinity_seconds=draw(st.sampled_from([0, 60])),
        algorithm=draw(st.sampled_from(Algorithm)),
        details=draw(st.one_of(st.just({}), st.dictionaries(st.sampled_from(own_ips), details), alike_details)),
        draining={
            ip: ports
            for ip, ports in draw(st.dictionaries(st.sampled_from(own_ips), targets, max_size=2)).items()
            if ip not in service.backends
        },
    )


@st.composite
def remotes_(draw: st.DrawFn) -> list[Service]:
    return [
        Service(
            cluster=f"c{cluster_id}",
            cluster_id=cluster_id,
            namespace="n",
            name="s",
            backends=draw(st.dictionaries(st.sampled_from(other_ips), targets)),
            zones={ip: Zone(for_zones=draw(hints)) for ip in draw(st.sets(st.sampled_from(other_ips)))},
            shared=draw(st.booleans()),
        )
        for cluster_id in draw(st.sampled_from([(), (2,), (2, 3)]))
    ]


CALLS = [
    Called(address, port, protocol, outside)
    for address in (*cluster_ips, *reached_at, *HERE.addresses, *LOOPBACK)
    for protocol, number in NAMES.values()
    for port in (number, 30000 + number)
    for outside in ((False, True) if address not in LOOPBACK else (False,))
]
heres = st.sampled_from([HERE, HERE, Here(name="n2", zone="b", addresses=HERE.addresses), NOWHERE])


@given(st.lists(st.tuples(locals_(), remotes_(), heres), min_size=1, max_size=3))
async def test_every_call_is_answered_as_the_stupid_twin_says(
    script: list[tuple[LocalService, list[Service], Here]],
) -> None:
    node = Node()
    for local, remotes, here in script:  # one after the other: what was there before is no more
        entries = resolve(local, remotes, here)
        assert resolve(local, remotes[::-1], here) == entries, "equal services are equal entries"
        node.planner.update(("n", "s"), entries)
        await node.flush()
        for call in CALLS:
            assert look_up(node, call) == twin(local, remotes, here, call), call
        used = {name for ports in local.service.frontends.values() for name in ports}
        families = {is_ipv4(each) for each in local.service.frontends}
        there = {
            (each.cluster, f"{text(each.address)}:{each.port}"): each.state
            for name in used
            for ipv4 in families
            for each in endpoints(local, remotes, name, ipv4)
        }
        states = node.states()
        assert all(states.get(each) is not None for each in there), "a backend that is there is known to connections"
        assert all(states[each] <= state for each, state in there.items())


def pod(**more: object) -> LocalService:
    ports = {"web": Port(protocol=TCP, port=8080), "dns": Port(protocol=UDP, port=53)}
    service = Service(
        cluster="c1",
        cluster_id=1,
        namespace="n",
        name="p.host-ports",
        backends={parse("10.1.0.9"): ports},
        shared=False,
    )
    at = {"web": Port(protocol=TCP, port=80), "dns": Port(protocol=UDP, port=5353)}
    return LocalService(service=service, host_ports=HostPorts(node="n1", ports=at, **more))  # type: ignore[arg-type]


async def test_the_host_ports_of_a_pod_are_at_its_nodes_addresses() -> None:
    node = Node()
    node.planner.update(("n", "p.host-ports"), resolve(pod(addresses={"dns": HERE.addresses[0]}), [], HERE))
    await node.flush()
    answers = {
        (text(at), port): look_up(node, Called(at, port, protocol, outside=True))
        for at in (*HERE.addresses, *LOOPBACK)
        for protocol, port in ((TCP, 80), (UDP, 5353))
    }
    web, dns = ((1, f"10.1.0.9:{port}") for port in (8080, 53))
    found = {place: [*each.chances] for place, each in answers.items() if each is not None}
    assert found == {("192.0.2.1", 80): [web], ("127.0.0.1", 80): [web], ("192.0.2.1", 5353): [dns]}
    assert all(each.keeps_source for each in answers.values() if each is not None)


def test_host_ports_of_another_node_and_of_pods_in_the_hosts_network_have_no_entry() -> None:
    assert resolve(pod(), [], Here(name="n2", addresses=HERE.addresses)) == []
    assert resolve(pod(), [], Here(name="n1", addresses=(parse("10.1.0.9"),))) == []
    assert resolve(pod(), []) == []


async def test_many_different_weights_are_told_apart_by_their_powers_of_two() -> None:
    ips = [parse(f"10.1.{each // 250}.{each % 250 + 1}") for each in range(600)]
    port = {"": Port(protocol=TCP, port=80)}
    service = Service(
        cluster="c",
        cluster_id=1,
        namespace="n",
        name="s",
        frontends={cluster_ips[0]: port},
        backends=dict.fromkeys(ips, port),
    )
    said = {ip: BackendDetail(weight=weight) for weight, ip in enumerate(ips, start=1)}
    (entry,) = resolve(LocalService(service=service, details=said), [])
    assert [each.weight // len(each.backends) for each in entry.groups] == [1 << power for power in range(10)]
    assert sum(len(each.backends) for each in entry.groups) == 600
