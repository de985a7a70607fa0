"""The Kubernetes objects a mesh is made of, with the fields it uses. Unknown fields pass; known ones are strict.

Checked here is what the API server of Kubernetes would refuse outright (types, names, labels). What can be refused in
part, such as one address of many, is left to `services`, `nodes` and `pods`.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Final, NamedTuple, TypeAlias

import msgspec
from msgspec import Struct, field

from clustermesh.errors import DecodeError, Invalid
from clustermesh.sources.rules import check_dns_label, check_dns_subdomain, check_labels


class Metadata(Struct, frozen=True, gc=False, rename="camel"):
    name: str
    namespace: str = ""
    labels: dict[str, str] = {}
    annotations: dict[str, str] = {}


class Namespace(Struct, frozen=True, gc=False):
    metadata: Metadata


class Address(Struct, frozen=True, gc=False):
    type: str
    address: str


class NodeInfo(Struct, frozen=True, gc=False):
    boot_id: str = field(default="", name="bootID")


class NodeStatus(Struct, frozen=True, gc=False, rename="camel"):
    addresses: list[Address] = []
    node_info: NodeInfo = NodeInfo()


class NodeSpec(Struct, frozen=True, gc=False):
    pod_cidr: str = field(default="", name="podCIDR")
    pod_cidrs: list[str] = field(default_factory=list, name="podCIDRs")


class Node(Struct, frozen=True, gc=False):
    metadata: Metadata
    spec: NodeSpec = NodeSpec()
    status: NodeStatus = NodeStatus()


class ContainerPort(Struct, frozen=True, gc=False, rename="camel"):
    container_port: int
    name: str = ""
    protocol: str = "TCP"


class Container(Struct, frozen=True, gc=False):
    ports: list[ContainerPort] = []


class PodSpec(Struct, frozen=True, gc=False, rename="camel"):
    node_name: str = ""
    host_network: bool = False
    service_account_name: str = "default"
    hostname: str = ""
    subdomain: str = ""
    containers: list[Container] = []


class PodIP(Struct, frozen=True, gc=False):
    ip: str


class Condition(Struct, frozen=True, gc=False):
    type: str
    status: str


class PodStatus(Struct, frozen=True, gc=False):
    phase: str = ""
    pod_ip: str = field(default="", name="podIP")
    pod_ips: list[PodIP] = field(default_factory=list, name="podIPs")
    host_ip: str = field(default="", name="hostIP")
    conditions: list[Condition] = []


class Pod(Struct, frozen=True, gc=False):
    metadata: Metadata
    spec: PodSpec = PodSpec()
    status: PodStatus = PodStatus()


class ServicePort(Struct, frozen=True, gc=False, rename="camel"):
    port: int
    name: str = ""
    protocol: str = "TCP"
    target_port: int | str | None = None


class ServiceSpec(Struct, frozen=True, gc=False):
    type: str = "ClusterIP"
    cluster_ip: str = field(default="", name="clusterIP")
    cluster_ips: list[str] = field(default_factory=list, name="clusterIPs")
    ports: list[ServicePort] = []
    selector: dict[str, str] = {}
    publish_not_ready: bool = field(default=False, name="publishNotReadyAddresses")


class Service(Struct, frozen=True, gc=False):
    metadata: Metadata
    spec: ServiceSpec = ServiceSpec()


class EndpointPort(Struct, frozen=True, gc=False):
    name: str | None = None
    port: int | None = None
    protocol: str | None = None


class Conditions(Struct, frozen=True, gc=False):
    ready: bool | None = None
    serving: bool | None = None


class ZoneHint(Struct, frozen=True, gc=False):
    name: str


class Hints(Struct, frozen=True, gc=False, rename="camel"):
    for_zones: list[ZoneHint] = []


class SliceEndpoint(Struct, frozen=True, gc=False):
    addresses: list[str]
    conditions: Conditions = Conditions()
    hostname: str = ""
    zone: str = ""
    hints: Hints = Hints()


class EndpointSlice(Struct, frozen=True, gc=False, rename="camel"):
    metadata: Metadata
    address_type: str
    endpoints: list[SliceEndpoint] = []
    ports: list[EndpointPort] = []


Object: TypeAlias = Namespace | Node | Pod | Service | EndpointSlice


class Ref(NamedTuple):
    """What names an object: its kind, its namespace ("" for Namespace and Node) and its name."""

    kind: str
    namespace: str
    name: str

    def __str__(self) -> str:
        return f"{self.kind} {self.namespace}/{self.name}" if self.namespace else f"{self.kind} {self.name}"


class _Kind(NamedTuple):
    group: str
    type: type[Object]
    namespaced: bool = True


_KINDS: Final = {
    "Namespace": _Kind("", Namespace, namespaced=False),
    "Node": _Kind("", Node, namespaced=False),
    "Pod": _Kind("", Pod),
    "Service": _Kind("", Service),
    "EndpointSlice": _Kind("discovery.k8s.io", EndpointSlice),
}
_TEXT_MAPS: Final = frozenset(["labels", "annotations", "selector"])
_PATH: Final = re.compile(r" - at `(?:key in )?\$?\.?(.*)`$")
_STEP: Final = re.compile(r"([^.\[\]]+)|\[(\d+|\.\.\.)\]")


def decode_objects(document: object) -> Iterator[tuple[Ref, Object] | Invalid]:
    """The objects of one document, a List's items each by itself; kinds that no mesh is made of are passed over."""
    if not isinstance(document, dict):
        yield DecodeError("document", document, "must be a mapping with apiVersion, kind and metadata")
        return
    kind, items = document.get("kind"), document.get("items")
    if isinstance(kind, str) and kind.endswith("List") and isinstance(items, list):
        for number, item in enumerate(items):
            yield from _decode_item(f"items[{number}].", _with_kind(item, document, kind.removesuffix("List")))
    else:
        yield from _decode_item("", document)


