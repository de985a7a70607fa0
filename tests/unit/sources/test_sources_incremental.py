"""The translator that redoes only what a change touches, beside its stupid twin that redoes everything."""

from __future__ import annotations

from typing import Any

import kube
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from clustermesh.address import text
from clustermesh.sources.index import Index
from clustermesh.sources.objects import Object, Pod, Ref
from clustermesh.sources.snapshot import Backlog, Change, Snapshot
from clustermesh.sources.translate import Translator, translate

_LABELS = st.dictionaries(st.sampled_from("ab"), st.sampled_from("xy"), max_size=2)
_NAMES = st.sampled_from(["one", "two"])
_SPACES = st.sampled_from(["shop", "bank"])
_IPS = st.integers(1, 4).map(lambda n: f"10.1.0.{n}")
_NODE_IPS = st.sampled_from(["192.0.2.1", "192.0.2.2"])
_CIDRS = st.sampled_from(["10.1.0.0/24", "10.1.0.0/16", "10.1.0.1/32", "10.2.0.0/24", "192.0.2.0/24", "nonsense"])


_NUMBERS = st.sampled_from([65536, 65999, 70000])
_TIMES = st.sampled_from(["", "2026-01-01T00:00:00Z", "2026-01-02T00:00:00Z"])
_KINDS = ("Service", "EndpointSlice", "Pod", "Pod", "Node", "Namespace", "ServiceExport")
_CILIUM = ("CiliumNode", "CiliumIdentity", "CiliumEndpoint", "CiliumEndpointSlice")


@st.composite
def _manifests(draw: st.DrawFn, kinds: tuple[str, ...] = _KINDS + _CILIUM) -> dict[str, Any]:
    kind = draw(st.sampled_from(kinds))
    name = f"{draw(_SPACES)}/{draw(_NAMES)}"
    if kind.startswith("Cilium"):
        return kube.aged(draw(_of_cilium(kind, name)), draw(_TIMES))
    if kind.startswith("Service"):
        return kube.aged(draw(_of_a_service(kind, name)), draw(_TIMES))
    if kind == "EndpointSlice":
        found = kube.endpoint_slice(name, draw(_NAMES), draw(st.lists(_IPS, max_size=2)))
        for each in found["endpoints"]:
            each |= {"nodeName": draw(_NAMES), "conditions": draw(_CONDITIONS)}
        return found
    if kind == "Pod":
        pod = kube.pod(name, draw(_IPS), draw(_LABELS), ready=draw(st.booleans()), nodeName=draw(_NAMES))
        pod["metadata"]["annotations"] = draw(_MARKS)
        pod["spec"]["containers"][0]["ports"][0] |= {"hostPort": draw(_HOST_PORTS)}
        return kube.aged(pod, draw(_TIMES), draw(_TIMES))
    if kind == "Node":
        node = kube.node(draw(_NAMES), draw(_NODE_IPS), *draw(st.lists(_CIDRS, max_size=2)))
        node["metadata"]["labels"] = {"topology.kubernetes.io/zone": draw(_NAMES)}
        return node
    return kube.namespace(draw(_SPACES), global_=draw(st.sampled_from([None, "true", "false"])), team=draw(_NAMES))


@st.composite
def _of_a_service(draw: st.DrawFn, kind: str, name: str) -> dict[str, Any]:
    if kind == "ServiceExport":
        return kube.service_export(name, exportedLabels=draw(_LABELS))
    distribution = draw(st.sampled_from(["", "PreferClose", "PreferSameNode"]))
    return kube.service(name, global_=draw(st.booleans()), selector=draw(_LABELS), trafficDistribution=distribution)


