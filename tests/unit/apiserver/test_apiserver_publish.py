"""What etcd should hold: for a change only what it touches, and in the end the same as for everything at once."""

from __future__ import annotations

from collections.abc import Mapping

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec.structs import replace

from clustermesh.address import Address, parse
from clustermesh.apiserver import publish as module
from clustermesh.apiserver.adopt import adopt_keys
from clustermesh.apiserver.identities import Allocator
from clustermesh.apiserver.labels import identity_labels
from clustermesh.apiserver.publish import Publisher, Updates
from clustermesh.apiserver.publish import publish as publish_all
from clustermesh.mesh.state import MeshState
from clustermesh.mesh.tables import own_tables
from clustermesh.model import (
    Affinity,
    AgentRecord,
    Cluster,
    ClusterConfig,
    Endpoint,
    Identity,
    Label,
    LocalService,
    Node,
    NodeAddress,
    Port,
    Protocol,
    Service,
    Zone,
)
from clustermesh.sources.pods import PodEndpoint
from clustermesh.sources.snapshot import Change, Snapshot
from clustermesh.wire import endpoint, identity, keys, local, node
from clustermesh.wire.kinds import ENDPOINTS

ALPHA = Cluster(name="alpha", id=1)
KEY = "aGVsbG9oZWxsb2hlbGxvaGVsbG9oZWxsb2hlbGxvMTI="
RECORD = AgentRecord(node="n1", wireguard_public_key=KEY, boot_id="b-1")
CART = ("shop", "cart")


def service(*ips: str, is_global: bool = True, shared: bool = True) -> LocalService:
    ports = {"http": Port(protocol=Protocol.TCP, port=80)}
    found = Service(
        cluster="alpha",
        cluster_id=1,
        namespace="shop",
        name="cart",
        frontends={parse("10.96.0.1"): ports},
        backends=dict.fromkeys(map(parse, ips), ports),
        shared=shared,
    )
    return LocalService(service=found, is_global=is_global)


def pod(ip: str, app: str = "cart", on: str = "n1") -> PodEndpoint:
    return PodEndpoint(
        ip=parse(ip),
        namespace="shop",
        pod_name="p",
        service_account="default",
        node=on,
        host_ip=parse("192.0.2.1"),
        labels={"app": app},
        namespace_labels={},
    )


def machine(name: str = "n1", key: str = "") -> Node:
    address = NodeAddress(type="InternalIP", ip=parse("192.0.2.1"))
    return Node(cluster="alpha", cluster_id=1, name=name, addresses=(address,), wireguard_public_key=key)


class Etcd(dict[bytes, bytes]):
    """Takes updates as etcd would."""

    def take(self, updates: Updates) -> Updates:
        for entries in updates.values():
            for key, value in entries.items():
                self.pop(key, None)
                if value is not None:
                    self[key] = value
        return updates


def publisher(etcd: Etcd, grace: int = 100) -> Publisher:
    return Publisher(ALPHA, Allocator(ALPHA, grace), last_good=etcd.get)


@pytest.mark.parametrize("found", [True, False], ids=["found in etcd", "told by an agent"])
def test_where_ciliums_agents_run_a_node_has_the_key_that_its_object_has(found: bool) -> None:
    """Encryption was switched off meanwhile: a key that nobody has any more makes its node unreachable."""
    etcd, source = Etcd(), Snapshot(nodes={"n1": machine()})
    made = publisher(etcd)
    made.of_agents = False
    if found:
        adopt_keys(made, {keys.node_key("alpha", "n1"): node.encode(machine(key=KEY))}, ALPHA)
    else:
        made.take_record(Snapshot(), "n1", RECORD, 0)
    etcd.take(made.apply(source, Change(nodes=frozenset(["n1"])), 0))
    assert node.decode(etcd[keys.node_key("alpha", "n1")]).wireguard_public_key == ""


_ZONES = {parse("10.1.0.5"): Zone(zone="z1")}


@pytest.mark.parametrize(
    ("each", "is_shared", "is_own"),
    [
        (service("10.1.0.5"), True, False),
        (replace(service(), service=replace(service("10.1.0.5").service, zones=_ZONES)), True, False),
        (service("10.1.0.5", shared=False), False, True),
        (service("10.1.0.5", is_global=False), False, True),
        (replace(service("10.1.0.5"), affinity=Affinity.LOCAL), True, True),
    ],
)
def test_what_peers_are_told_of_a_service_is_told_to_own_agents_only_where_there_is_more(
    each: LocalService, is_shared: bool, is_own: bool
) -> None:
    etcd = Etcd()
    etcd.take(publisher(etcd).apply(Snapshot(services={CART: each}), Change(services={CART: 7}), now=9))
    assert (keys.service_key("alpha", *CART) in etcd, keys.local_service_key(*CART) in etcd) == (is_shared, is_own)


