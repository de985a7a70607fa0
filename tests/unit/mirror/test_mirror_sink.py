"""After any history, what is wanted in the cache is what a look at everything would want."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec.structs import replace

from clustermesh.address import parse, parse_prefix, text
from clustermesh.mesh.authority import Authority, Limits
from clustermesh.mesh.state import MeshState
from clustermesh.mirror import weight
from clustermesh.mirror.copies import KINDS, Copy, cache_key, canary_key, cluster_of, copied_config, copied_kinds
from clustermesh.mirror.sink import CANARIES, CONFIGS, MirrorSink
from clustermesh.mirror.weight import KEY_COST
from clustermesh.model import (
    Cluster,
    ClusterConfig,
    Endpoint,
    ExportPort,
    Identity,
    Node,
    NodeAddress,
    Port,
    Protocol,
    Service,
    ServiceExport,
)
from clustermesh.wire import RESOURCES, keys, node, service, service_export
from clustermesh.wire.kinds import ENDPOINTS, IDENTITIES, NODES, SERVICE_EXPORTS, SERVICES

CONFIG = {name: ClusterConfig(id=number, synced_canaries=True) for name, number in (("beta", 2), ("gamma", 3))}


class Cache(dict[tuple[str, bytes], bytes]):
    """What is wanted."""

    def want(self, section: str, key: bytes, value: bytes | None) -> None:
        self.pop((section, key), None)
        if value is not None:
            self[section, key] = value


def a_sink(cache: Cache, *, known: bool = True) -> MirrorSink:
    sink = MirrorSink("alpha", cache.want)
    for name, config in CONFIG.items():
        sink.state.authorize(Authority.of(Cluster(name=name, id=config.id), ()))
        sink.configure(name, config)
    if known:
        sink.know_own()
    return sink


def a_node(cluster: str, name: str, cidr: str) -> Node:
    third = {"n1": 1, "n2": 2}[name]
    return Node(
        cluster=cluster,
        cluster_id=CONFIG[cluster].id,
        name=name,
        addresses=(NodeAddress(type="InternalIP", ip=parse(f"192.0.{CONFIG[cluster].id}.{third}")),),
        pod_cidrs=(parse_prefix(cidr),),
    )


def an_entry(cluster: str, kind: str, name: Any, what: str) -> Any:
    number = CONFIG[cluster].id
    if kind == NODES:
        return a_node(cluster, name, what)
    if kind == IDENTITIES:
        return Identity(id=name, labels=())
    if kind == ENDPOINTS:
        return Endpoint(ip=name, identity=number << 16)
    backends = {parse(what.replace("0/24", "7")): {"http": Port(protocol=Protocol.TCP, port=80)}}
    return Service(cluster=cluster, cluster_id=number, namespace=name[0], name=name[1], backends=backends)


_CIDRS = st.sampled_from(["10.2.1.0/24", "10.3.1.0/24", "10.9.1.0/24"])
_NAMES: dict[str, list[Any]] = {
    NODES: ["n1", "n2"],
    IDENTITIES: [5],
    ENDPOINTS: [parse("10.2.1.7"), parse("10.3.1.7"), parse("10.9.1.7")],
    SERVICES: [("shop", "web")],
}
_ENTRY = st.sampled_from([(kind, name) for kind, names in _NAMES.items() for name in names])
_CLUSTER = st.sampled_from(["beta", "gamma"])
_STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("put"), _CLUSTER, _ENTRY, _CIDRS),
        st.tuples(st.just("remove"), _CLUSTER, _ENTRY),
        st.tuples(st.just("listed"), _CLUSTER),
        st.tuples(st.just("evict"), _CLUSTER),
        st.tuples(st.just("settle")),
    ),
    max_size=25,
)


@settings(max_examples=300, deadline=None)
@given(_STEPS)
def test_after_any_history_the_cache_is_to_hold_what_stands(steps: list[tuple[Any, ...]]) -> None:
    cache, said = Cache(), dict[tuple[str, str, Any], Copy]()
    sink = a_sink(cache)
    for verb, *rest in steps:
        if verb == "put":
            cluster, (kind, name), what = rest
            entry = an_entry(cluster, kind, name, what)
            value = service.encode(entry) if kind == SERVICES else f"{name}{what}".encode()
            said[cluster, kind, name] = copy = Copy(entry, value)
            sink.put(cluster, kind, name, copy, 0)
        elif verb == "remove":
            cluster, (kind, name) = rest
            said.pop((cluster, kind, name), None)
            sink.remove(cluster, kind, name, 0)
        elif verb == "listed":
            sink.listed(rest[0], NODES)
        elif verb == "evict":
            said = {key: copy for key, copy in said.items() if key[0] != rest[0]}
            sink.config_of = CONFIG.get
            sink.drain(rest[0])
        else:
            list(sink.settle())
    for cluster in CONFIG:
        sink.listed(cluster, NODES)
    list(sink.settle())
    held = {key: value for (section, key), value in cache.items() if section in KINDS}
    kept = {key for key in held if key.startswith(b"cilium/cache/nodes/")}  # one may stand as it was
    expected = {cache_key(*at): value for at, value in expect(sink.state, said)}
    assert {k: v for k, v in held.items() if k not in kept} == {k: v for k, v in expected.items() if k not in kept}
    assert kept == {key for key in expected if key.startswith(b"cilium/cache/nodes/")}
    assert {key for section, key in cache if section == CONFIGS} == {keys.cluster_config_key(c) for c in CONFIG}


def expect(state: MeshState, said: dict[tuple[str, str, Any], Copy]) -> Any:
    """Everything, decided on by what the state itself uses."""
    for (cluster, kind, name), copy in said.items():
        value: bytes | None = copy.value
        refused = kind == ENDPOINTS and name in state.refusals(cluster).of(ENDPOINTS)
        if refused or (kind == NODES and state.node(cluster, name) is None):
            value = None
        elif kind == SERVICES:
            used = next(each for each in state.remote_services(name) if each.cluster == cluster)
            value = copy.value if used == copy.entry else service.encode(used)
        if value is not None:
            yield (cluster, kind, name), value


def test_what_was_found_stands_until_its_cluster_is_listed_and_nothing_flaps() -> None:
    cache, history = Cache(), list[tuple[str, bytes, bytes | None]]()

    def want(section: str, key: bytes, value: bytes | None) -> None:
        history.append((section, key, value))
        cache.want(section, key, value)

    sink = MirrorSink("alpha", want)
    address, made = parse("10.2.1.7"), a_node("beta", "n1", "10.2.1.0/24")
    sink.found_config("beta", copied_config(CONFIG["beta"]))
    sink.found("beta", ENDPOINTS, address, b"endpoint")
    sink.found("beta", NODES, "n1", b"node")
    sink.found("beta", NODES, "gone", b"gone")
    history.clear()
    sink.state.authorize(Authority.of(Cluster(name="beta", id=2), ()))
    sink.configure("beta", CONFIG["beta"])
    sink.put("beta", ENDPOINTS, address, Copy(an_entry("beta", ENDPOINTS, address, ""), b"endpoint"), 0)
    assert "gone" in sink.names("beta", NODES), "its reader knows of it, and says whether it is gone"
    sink.put("beta", NODES, "n1", Copy(made, b"node"), 0)
    sink.listed("beta", NODES)
    list(sink.settle())
    assert ENDPOINTS not in sink.complete("beta"), "the own cluster is not known"
    sink.know_own()
    list(sink.settle())
    sink.remove("beta", NODES, "gone", 0)
    assert {(key, value) for section, key, value in history if section in KINDS and value is None} == {
        (cache_key("beta", NODES, "gone"), None)
    }
    assert sink.complete("beta") >= {NODES}


def test_the_end_of_a_list_is_news_also_where_it_is_empty() -> None:
    told = list[str]()
    sink = a_sink(Cache())
    sink.on_listed = lambda: told.append("listed")
    sink.listed("beta", IDENTITIES)
    assert told == ["listed"]
    assert IDENTITIES in sink.complete("beta")


def test_a_thousand_nodes_that_waited_for_the_own_cluster_are_all_wanted() -> None:
    """More of them than are decided on in one turn."""
    cache = Cache()
    sink = a_sink(cache, known=False)
    for number in range(1000):
        cidr = parse_prefix(f"10.2{number // 250}.{number % 250}.0/24")
        made = Node(cluster="beta", cluster_id=2, name=f"n{number}", pod_cidrs=(cidr,))
        sink.put("beta", NODES, made.name, Copy(made, b"value"), 1)
    sink.listed("beta", NODES)
    sink.know_own()
    assert NODES not in sink.complete("beta")
    list(sink.settle())
    assert NODES in sink.complete("beta")
    assert sum(section == NODES for section, _ in cache) == 1000


def test_canaries_go_before_what_they_speak_of_where_a_cluster_is_evicted() -> None:
    order = list[str]()
    sink = MirrorSink("alpha", lambda section, _key, value: order.append(section) if value is None else None)
    sink.configure("beta", CONFIG["beta"])
    sink.found("beta", IDENTITIES, 131072, b"x")
    sink.drain("beta")
    assert order[0] == CONFIGS
    assert order.index(CANARIES) < order.index(IDENTITIES)
    assert not sink.clusters


def test_a_cluster_that_was_disconnected_keeps_its_copies_when_its_reader_goes() -> None:
    cache = Cache()
    sink = a_sink(cache)
    sink.put("beta", IDENTITIES, 131072, Copy(Identity(id=131072, labels=()), b"x"), 0)
    sink.is_connected = lambda _cluster: False
    sink.drain("beta", [SERVICES])
    sink.drain("beta")
    list(sink.settle())
    assert (IDENTITIES, cache_key("beta", IDENTITIES, 131072)) in cache
    sink.forget("beta")
    assert not any(cluster_of(key) == "beta" for _, key in cache)


def test_a_cluster_whose_services_are_withdrawn_keeps_all_else_and_its_canaries() -> None:
    """Those that were read, and those that were only found."""
    cache, canary = Cache(), canary_key("beta", SERVICES)
    sink = a_sink(cache)
    sink.put("beta", IDENTITIES, 131072, Copy(Identity(id=131072, labels=()), b"x"), 0)
    sink.put("beta", SERVICE_EXPORTS, ("shop", "web"), Copy(None, b"x"), 0)
    sink.found("beta", SERVICES, ("shop", "found"), b"x")
    sink.found_canary("beta", canary, b"now")
    kept = {at: value for at, value in cache.items() if at[0] not in (SERVICES, SERVICE_EXPORTS)}
    entry = an_entry("beta", SERVICES, ("shop", "web"), "10.2.1.0/24")
    web = Copy(entry, service.encode(entry))
    for kind in (NODES, SERVICES):
        sink.listed("beta", kind)
    sink.put("beta", SERVICES, ("shop", "web"), web, 0)
    list(sink.settle())
    sink.drain("beta", [SERVICES])
    list(sink.settle())
    assert cache == kept
    sink.put("beta", SERVICES, ("shop", "web"), web, 0)
    assert (SERVICES, cache_key("beta", SERVICES, ("shop", "web"))) in cache


def claimant(cluster: str) -> tuple[str, Copy]:
    """A node of `cluster` that wants what the other's wants too."""
    made = a_node(cluster, "n1", "10.9.1.0/24")
    return cluster, Copy(made, node.encode(made))


