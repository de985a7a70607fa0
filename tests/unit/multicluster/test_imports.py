"""What the Kubernetes API is to have of exported names, told to one that forgets nothing it was given."""

from __future__ import annotations

import random
from copy import deepcopy
from typing import Any

import pytest
from msgspec.structs import replace

from clustermesh.model import ExportPort, ServiceExport
from clustermesh.multicluster.documents import DERIVED, Document, Write, derived_name, settle
from clustermesh.multicluster.documents import SERVICES as PLACE
from clustermesh.multicluster.imports import NOBODY, NOT_HERE, Facts, writes
from clustermesh.sources.metadata import Metadata
from clustermesh.sources.objects import Service, ServicePort, ServiceSpec

NAME = ("shop", "cart")
HTTP, MORE = ExportPort(port=80, name="http"), ExportPort(port=81, name="more")
LOCAL = Service(
    Metadata("cart", "shop"),
    ServiceSpec(
        selector={"app": "cart"},
        ports=[ServicePort(port=80, name="http", target_port="web"), ServicePort(port=9, name="more", target_port=90)],
    ),
)


def export(cluster: str, created: int = 1, **said: Any) -> ServiceExport:
    said = {"ports": (HTTP,), **said}
    return ServiceExport(cluster=cluster, namespace="shop", name="cart", created=created, **said)


ADDRESSES = {"IPv4": "10.96.0.1", "IPv6": "fd00:96::1"}
BOTH, FOUR, SIX = ("IPv4", "IPv6"), ("IPv4",), ("IPv6",)


class Api:
    """Some objects of one name, as the API would keep them."""

    def __init__(self, *families: str) -> None:
        self.families = families or ("IPv4",)
        self.held: dict[str, Document] = {}
        self.made = 0
        self.written: list[Write] = []

    def take(self, write: Write) -> None:
        kind = write.place.kind
        self.written.append(write)
        if write.method == "DELETE":
            del self.held[kind]
        elif write.method == "POST":
            assert kind not in self.held
            assert write.body is not None
            self.made += 1
            self.held[kind] = deepcopy(write.body)
            self.held[kind]["metadata"]["uid"] = f"uid-{self.made}"
        else:
            assert write.body
            self.held[kind] = patched(self.held[kind], write.body)
        if kind == "Service" and write.method != "DELETE":
            self._give_addresses(self.held[kind]["spec"])

    def _give_addresses(self, spec: Document) -> None:
        """As Kubernetes does: the first family stays, the second comes and goes by the policy."""
        had = spec.get("ipFamilies") or [self.families[0]]
        assert set(had) <= set(self.families)
        more = [each for each in self.families if each not in had]
        spec["ipFamilies"] = had[:1] if spec["ipFamilyPolicy"] == "SingleStack" else [*had, *more]
        if spec.get("clusterIP") == "None":
            spec["clusterIPs"] = ["None"]
        else:
            spec["clusterIPs"] = [ADDRESSES[each] for each in spec["ipFamilies"]]
            spec["clusterIP"] = spec["clusterIPs"][0]

    def settled(self, facts: Facts, now: float = 0) -> dict[str, Document]:
        """What is there in the end."""
        if facts.export is not None:
            self.held.setdefault("ServiceExport", facts.export)
        for _ in range(8):
            found = replace(facts, held=self.held.get("ServiceImport"), derived=self.held.get("Service"))
            if "ServiceExport" in self.held:
                found = replace(found, export=self.held["ServiceExport"])
            steps = writes(found, now)
            if not steps:
                return self.held
            for each in steps:
                self.take(each)
        raise AssertionError(f"it does not come to rest: {self.written[-4:]}")


def patched(held: Any, patch: Any) -> Any:
    """RFC 7396."""
    if not isinstance(patch, dict):
        return deepcopy(patch)
    out = dict(held) if isinstance(held, dict) else {}
    for key, value in patch.items():
        out.pop(key, None) if value is None else out.update({key: patched(out.get(key), value)})
    return out


def facts(**said: Any) -> Facts:
    usual = {"cluster": "alpha", "name": NAME, "version": "v1alpha1", "in_mesh": True}
    return Facts(**{**usual, **said})


def own(**said: Any) -> dict[str, Any]:
    """alpha exports it."""
    document = {"metadata": {"name": "cart", "namespace": "shop", "generation": 1}}
    return {"own": export("alpha", **said), "service": LOCAL, "export": document}