_LOCAL = st.builds(
    lambda ips, zoned, shared, is_global, affinity: LocalService(
        service=replace(service(*ips, shared=shared).service, zones=_ZONES if zoned else {}),
        is_global=is_global,
        affinity=affinity,
    ),
    st.lists(st.sampled_from(["10.1.0.5", "10.1.0.6", "fd00::7"]), unique=True),
    st.booleans(),
    st.booleans(),
    st.booleans(),
    st.sampled_from(Affinity),
)


@given(_LOCAL)
def test_an_agent_reads_from_both_places_what_it_would_read_if_each_service_had_a_key_of_its_own(
    each: LocalService,
) -> None:
    def read(record: AgentRecord) -> LocalService | None:
        etcd, snapshot = Etcd(), Snapshot(nodes={"n1": machine()}, services={CART: each})
        publishing = publisher(etcd)
        etcd.take(publishing.take_record(snapshot, "n1", record, now=1))
        etcd.take(publishing.apply(snapshot, Change(services={CART: 1}), now=2))
        state = MeshState("alpha")
        for table in own_tables("alpha", ClusterConfig(id=1)):
            for key, value in etcd.items():
                if key.startswith(table.prefix) and (table.kind == "local_services" or record.reads_shared):
                    state.put("alpha", table.kind, table.name_of(key), table.decode(key, value, ALPHA))
        return state.own_service(CART)

    assert read(replace(RECORD, reads_shared=True)) == read(RECORD) is not None


def test_while_a_node_has_an_older_agent_every_service_has_a_key_for_it() -> None:
    etcd, snapshot = (
        Etcd(),
        Snapshot(services={CART: service("10.1.0.5")}, nodes={"n1": machine(), "n2": machine("n2")}),
    )
    publishing, own = publisher(etcd), keys.local_service_key(*CART)
    newer, older = (replace(RECORD, node="n2", reads_shared=each) for each in (True, False))
    etcd.take(publishing.apply(snapshot, Change(services={CART: 1}, nodes=frozenset(snapshot.nodes)), now=1))
    etcd.take(publishing.take_record(snapshot, "n1", replace(RECORD, reads_shared=True), now=2))
    assert own not in etcd
    etcd.take(publishing.take_record(snapshot, "n2", older, now=3))
    assert local.decode_service(etcd[own]) == snapshot.services[CART]
    etcd.take(publishing.take_record(snapshot, "n2", newer, now=4))
    assert own not in etcd
    etcd.take(publishing.take_record(snapshot, "n2", older, now=5))
    etcd.take(publishing.take_record(snapshot, "n2", None, now=6))
    assert own in etcd, "its record is lost, its agent is there"
    del snapshot.nodes["n2"]
    etcd.take(publishing.apply(snapshot, Change(nodes=frozenset(["n2"])), now=7))
    assert own not in etcd
    snapshot.nodes["n3"] = machine("n3")
    etcd.take(publishing.take_record(Snapshot(), "n3", replace(older, node="n3"), now=8))
    assert own not in etcd
    etcd.take(publishing.apply(snapshot, Change(nodes=frozenset(["n3"])), now=9))
    assert own in etcd


def test_unsharing_a_service_removes_it() -> None:
    etcd, snapshot = Etcd(), Snapshot(services={CART: service("10.1.0.5")})
    publishing = publisher(etcd)
    etcd.take(publishing.apply(snapshot, Change(services={CART: 1}), now=2))
    snapshot.services[CART] = service("10.1.0.5", shared=False)
    etcd.take(publishing.apply(snapshot, Change(services={CART: 3}), now=4))
    assert set(etcd) == {keys.local_service_key(*CART)}