@pytest.mark.parametrize(("first", "second"), [("beta", "gamma"), ("gamma", "beta")])
def test_of_two_that_want_the_same_whoever_stands_in_the_cache_stood_first(first: str, second: str) -> None:
    """Also where this mirror has heard of the other one first, and stood by while it was decided otherwise."""
    cache = Cache()
    sink = a_sink(cache)
    for cluster, copy in map(claimant, (second, first)):
        sink.put(cluster, NODES, "n1", copy, 0)
        sink.listed(cluster, NODES)
    list(sink.settle())
    keys_of = {cluster: (NODES, cache_key(cluster, NODES, "n1")) for cluster in (first, second)}
    assert keys_of[second] in cache
    sink.seat([(second, "n1", None), (first, "n1", claimant(first)[1].value)])
    list(sink.settle())
    assert keys_of[first] in cache
    assert keys_of[second] not in cache


def test_a_node_found_in_the_cache_keeps_its_place_whoever_is_heard_of_first() -> None:
    cache = Cache()
    sink = a_sink(cache)
    (beta, its), (gamma, other) = map(claimant, ("beta", "gamma"))
    sink.seat([(beta, "n1", its.value)])
    sink.found(beta, NODES, "n1", its.value)
    for cluster, copy in ((gamma, other), (beta, its)):
        sink.put(cluster, NODES, "n1", copy, 0)
        sink.listed(cluster, NODES)
    list(sink.settle())
    assert [key for section, key in cache if section == NODES] == [cache_key(beta, NODES, "n1")]