def test_the_service_behind_an_import_is_called_as_others_call_it() -> None:
    """Known answers, made with Go's crypto/sha256 and encoding/base32.HexEncoding."""
    assert derived_name("default", "nginx") == "derived-iuq6ea9f4j"
    assert derived_name("shop", "cart") == "derived-bsqa4s8pq5"
    assert derived_name("a", "b-c") != derived_name("a-b", "c")


def test_one_that_is_exported_here_selects_the_same_pods_by_the_ports_that_all_mean() -> None:
    api = Api()
    held = api.settled(
        facts(**own(ports=(HTTP, ExportPort(port=9, name="more"))), exports=[export("beta", 0, ports=(HTTP, MORE))])
    )
    service, imported = held["Service"], held["ServiceImport"]
    assert service["spec"]["selector"] == {"app": "cart"}
    assert [(each["name"], each["port"], each["targetPort"]) for each in service["spec"]["ports"]] == [
        ("http", 80, "web"),
        ("more", 81, NOT_HERE),
    ]
    assert service["metadata"]["ownerReferences"][0]["uid"] == imported["metadata"]["uid"]
    assert imported["spec"]["ips"] == ["10.96.0.1"]
    assert imported["metadata"]["annotations"] == {DERIVED: derived_name(*NAME)}
    assert [each["cluster"] for each in imported["status"]["clusters"]] == ["beta", "alpha"]


def test_one_that_only_others_export_selects_nobody() -> None:
    held = Api().settled(facts(exports=[export("beta")], service=LOCAL))
    assert held["Service"]["spec"]["selector"] == NOBODY
    assert [each["targetPort"] for each in held["Service"]["spec"]["ports"]] == [NOT_HERE]


def test_it_becomes_headless_and_back_as_another_service() -> None:
    api = Api()
    for kind, ip in (("ClusterSetIP", "10.96.0.1"), ("Headless", "None"), ("ClusterSetIP", "10.96.0.1")):
        held = api.settled(facts(exports=[export("beta", type=kind)]))
        assert (held["Service"]["spec"]["clusterIP"], held["ServiceImport"]["spec"]["type"]) == (ip, kind)
        assert held["ServiceImport"]["spec"].get("ips") == (None if ip == "None" else [ip])


FAMILIES: list[tuple[tuple[str, ...], list[tuple[str, ...]], tuple[str, ...]]] = [
    (FOUR, [FOUR], FOUR),
    (FOUR, [()], FOUR),
    (FOUR, [BOTH, FOUR], FOUR),
    (FOUR, [SIX], ()),
    (FOUR, [SIX, FOUR], ()),  # the older holds
    (BOTH, [BOTH, ()], BOTH),
    (BOTH, [()], BOTH),
    (BOTH, [BOTH, FOUR], FOUR),
    (BOTH, [BOTH, SIX], SIX),
    (BOTH, [SIX], SIX),
]


@pytest.mark.parametrize(("here", "exported", "expected"), FAMILIES)
@pytest.mark.parametrize("before", [None, [FOUR], [SIX], [BOTH]])
def test_it_is_called_by_the_families_that_all_exporters_and_this_cluster_have(
    here: tuple[str, ...],
    exported: list[tuple[str, ...]],
    expected: tuple[str, ...],
    before: list[tuple[str, ...]] | None,
) -> None:
    api = Api(*here)
    for families in filter(None, (before, exported)):
        exports = [export(f"c{number}", number, ip_families=each) for number, each in enumerate(families)]
        held = api.settled(facts(exports=exports), now=100)
    spec, (ready,) = held["ServiceImport"]["spec"], held["ServiceImport"]["status"]["conditions"]
    assert sorted(spec.get("ipFamilies", ())) == sorted(expected)
    assert spec.get("ips", []) == [ADDRESSES[each] for each in spec.get("ipFamilies", ())]
    assert (ready["type"], ready["status"], ready["reason"]) == (
        ("Ready", "True", "Ready") if expected else ("Ready", "False", "IPFamilyNotSupported")
    )
    if expected:
        assert held["Service"]["spec"]["ipFamilies"] == spec["ipFamilies"]