@st.composite
def _of_cilium(draw: st.DrawFn, kind: str, name: str) -> dict[str, Any]:
    if kind == "CiliumNode":
        return kube.cilium_node(draw(_NAMES), draw(_NODE_IPS), draw(_IPS) + "/32")
    if kind == "CiliumIdentity":
        return kube.cilium_identity(draw(_NUMBERS), draw(_SPACES), app=draw(_NAMES))
    if kind == "CiliumEndpoint":
        return kube.cilium_endpoint(name, draw(_NUMBERS), draw(_IPS))
    endpoints = draw(st.lists(st.tuples(_NAMES, _NUMBERS, _IPS), max_size=2))
    return kube.cilium_slice(draw(_NAMES), draw(_SPACES), *endpoints)


_CONDITIONS = st.sampled_from([{}, {"ready": False}, {"ready": False, "serving": True, "terminating": True}])
_HOST_PORTS = st.sampled_from([0, 0, 80, 70000])
_MARKS = st.sampled_from([{}, {}, {"clustermesh.io/backend-weight": "3"}, {"clustermesh.io/backend-weight": "x"}])
_STEPS = st.lists(st.lists(st.tuples(_manifests(), st.booleans()), max_size=4), max_size=8)


def _fold(seen: Snapshot, change: Change, now: Snapshot) -> None:
    """What a reader has that acts on changes alone."""
    for mine, theirs, names in (
        (seen.services, now.services, change.services),
        (seen.nodes, now.nodes, change.nodes),
        (seen.endpoints, now.endpoints, change.endpoints),
        (seen.identities, now.identities, change.identities),
        (seen.exports, now.exports, change.exports),
    ):
        for name in names:
            mine.pop(name, None)  # type: ignore[call-overload]
            if name in theirs:
                mine[name] = theirs[name]  # type: ignore[index]


@settings(max_examples=300, deadline=None)
@given(_STEPS, st.integers(1, 3), st.booleans())
def test_any_history_ends_as_if_everything_had_been_translated_at_once(
    steps: list[list[tuple[dict[str, Any], bool]]], most: int, in_mesh: bool
) -> None:
    objects: dict[Ref, Object] = {}
    translator = Translator(kube.ALPHA, objects, in_mesh=in_mesh)
    seen = Snapshot(services={}, nodes={}, endpoints={}, identities={}, exports={})
    for step in steps:
        changed = {}
        for manifest, present in step:
            ((ref, value),) = kube.decode(manifest).items()
            objects.pop(ref, None)
            if present:
                objects[ref] = value
            changed[ref] = 1
        backlog, following = Backlog(), True
        for change in translator.portions(changed, most):
            assert following, "the last portion says that it is"
            following = change.more
            backlog.add(change)
        assert not following
        following = True
        while following:
            change = backlog.take(most)
            following = change.more
            _fold(seen, change, translator.snapshot)
        twin, faults = translate(kube.ALPHA, objects, in_mesh=in_mesh)
        assert translator.snapshot == twin
        assert seen == twin, "a Change names everything that changed"
        assert sorted(translator.faults()) == sorted(faults)


@pytest.mark.parametrize("names", [["a", "b", "c"], ["a", "b"], ["b", "c"]])
@pytest.mark.parametrize("most", [1, 10])
def test_of_several_at_one_address_any_may_go_at_once(names: list[str], most: int) -> None:
    objects = kube.decode(*(kube.cilium_endpoint(f"shop/{name}", 65999, "10.1.0.5") for name in "abc"))
    translator = Translator(kube.ALPHA, objects)
    translator.apply(dict.fromkeys(objects, 1))
    gone = [ref for ref in objects if ref.name in names]
    for ref in gone:
        del objects[ref]
    for change in translator.portions(dict.fromkeys(gone, 2), most):
        left = {endpoint.pod_name for endpoint in translator.snapshot.endpoints.values()}
        assert left <= {"a", "b", "c"} - set(names) or change.more
    assert {endpoint.pod_name for endpoint in translator.snapshot.endpoints.values()} == {"a", "b", "c"} - set(names)