def test_what_is_found_after_its_kind_was_listed_is_asked_for_again_and_holds_nothing_up() -> None:
    sink = a_sink(Cache())
    for kind in KINDS:
        sink.listed("beta", kind)
    assert not sink.names("beta", "short")
    sink.found("beta", ENDPOINTS, parse("10.2.1.7"), b"x")
    assert sink.names("beta", "short") == {ENDPOINTS}
    assert sink.complete("beta") == set(KINDS)
    sink.listed("beta", ENDPOINTS)
    assert not sink.names("beta", "short")


def test_a_peer_has_no_more_copied_than_it_may_and_what_was_left_out_comes_once_there_is_room() -> None:
    cache = Cache()
    sink = a_sink(cache)
    sink.limits_of = lambda _cluster: Limits(copied_bytes=3000)
    entries = {number: Copy(Identity(id=number, labels=()), bytes(1000)) for number in (131072, 131073)}
    for number, copy in entries.items():
        sink.put("beta", IDENTITIES, number, copy, 0)
    sink.listed("beta", IDENTITIES)
    assert [key for section, key in cache if section == IDENTITIES] == [cache_key("beta", IDENTITIES, 131072)]
    assert sink.names("beta", IDENTITIES) == {131072}, "nothing is held of what is left out"
    assert "1 identities are not copied" in sink.state.refusals("beta").named(1)[f"copies/{IDENTITIES}"]
    sink.put("gamma", IDENTITIES, 196608, Copy(Identity(id=196608, labels=()), b"x"), 0)
    assert (IDENTITIES, cache_key("gamma", IDENTITIES, 196608)) in cache, "each has its own"
    sink.remove("beta", IDENTITIES, 131072, 0)
    assert IDENTITIES in sink.names("beta", "short"), "its reader lists it again"
    sink.put("beta", IDENTITIES, 131073, entries[131073], 0)
    sink.listed("beta", IDENTITIES)
    assert (IDENTITIES, cache_key("beta", IDENTITIES, 131073)) in cache
    assert not len(sink.state.refusals("beta"))


