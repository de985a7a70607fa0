"""The Nodes of a cluster, translated again only where a change reaches: no two may have one address or pod CIDR."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TypeVar, cast

from clustermesh import model
from clustermesh.address import BITS, to_int
from clustermesh.errors import Invalid
from clustermesh.model import Cluster
from clustermesh.sources.cilium import translate_cilium_node
from clustermesh.sources.cilium_objects import CiliumNode
from clustermesh.sources.faults import Fault, Faults
from clustermesh.sources.nodes import translate_nodes
from clustermesh.sources.objects import Node, Ref
from clustermesh.sources.rules import parse_cidr, parse_ip
from clustermesh.sources.spans import Span, Spans

T = TypeVar("T")


class NodeTable:
    """Nodes and CiliumNodes; of one name, the CiliumNode counts. `put` them, then `flush`."""

    def __init__(self, cluster: Cluster) -> None:
        self._cluster = cluster
        self._objects: dict[Ref, Node | CiliumNode] = {}
        self._spans = Spans()
        self._dirty: set[str] = set()
        self._faults: dict[str, list[Fault]] = {}

    def put(self, ref: Ref, value: Node | CiliumNode | None) -> None:
        """What `ref` is now, or that it is gone."""
        if value is None:
            self._objects.pop(ref, None)
        else:
            self._objects[ref] = value
        node = None if _cilium(ref.name) in self._objects else self._objects.get(_plain(ref.name))
        self._dirty |= {ref.name} | self._spans.put(ref.name, list(_spans(cast(Node, node))) if node else ())

    def flush(self) -> dict[str, model.Node | None]:
        """Every node that may say something else by what was put, and what it says; None for none."""
        if not self._dirty:
            return {}
        names, self._dirty = self._spans.closure(self._dirty), set()
        faults = Faults()
        found: dict[str, model.Node | None] = dict.fromkeys(sorted(names))
        plain: dict[Ref, Node] = {}
        for name in found:
            value = self._objects.get(_cilium(name)) or self._objects.get(_plain(name))
            if isinstance(value, CiliumNode):
                found[name] = translate_cilium_node(self._cluster, _cilium(name), value, faults)
            elif value is not None:
                plain[_plain(name)] = value
        found |= translate_nodes(self._cluster, plain, faults)
        self._keep(names, faults)
        return found

    def faults(self) -> Iterator[Fault]:
        for name in sorted(self._faults):
            yield from self._faults[name]

    def _keep(self, names: set[str], faults: Faults) -> None:
        for name in names:
            self._faults.pop(name, None)
        for fault in faults:
            self._faults.setdefault(fault.ref.name, []).append(fault)


def _plain(name: str) -> Ref:
    return Ref("Node", "", name)


def _cilium(name: str) -> Ref:
    return Ref("CiliumNode", "", name)


def _spans(node: Node) -> Iterator[Span]:
    """What may be another Node's, too; what cannot be read is nobody's."""
    for address in node.status.addresses:
        if (ip := _read(parse_ip, address.address)) is not None:
            yield to_int(ip), to_int(ip)
    for text in node.spec.pod_cidrs or [node.spec.pod_cidr]:
        if (cidr := _read(parse_cidr, text)) is not None:
            yield to_int(cidr.address), to_int(cidr.address) + (1 << (BITS - cidr.length)) - 1


def _read(parse: Callable[[str, str], T], text: str) -> T | None:
    try:
        return parse("", text)
    except Invalid:
        return None