SAID: list[tuple[dict[str, Any], list[str]]] = [
    ({}, ["Valid True Valid", "Ready True Ready", "Conflict False NoConflicts"]),
    ({"in_mesh": False}, ["Valid False NamespaceNotGlobal", "Ready False Pending"]),
    ({"own": None, "service": None}, ["Valid False NoService", "Ready False Pending"]),
    (
        {"own": None, "service": Service(Metadata("cart"), ServiceSpec(type="ExternalName"))},
        ["Valid False InvalidServiceType", "Ready False Pending"],
    ),
    (
        {"service": Service(Metadata("cart"), ServiceSpec())},
        ["Valid True Valid", "Ready True Ready", "Conflict False NoConflicts"],
    ),
    (
        {"exports": [export("beta", 0, type="Headless")]},
        ["Valid True Valid", "Ready True Ready", "Conflict True TypeConflict"],
    ),
]


@pytest.mark.parametrize(("said", "expected"), SAID)
def test_an_exports_conditions_say_what_became_of_it_and_since_when(said: dict[str, Any], expected: list[str]) -> None:
    api, whole = Api(), facts(**{**own(), **said})
    assert whole.export is not None
    api.held["ServiceExport"] = {**whole.export, "status": {"conditions": [{"type": "Mine", "status": "True"}]}}
    api.settled(whole, now=100)
    mine, *told = api.held["ServiceExport"]["status"]["conditions"]
    assert mine == {"type": "Mine", "status": "True"}
    assert [f"{each['type']} {each['status']} {each['reason']}" for each in told] == expected
    before = len(api.written)
    assert {each["lastTransitionTime"] for each in told} == {"1970-01-01T00:01:40Z"}
    api.settled(whole, now=200)
    assert len(api.written) == before


def test_an_import_of_another_implementation_is_left_alone() -> None:
    api = Api()
    api.held["ServiceImport"] = {"metadata": {"name": "cart"}, "spec": {}}
    api.held["ServiceExport"] = own()["export"]
    api.settled(facts(**own()))
    assert [write.place.kind for write in api.written] == ["ServiceExport"]
    told = api.held["ServiceExport"]["status"]["conditions"]
    assert [each["reason"] for each in told if each["type"] == "Ready"] == ["Failed"]


def test_nothing_is_taken_away_for_a_cluster_that_is_not_heard_yet() -> None:
    api = Api()
    before = deepcopy(api.settled(facts(exports=[export("beta"), export("gamma", 2)])))
    assert api.settled(facts(exports=[export("gamma", 2)], unheard=frozenset({"beta"}))) == before
    assert api.settled(facts(unheard=frozenset({"gamma"}))) == before
    after = api.settled(facts(exports=[export("gamma", 2)], unheard=frozenset({"delta"})))
    assert [each["cluster"] for each in after["ServiceImport"]["status"]["clusters"]] == ["gamma"]
    assert api.settled(facts(unheard=frozenset({"delta"}))) == {}


def test_whatever_was_before_it_ends_as_if_it_had_always_been_so() -> None:
    draw, api = random.Random(4), Api()

    def some(cluster: str) -> ServiceExport:
        return export(
            cluster,
            draw.randint(0, 3),
            type=draw.choice(["ClusterSetIP", "ClusterSetIP", "Headless"]),
            ports=tuple(draw.sample([HTTP, MORE, ExportPort(port=80, name="web")], draw.randint(0, 2))),
            session_affinity=draw.choice(["None", "ClientIP"]),
            labels=draw.choice([{}, {"a": "b"}, {"c": "d"}]),
            annotations=draw.choice([{}, {"e": "f"}]),
            traffic_distribution=draw.choice(["", "PreferClose"]),
            internal_traffic_policy=draw.choice(["", "Local"]),
            ip_families=draw.choice([(), FOUR, SIX]),
        )

    for _ in range(800):
        mine = {"own": some("alpha"), "service": LOCAL} if draw.random() < 0.5 else {}
        others = [some(name) for name in ("beta", "gamma") if draw.random() < 0.6]
        now = facts(exports=others, in_mesh=draw.random() < 0.9, **mine)
        assert plain(api.settled(now)) == plain(Api().settled(now))


def plain(held: dict[str, Document]) -> Any:
    """But for who made it when, and whether it asked for one family or for all of one; an empty map is none."""
    found = deepcopy(held)
    for each in found.values():
        each.get("spec", {}).pop("ipFamilyPolicy", None)
        each["metadata"].pop("uid")
        each["metadata"].pop("ownerReferences", None)
        for key in ("labels", "annotations"):
            each["metadata"].get(key) or each["metadata"].pop(key, None)
    return found