def test_only_a_service_that_is_written_anew_is_stamped() -> None:
    etcd, key = Etcd(), keys.service_key("alpha", *CART)
    snapshot = Snapshot(services={CART: service("10.1.0.5")})

    def observed(publishing: Publisher, at: int) -> dict[bytes, int]:
        return etcd.take(publishing.apply(snapshot, Change(services={CART: at}), now=at)).observed

    assert observed(publisher(etcd), 7) == {key: 7}
    restarted = publisher(etcd)
    assert observed(restarted, 8) == {}
    snapshot.services[CART] = service("10.1.0.6")
    assert observed(restarted, 30) == {key: 30}
    snapshot.services[CART] = service("10.1.0.6", shared=False)
    assert observed(restarted, 40) == {}


def test_without_own_agents_nothing_is_published_for_them() -> None:
    etcd, snapshot = Etcd(), Snapshot(services={CART: service("10.1.0.5"), ("shop", "db"): service(is_global=False)})
    publishing = publisher(etcd)
    publishing.of_agents = False
    etcd.take(publishing.apply(snapshot, Change(services=dict.fromkeys(snapshot.services, 1)), now=2))
    assert set(etcd) == {keys.service_key("alpha", *CART)}


def test_an_agents_record_is_merged_into_its_node_and_turns_encryption_on_for_its_pods() -> None:
    etcd, snapshot = Etcd(), Snapshot(nodes={"n1": machine(), "n2": machine("n2")})
    snapshot.endpoints = {parse("10.1.0.5"): pod("10.1.0.5"), parse("10.2.0.5"): pod("10.2.0.5", on="n2")}
    publishing = publisher(etcd)
    everything = Change(nodes=frozenset(snapshot.nodes), endpoints=frozenset(snapshot.endpoints))
    etcd.take(publishing.apply(snapshot, everything, now=1))
    updates = etcd.take(publishing.take_record(snapshot, "n1", RECORD, now=2))
    merged = node.decode(etcd[keys.node_key("alpha", "n1")])
    assert (merged.wireguard_public_key, merged.encryption_key, merged.boot_id) == (KEY, 255, "b-1")
    assert merged.annotations == {"network.cilium.io/wg-pub-key": KEY}
    assert list(updates[ENDPOINTS]) == [keys.endpoint_key(parse("10.1.0.5"))], "only pods of that node"
    assert endpoint.decode(etcd[keys.endpoint_key(parse("10.1.0.5"))]).key == 255


def test_a_node_keeps_its_key_until_it_says_another_or_is_gone() -> None:
    """Records are lost with an etcd that is emptied, and come back one by one; without them there are no tunnels."""
    etcd, snapshot, n1 = Etcd(), Snapshot(nodes={"n1": machine()}), Change(nodes=frozenset(["n1"]))
    publishing = publisher(etcd)
    etcd.take(publishing.take_record(snapshot, "n1", RECORD, now=1))
    assert not publishing.take_record(snapshot, "n1", None, now=2)
    etcd.take(publishing.apply(snapshot, n1, now=3))
    assert node.decode(etcd[keys.node_key("alpha", "n1")]).wireguard_public_key == KEY
    del snapshot.nodes["n1"]
    etcd.take(publishing.apply(snapshot, n1, now=4))
    snapshot.nodes["n1"] = machine()
    etcd.take(publishing.apply(snapshot, n1, now=5))
    assert node.decode(etcd[keys.node_key("alpha", "n1")]).wireguard_public_key == "", "it is another machine now"


def test_a_record_of_an_unknown_node_asks_for_nothing_until_there_is_the_node() -> None:
    etcd, snapshot = Etcd(), Snapshot()
    publishing = publisher(etcd)
    assert publishing.take_record(snapshot, "n1", RECORD, now=1) == {}
    snapshot.nodes["n1"] = machine()
    etcd.take(publishing.apply(snapshot, Change(nodes=frozenset(["n1"])), now=2))
    assert node.decode(etcd[keys.node_key("alpha", "n1")]).wireguard_public_key == KEY


def test_an_identity_outlives_its_last_pod_by_the_grace() -> None:
    etcd, snapshot = Etcd(), Snapshot(endpoints={parse("10.1.0.5"): pod("10.1.0.5")})
    publishing, change = publisher(etcd), Change(endpoints=frozenset([parse("10.1.0.5")]))
    etcd.take(publishing.apply(snapshot, change, now=0))
    (key,) = (key for key in etcd if key.startswith(keys.state_prefix("identities", "alpha")))
    snapshot.endpoints.clear()
    etcd.take(publishing.apply(snapshot, change, now=10))
    assert set(etcd) == {key}
    etcd.take(publishing.tick(snapshot, now=110))
    assert set(etcd) == {key}
    etcd.take(publishing.tick(snapshot, now=111))
    assert set(etcd) == set()