@given(st.lists(st.tuples(_LABELS, st.booleans()), max_size=12), _LABELS)
def test_the_index_finds_the_pods_that_a_look_at_every_pod_would(
    pods: list[tuple[dict[str, str], bool]], selector: dict[str, str]
) -> None:
    index, twin = Index(), dict[Ref, Object]()
    for number, (labels, stays) in enumerate(pods):
        ((ref, value),) = kube.decode(kube.pod(f"p{number}", "10.1.0.1", labels)).items()
        index.add(ref, value)
        if stays:
            twin[ref] = value
        else:
            index.remove(ref, value)
    expected = [
        ref
        for ref, value in sorted(twin.items(), key=lambda item: item[0])
        if selector and isinstance(value, Pod) and selector.items() <= value.metadata.labels.items()
    ]
    assert index.pods_selected("shop", selector) == expected


def test_a_change_carries_the_time_of_its_newest_cause() -> None:
    objects = kube.decode(kube.service("cart"), kube.service("db"), kube.endpoint_slice("cart-1", "cart", ["10.1.0.5"]))
    translator = Translator(kube.ALPHA, objects)
    cart, db, cart_slice = (
        Ref(kind, "shop", n) for kind, n in (("Service", "cart"), ("Service", "db"), ("EndpointSlice", "cart-1"))
    )
    change = translator.apply({cart: 5, cart_slice: 9, db: 3})
    assert change.services == {("shop", "cart"): 9, ("shop", "db"): 3}
    assert translator.apply({cart: 20}) == Change(), "an object told again that did not change is no change"


_CHANGES = st.builds(
    Change,
    services=st.dictionaries(st.tuples(_SPACES, _NAMES), st.integers(1, 9)),
    nodes=st.frozensets(_NAMES),
    endpoints=st.frozensets(st.sampled_from([b"1", b"2", b"3"])),
    identities=st.frozensets(_NUMBERS),
    more=st.booleans(),
)


@given(st.lists(_CHANGES | st.integers(1, 3)))
def test_what_was_told_is_taken_from_a_backlog_once_and_whole(steps: list[Change | int]) -> None:
    backlog, waiting, more = Backlog(), dict[object, int](), False
    for step in [*steps, *[1] * 10]:
        if isinstance(step, Change):
            backlog.add(step)
            waiting |= _named(step)
            more = step.more
            continue
        taken = backlog.take(step)
        assert max(map(len, (taken.services, taken.endpoints, taken.identities))) <= step
        assert {name: waiting.pop(name) for name in _named(taken)} == _named(taken)
        assert bool(backlog) == bool(waiting)
        assert taken.more == (more or bool(waiting))
    assert not waiting


def test_pods_are_told_and_acted_on_in_the_order_in_which_they_were_listed() -> None:
    ips = [f"10.1.0.{number}" for number in range(1, 41)]
    objects = kube.decode(*(kube.pod(f"shop/p{number:02}", ip, {}) for number, ip in enumerate(ips)))
    translator, backlog = Translator(kube.ALPHA, objects), Backlog()
    for change in translator.portions(dict.fromkeys(objects, 1), 5):
        backlog.add(change)
    taken = [{text(ip) for ip in backlog.take(5).endpoints} for _ in range(0, len(ips), 5)]
    assert taken == [set(ips[begin : begin + 5]) for begin in range(0, len(ips), 5)]


def test_all_there_is_waits_anew_beside_what_was_told_and_not_taken() -> None:
    backlog, told = Backlog(), Change(services={("a", "gone"): 1, ("a", "web"): 2}, more=True)
    backlog.add(told)
    service: Any = None
    backlog.add_all(Snapshot(services={("a", "web"): service, ("a", "db"): service}), 9)
    assert backlog.take(9) == Change(services={("a", "gone"): 1, ("a", "web"): 2, ("a", "db"): 9}, more=True)


def _named(change: Change) -> dict[object, int]:
    return {**change.services, **dict.fromkeys([*change.nodes, *change.endpoints, *change.identities], 0)}