PATCHES: list[tuple[Document, Document, Document | None]] = [
    ({"a": 1}, {"a": 1}, None),
    ({"a": 1, "b": 2}, {"a": 1}, None),
    ({"a": 1}, {"a": None}, {"a": None}),
    ({}, {"a": None}, None),
    ({"a": {"b": 1}}, {"a": {"b": 1, "c": None}}, None),
    ({"a": {"b": 1}}, {"a": {"b": 2, "c": 3}}, {"a": {"b": 2, "c": 3}}),
    ({"a": [1]}, {"a": [1, 2]}, {"a": [1, 2]}),
    ({"a": 5}, {"a": {"b": 1}}, {"a": {"b": 1}}),
]


@pytest.mark.parametrize(("held", "wanted", "expected"), PATCHES)
def test_what_is_written_is_the_difference(held: Document, wanted: Document, expected: Document | None) -> None:
    found = settle(PLACE, NAME, held, wanted)
    assert [each.body for each in found] == ([] if expected is None else [expected])


@pytest.mark.parametrize(
    "status",
    [None, {}, [], "x", {"conditions": None}, {"conditions": "x"}, {"conditions": [1, None, "x", {}]}]
    + [{"conditions": [{"type": "Valid", "status": status}]} for status in ("True", "False", 1)]
    + [{"clusters": clusters} for clusters in (None, "beta", [1, None], [{}], [{"cluster": 1}])],
)
def test_whatever_stands_in_a_status_by_anothers_definition_is_put_right(status: Any) -> None:
    said = own()
    said["export"] = {**said["export"], "status": status}
    held = {"metadata": {"uid": "1", "annotations": {DERIVED: derived_name(*NAME)}}, "spec": {}, "status": status}
    api = Api()
    api.held["ServiceImport"] = held
    found = api.settled(facts(**said, exports=[export("beta")], unheard={"gamma"}))
    assert [each["cluster"] for each in found["ServiceImport"]["status"]["clusters"]] == ["alpha", "beta"]
    conditions = found["ServiceExport"]["status"]["conditions"]
    assert {each["type"]: each["status"] for each in conditions if each.get("type")} == {
        "Valid": "True",
        "Ready": "True",
        "Conflict": "False",
    }
    assert all(each["lastTransitionTime"] for each in conditions if each.get("type"))


def test_while_another_exporter_is_not_heard_what_this_cluster_withdraws_is_called_no_more() -> None:
    api = Api()
    held = api.settled(facts(**own(), exports=[export("beta", 0)]))
    assert held["Service"]["spec"]["selector"] == {"app": "cart"}
    before = deepcopy(held["ServiceImport"])
    del held["ServiceExport"]
    after = api.settled(facts(unheard={"beta"}))
    assert after["Service"]["spec"]["selector"] == NOBODY
    assert after["ServiceImport"] == before
    new = own()
    after = api.settled(facts(**new, unheard={"beta"}))
    (condition,) = after["ServiceExport"]["status"]["conditions"]
    assert (condition["type"], condition["status"], condition["reason"]) == ("Ready", "False", "Pending")
    assert condition["message"].startswith("not heard: beta, where it is exported, too")
    assert after["Service"]["spec"]["selector"] == NOBODY
    after = api.settled(facts(**own(), exports=[export("beta", 0)]))
    assert after["Service"]["spec"]["selector"] == {"app": "cart"}


def test_no_message_is_longer_than_the_api_takes_however_much_clusters_disagree_on() -> None:
    much = {f"a{number}": "b" * 60 for number in range(1000)}
    ports = tuple(ExportPort(port=number, name=f"p{number}") for number in range(1, 2000))
    held = Api().settled(
        facts(**own(), exports=[export("beta", 0, annotations=much, labels=much, ports=ports)], faults=["x" * 50_000])
    )
    conditions = held["ServiceExport"]["status"]["conditions"]
    assert len(conditions) == 3
    assert all(1 < len(each["message"]) <= 32768 for each in conditions)


def test_what_the_api_may_not_know_is_asked_of_it_alone() -> None:
    """An older one refuses words for trafficDistribution that another cluster's knows."""
    api = Api()
    held = api.settled(facts(**own(), exports=[export("beta", 0)]))
    now = facts(
        exports=[export("beta", 0, traffic_distribution="PreferSameNode")],
        held=held["ServiceImport"],
        derived=held["Service"],
    )
    patches = [each.body for each in writes(now, 0) if each.place == PLACE]
    assert [body["spec"] for body in patches if body and "trafficDistribution" in body["spec"]] == [
        {"trafficDistribution": "PreferSameNode"}
    ]
    assert {"spec": {"selector": {**NOBODY, "app": None}}} in patches, "withdrawn by itself"