def test_a_pod_without_number_is_a_problem_and_gets_one_as_soon_as_one_is_free() -> None:
    etcd, allocator = Etcd(), Allocator(ALPHA, 100)
    allocator._range = range(65536, 65537)
    publishing = Publisher(ALPHA, allocator, etcd.get)
    snapshot = Snapshot(endpoints={parse("10.1.0.5"): pod("10.1.0.5", "a"), parse("10.1.0.6"): pod("10.1.0.6", "b")})
    etcd.take(publishing.apply(snapshot, Change(endpoints=frozenset(snapshot.endpoints)), now=0))
    assert keys.endpoint_key(parse("10.1.0.6")) not in etcd
    assert publishing.problems == {keys.endpoint_key(parse("10.1.0.6")): "shop/p: it gets no identity"}
    del snapshot.endpoints[parse("10.1.0.5")]
    etcd.take(publishing.apply(snapshot, Change(endpoints=frozenset([parse("10.1.0.5")])), now=1))
    etcd.take(publishing.tick(snapshot, now=200))
    assert endpoint.decode(etcd[keys.endpoint_key(parse("10.1.0.6"))]).identity == 65536
    assert publishing.problems == {}


def numbers_in(etcd: Etcd) -> dict[Address, int]:
    """Of endpoints."""
    found = [endpoint.decode(value) for key, value in etcd.items() if key.startswith(keys.state_prefix("ip", "alpha"))]
    return {each.ip: each.identity for each in found}


def test_numbers_that_agents_remember_are_recalled_of_pods_on_their_nodes_only() -> None:
    etcd, ip, other = Etcd(), parse("10.1.0.5"), parse("10.1.0.6")
    nodes = {name: machine(name) for name in ("n1", "n2")}
    snapshot = Snapshot(nodes=nodes, endpoints={ip: pod("10.1.0.5"), other: pod("10.1.0.6", "other")})
    publishing = publisher(etcd)
    etcd.take(publishing.apply(snapshot, Change(endpoints=frozenset(snapshot.endpoints)), now=1))
    before = numbers_in(etcd)
    labels = identity_labels("alpha", pod("10.1.0.5"))
    elsewhere = Identity(id=65540, labels=identity_labels("alpha", pod("10.1.0.5", "elsewhere")))

    def told(node: str, *identities: Identity) -> None:
        etcd.take(publishing.take_record(snapshot, node, replace(RECORD, node=node, identities=identities), now=2))
        etcd.take(publishing.recall(snapshot, now=3))

    told("n2", Identity(id=65539, labels=labels))
    told("n1", elsewhere)
    assert numbers_in(etcd) == before
    told("n1", elsewhere, Identity(id=65538, labels=labels))
    assert numbers_in(etcd) == before | {ip: 65538}
    published = {
        keys.parse_identity(key).id for key in etcd if key.startswith(keys.state_prefix("identities", "alpha"))
    }
    assert published == set(numbers_in(etcd).values())
    assert identity.decode(etcd[keys.identity_key(65538)], 65538).labels == labels


MANY = service(*(f"10.{a}.{b}.{c}" for a in (1, 2) for b in range(60) for c in range(1, 200)))


def test_what_cannot_be_written_any_more_is_kept_as_it_was_and_is_a_problem() -> None:
    etcd, snapshot = Etcd(), Snapshot(services={CART: service("10.1.0.5")})
    publishing = publisher(etcd)
    etcd.take(publishing.apply(snapshot, Change(services={CART: 1}), now=2))
    before = dict(etcd)
    snapshot.services[CART] = MANY
    etcd.take(publishing.apply(snapshot, Change(services={CART: 3}), now=4))
    assert etcd == before
    assert sorted(publishing.problems) == [keys.service_key("alpha", *CART), keys.local_service_key(*CART)]
    assert publishing.problems[keys.service_key("alpha", *CART)].endswith("; kept as it was")
    del snapshot.services[CART]
    etcd.take(publishing.apply(snapshot, Change(services={CART: 5}), now=6))
    assert (etcd, publishing.problems) == ({}, {})