def test_what_was_left_out_beyond_what_is_named_is_asked_for_again_too(monkeypatch) -> None:
    monkeypatch.setattr(weight, "_MOST_NAMED", 10)
    cache = Cache()
    sink = a_sink(cache)
    sink.limits_of = lambda _cluster: Limits(copied_bytes=100_000)
    sink.listed("beta", IDENTITIES)
    copies = {number: Copy(Identity(id=number, labels=()), b"x") for number in range(131072, 131087)}
    sink.put("beta", IDENTITIES, 131999, Copy(Identity(id=131999, labels=()), bytes(99_400)), 0)
    for number, copy in copies.items():
        sink.put("beta", IDENTITIES, number, copy, 0)
    for number in [*copies][:10]:
        sink.remove("beta", IDENTITIES, number, 0)
    assert "10 or more identities are not copied" in sink.state.refusals("beta").named(1)[f"copies/{IDENTITIES}"]
    sink.remove("beta", IDENTITIES, 131999, 0)
    assert IDENTITIES in sink.names("beta", "short"), "its reader lists it again"


def test_a_peer_exports_no_more_than_it_may_and_its_next_come_once_there_is_room() -> None:
    """Each may take a cluster IP here: copied-bytes does not bound that."""
    cache = Cache()
    sink = a_sink(cache)
    sink.limits_of = lambda _cluster: Limits(exports=9)

    def export(number: int, size: int = 1, ports: int = 1) -> None:
        has = tuple(ExportPort(port=each) for each in range(1, 1 + ports))
        said = {"annotations": {"a": "b" * size}, "ports": has}
        made = ServiceExport(cluster="beta", namespace="shop", name=f"s{number}", created=1, **said)
        sink.put("beta", SERVICE_EXPORTS, ("shop", f"s{number}"), Copy(made, service_export.encode(made)), 0)

    def copied() -> int:
        return sum(section == SERVICE_EXPORTS for section, _ in cache)

    sink.found("beta", SERVICE_EXPORTS, ("shop", "s0"), b"x")
    export(0)
    for kind in KINDS:
        sink.listed("beta", kind)
    for number in range(1, 9):
        export(number)
        export(number, 2)
    assert copied() == 9
    export(8, ports=2)
    assert copied() == 8, "it does not stay as it was"
    export(8, ports=0)
    assert copied() == 9
    sink.remove("beta", SERVICE_EXPORTS, ("shop", "s2"), 0)
    sink.limits_of = lambda _cluster: Limits(exports=8)
    export(10)
    assert copied() == 8
    assert (
        "exports services with more than 8 ports" in sink.state.refusals("beta").named(9)[f"exports/{SERVICE_EXPORTS}"]
    )
    sink.put("gamma", SERVICE_EXPORTS, ("shop", "s1"), Copy(None, b"x"), 0)
    assert copied() == 9, "each has its own"
    assert not sink.names("beta", "short")
    sink.remove("beta", SERVICE_EXPORTS, ("shop", "s3"), 0)
    assert SERVICE_EXPORTS in sink.names("beta", "short"), "its reader lists it again"
    sink.listed("beta", SERVICE_EXPORTS, whole=False)
    export(10)
    assert copied() == 9
    assert f"exports/{SERVICE_EXPORTS}" not in sink.state.refusals("beta").named(9)
    sink.limits_of = lambda _cluster: Limits(exports=9, copied_bytes=9 * (KEY_COST + 500))
    export(11, 5000)  # it is left out for its size, and counts for nothing
    export(12)
    assert copied() == 10