def _with_kind(item: object, parent: Mapping[str, object], kind: str) -> object:
    """Items of a typed list (ServiceList) may leave out what the list has said."""
    if not (isinstance(item, dict) and kind):
        return item
    return {"apiVersion": parent.get("apiVersion"), "kind": kind, **item}


def _decode_item(prefix: str, document: object) -> Iterator[tuple[Ref, Object] | Invalid]:
    try:
        found = _decode(document)
    except Invalid as e:
        yield DecodeError(prefix + e.field, e.value, e.rule)
        return
    if found is not None:
        yield found


def _decode(document: object) -> tuple[Ref, Object] | None:
    if not isinstance(document, dict) or not isinstance(document.get("kind"), str):
        raise DecodeError("kind", document, "must be there, beside apiVersion and metadata")
    name = document["kind"]
    kind = _KINDS.get(name)
    group, _, version = str(document.get("apiVersion", "")).rpartition("/")
    if kind is None or (group != kind.group and version):
        return None
    if version != "v1":
        expected = f"{kind.group}/v1".lstrip("/")
        raise DecodeError("apiVersion", document.get("apiVersion"), f"must be {expected} for a {name}")
    found = _convert(document, kind.type)
    namespace = (found.metadata.namespace or "default") if kind.namespaced else ""
    _check(found, kind, namespace)
    return Ref(name, namespace, found.metadata.name), found


def _check(found: Object, kind: _Kind, namespace: str) -> None:
    check_name = check_dns_label if kind.type in (Namespace, Service) else check_dns_subdomain
    check_name("metadata.name", found.metadata.name)
    if kind.namespaced:
        check_dns_label("metadata.namespace", namespace)
    check_labels("metadata.labels", found.metadata.labels)
    if isinstance(found, Service):
        check_labels("spec.selector", found.spec.selector)


def _convert(document: dict[str, object], kind: type[Object]) -> Object:
    try:
        return msgspec.convert(document, kind)
    except msgspec.ValidationError:
        pass  # perhaps only for a null, which Kubernetes takes as "absent"; documents without one never pay for this
    plain = _without_nulls(document, text_map=False)
    try:
        return msgspec.convert(plain, kind)
    except msgspec.ValidationError as e:
        raise _explain(str(e), plain) from e


def _without_nulls(value: object, *, text_map: bool) -> object:
    """Nulls left out; in a map of texts, as labels are, a null is the empty text."""
    if isinstance(value, dict):
        if text_map:
            return {key: "" if item is None else item for key, item in value.items()}
        return {k: _without_nulls(v, text_map=k in _TEXT_MAPS) for k, v in value.items() if v is not None}
    if isinstance(value, list):
        return [_without_nulls(item, text_map=False) for item in value]
    return value


def _explain(message: str, document: object) -> DecodeError:
    """msgspec's sentence ("Expected `int`, got `str` - at `$.spec.ports[0].port`") as field, value and rule."""
    found = _PATH.search(message)
    path = found.group(1) if found else ""
    rule = (message[: found.start()] if found else message).replace("`", "")
    value, shown = _follow(document, path)
    if isinstance(value, bool | int | float) and "Expected str" in rule:
        rule += " (write it in quotes)"
    return DecodeError(shown or "document", value, rule[0].lower() + rule[1:])


def _follow(value: object, path: str) -> tuple[object, str]:
    """The value at `path`, and the path with msgspec's "[...]" (some key of a map) made the first key at fault."""
    shown = ""
    for name, index in _STEP.findall(path):
        if index == "..." and isinstance(value, dict):
            key = next((k for k, v in value.items() if not isinstance(v, str)), "")
            value, shown = value.get(key), f"{shown}[{key}]"
        elif index and isinstance(value, list):
            value, shown = value[int(index)], f"{shown}[{index}]"
        elif isinstance(value, dict):
            value, shown = value.get(name), f"{shown}.{name}" if shown else name
    return value, shown