def test_a_value_larger_than_etcd_takes_is_a_problem_and_the_rest_goes_on() -> None:
    etcd, other = Etcd(), ("shop", "db")
    publishing = publisher(etcd)
    snapshot = Snapshot(services={CART: MANY, other: service("10.1.0.5")})
    etcd.take(publishing.apply(snapshot, Change(services={CART: 1, other: 1}), now=2))
    assert sorted(publishing.problems) == [keys.service_key("alpha", *CART), keys.local_service_key(*CART)]
    assert f"at most {module.MAX_VALUE} bytes" in publishing.problems[keys.local_service_key(*CART)]
    snapshot.services[CART] = service("10.1.0.5")
    etcd.take(publishing.apply(snapshot, Change(services={CART: 3}), now=4))
    assert publishing.problems == {}


_NODES = st.dictionaries(st.sampled_from(["n1", "n2"]), st.booleans().map(lambda k: machine(key=KEY if k else "")))
_PODS = st.dictionaries(
    st.sampled_from(["10.1.0.5", "10.1.0.6", "fd00::7"]),
    st.tuples(st.sampled_from("abc"), st.sampled_from(["n1", "n2"])),
)
_SERVICES = st.dictionaries(
    st.sampled_from([CART, ("shop", "db")]), st.builds(service, is_global=st.booleans(), shared=st.booleans())
)
_STATES = st.tuples(_SERVICES, _NODES, _PODS, st.none() | st.just(RECORD))


@settings(max_examples=150, deadline=None)
@given(st.lists(_STATES, min_size=1, max_size=6))
def test_any_history_ends_as_if_everything_had_been_published_at_once(states: list) -> None:
    etcd, seen = Etcd(), Snapshot()
    publishing, kept = publisher(etcd, grace=0), None
    for now, (services, nodes, pods, record) in enumerate(states):
        snapshot = Snapshot(
            services=services,
            nodes={name: machine(name, each.wireguard_public_key) for name, each in nodes.items()},
            endpoints={parse(ip): pod(ip, app, on) for ip, (app, on) in pods.items()},
        )
        change = Change(
            services=dict.fromkeys(_differing(seen.services, snapshot.services), 0),
            nodes=frozenset(_differing(seen.nodes, snapshot.nodes)),
            endpoints=frozenset(_differing(seen.endpoints, snapshot.endpoints)),
        )
        etcd.take(publishing.apply(snapshot, change, now))
        etcd.take(publishing.take_record(snapshot, "n1", record, now))
        kept, seen = record or (kept if "n1" in nodes else None), snapshot
    etcd.take(publishing.tick(seen, len(states) + 1))
    twin = Etcd()
    records = {} if kept is None else {"n1": kept}
    twin.take(publish_all(ALPHA, seen, Allocator(ALPHA), records, 0))
    assert _plain(etcd) == _plain(twin)


def test_what_cilium_has_allotted_is_published_as_it_is_and_goes_with_it() -> None:
    etcd = Etcd()
    publishing = publisher(etcd)
    allotted = Identity(id=65999, labels=(Label(source="k8s", key="app", value="cart"),))
    behind = Endpoint(ip=parse("10.1.0.5"), identity=65999, key=255, namespace="shop", pod_name="cart-0")
    snapshot = Snapshot(endpoints={behind.ip: behind}, identities={65999: allotted})
    change = Change(endpoints=frozenset([behind.ip]), identities=frozenset([65999]))
    etcd.take(publishing.apply(snapshot, change, now=1))
    assert identity.decode(etcd[keys.identity_key(65999)], 65999) == allotted
    assert endpoint.decode(etcd[keys.endpoint_key(behind.ip)]) == behind
    etcd.take(publishing.apply(Snapshot(), change, now=2))
    assert etcd == {}


def _differing(before: Mapping, after: Mapping) -> list:
    return [key for key in before.keys() | after.keys() if before.get(key) != after.get(key)]


def _plain(etcd: Etcd) -> dict[bytes, object]:
    """Without what may differ with the order of events: which number stands for which labels."""
    numbers = {}
    for key, value in etcd.items():
        if key.startswith(keys.state_prefix("identities", "alpha")):
            number = keys.parse_identity(key).id
            numbers[number] = identity.decode(value, number).labels
    plain: dict[bytes, object] = {}
    for key, value in etcd.items():
        if key.startswith(keys.state_prefix("ip", "alpha")):
            found = endpoint.decode(value)
            plain[key] = (numbers[found.identity], found.host_ip, found.key)
        elif not key.startswith(keys.state_prefix("identities", "alpha")):
            plain[key] = value
    return {**plain, b"labels": sorted(map(str, numbers.values()))}