def test_what_grows_beyond_what_a_peer_may_have_copied_does_not_stay_as_it_was() -> None:
    cache = Cache()
    sink = a_sink(cache)
    sink.limits_of = lambda _cluster: Limits(copied_bytes=3000)
    made = an_entry("beta", SERVICES, ("shop", "web"), "10.2.1.0/24")
    for size in (1000, 3000):
        sink.put("beta", SERVICES, ("shop", "web"), Copy(made, bytes(size)), 0)
    sink.put("beta", NODES, "n1", Copy(a_node("beta", "n1", "10.2.1.0/24"), b"node"), 0)
    sink.listed("beta", NODES)
    list(sink.settle())
    assert (SERVICES, cache_key("beta", SERVICES, ("shop", "web"))) not in cache
    assert not sink.state.views["beta"].services
    assert sink.weight("beta") == KEY_COST + len(b"node")
    assert "1 services are not copied" in sink.state.refusals("beta").named(1)[f"copies/{SERVICES}"]


def test_what_was_found_goes_where_there_is_no_room_for_what_it_is_now() -> None:
    cache = Cache()
    sink = a_sink(cache)
    sink.state.authorize(Authority.of(Cluster(name="beta", id=2), (), Limits(keys={SERVICES: 0})))
    sink.found("beta", SERVICES, ("shop", "web"), b"as it was")
    made = an_entry("beta", SERVICES, ("shop", "web"), "10.2.1.0/24")
    sink.put("beta", SERVICES, ("shop", "web"), Copy(made, service.encode(made)), 0)
    assert (SERVICES, cache_key("beta", SERVICES, ("shop", "web"))) not in cache
    assert sink.weight("beta") == 0


def test_a_service_that_has_no_room_for_all_its_backends_has_the_first_of_them() -> None:
    cache = Cache()
    sink = a_sink(cache)
    sink.state.authorize(Authority.of(Cluster(name="beta", id=2), (), Limits(backends=1)))
    made = an_entry("beta", SERVICES, ("shop", "web"), "10.2.1.0/24")
    sink.put("beta", SERVICES, ("shop", "web"), Copy(made, service.encode(made)), 0)
    rolled = replace(made, backends={parse("10.2.1.9"): {}, parse("10.2.1.8"): {}})
    sink.put("beta", SERVICES, ("shop", "web"), Copy(rolled, service.encode(rolled)), 0)
    sink.put("beta", NODES, "n1", Copy(a_node("beta", "n1", "10.2.1.0/24"), b"node"), 0)
    sink.listed("beta", NODES)
    list(sink.settle())
    first = service.encode(replace(rolled, backends={parse("10.2.1.8"): {}}))
    assert cache[SERVICES, cache_key("beta", SERVICES, ("shop", "web"))] == first
    assert sink.weight("beta") == 2 * KEY_COST + len(first) + len(b"node")


def test_what_a_cluster_no_longer_exports_goes() -> None:
    cache = Cache()
    sink = a_sink(cache)
    sink.found("beta", SERVICE_EXPORTS, ("shop", "web"), b"x")
    sink.configure("beta", CONFIG["beta"])
    assert not [key for section, key in cache if section == SERVICE_EXPORTS]


def test_keys_are_kvstoremeshs() -> None:
    names: dict[str, Any] = {NODES: "w1", IDENTITIES: 131072, ENDPOINTS: parse("fd00::1"), SERVICES: ("shop", "web")}
    for kind, name in names.items():
        key = cache_key("beta", kind, name)
        assert cluster_of(key) == "beta"
        assert RESOURCES[kind].name_of(key) == name
        assert keys.cache_key(keys.state_key(key, "beta"), "beta") == key
    assert (
        cache_key("beta", ENDPOINTS, parse("fd00::1")) == b"cilium/cache/ip/v1/beta/" + text(parse("fd00::1")).encode()
    )
    assert canary_key("beta", IDENTITIES) == b"cilium/synced/beta/cilium/cache/identities/v1"
    assert copied_kinds(CONFIG["beta"]) == (NODES, IDENTITIES, ENDPOINTS, SERVICES)
    with_all = ClusterConfig(id=2, service_exports_enabled=True, endpoint_slices_export_mode="endpointslices-only")
    assert copied_kinds(with_all) == KINDS


def test_what_was_found_counts_though_it_is_more_than_the_limit_and_is_given_back_when_it_goes() -> None:
    sink = a_sink(Cache())
    sink.limits_of = lambda _cluster: Limits(copied_bytes=1000)
    for number in range(3):
        sink.found("beta", IDENTITIES, 131072 + number, b"x" * 500)
    assert sink.weight("beta") > 3 * 500
    for number in range(3):
        sink.remove("beta", IDENTITIES, 131072 + number, 0)
    assert sink.weight("beta") == 0
