"""The pod CIDRs of a cluster's Nodes, and whether two clusters have any address in common.

Used before two clusters are connected: with one address in both, a packet for it has two right places to go. The
manifests are read leniently, since judging them is the business of `clustermesh.sources`: what is no Node is skipped.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, Final, NamedTuple

from clustermesh.address import Prefix, overlaps, parse_prefix, prefix_text
from clustermesh.errors import ClusterMeshError, Invalid
from clustermesh.yaml_file import parse_documents, read_bytes

MAX_MANIFEST_BYTES: Final = 64 << 20
_SUFFIXES: Final = (".yaml", ".yml", ".json")


class PodCidr(NamedTuple):
    """A CIDR that the node `node` of the cluster `cluster` hands out to its pods."""

    prefix: Prefix
    cluster: str
    node: str

    def __str__(self) -> str:
        return f"{prefix_text(self.prefix)} of node {self.node} in {self.cluster}"


def read_pod_cidrs(manifests: Path, cluster: str) -> list[PodCidr]:
    """Every pod CIDR in the YAML and JSON files below `manifests`; what cannot be read is left out."""
    found: dict[PodCidr, None] = {}
    for path in sorted(manifests.rglob("*")):
        if path.suffix in _SUFFIXES:
            found.update(dict.fromkeys(_in_file(path, cluster)))
    return list(found)


def find_overlap(first: Iterable[PodCidr], second: Iterable[PodCidr]) -> tuple[PodCidr, PodCidr] | None:
    """One pair from `first` and `second` with an address in common, or None. Takes n log n, for thousands of nodes."""
    # Networks nest or are apart, never half over each other. So in order of first address, then widest first, a network
    # overlaps an earlier one only if it lies within the last of the other side that began before it.
    sides = [(0, cidr) for cidr in first] + [(1, cidr) for cidr in second]
    sides.sort(key=lambda item: item[1].prefix)
    widest: list[PodCidr | None] = [None, None]
    for side, cidr in sides:
        other = widest[1 - side]
        if other is not None and overlaps(cidr.prefix, other.prefix):
            return (other, cidr) if side else (cidr, other)
        own = widest[side]
        if own is None or not overlaps(own.prefix, cidr.prefix):  # nested in `own`, it ends before it
            widest[side] = cidr
    return None


def _in_file(path: Path, cluster: str) -> Iterator[PodCidr]:
    try:
        data = read_bytes(path, MAX_MANIFEST_BYTES)
        if b"podCIDR" not in data:  # parsing a large folder takes seconds, and few of its files hold Nodes
            return
        # JSON writes what is beyond 16 bits as two escapes, which YAML forbids.
        documents = [json.loads(data)] if path.suffix == ".json" else parse_documents(data, str(path))
    except (ClusterMeshError, ValueError, RecursionError):
        return
    for document in documents:
        yield from _in_object(document, cluster)


def _in_object(document: object, cluster: str) -> Iterator[PodCidr]:
    if not isinstance(document, dict):
        return
    items = document.get("items")
    if isinstance(items, list):  # `kubectl get nodes -o yaml` writes a List
        for item in items:
            if isinstance(item, dict) and "items" not in item:
                yield from _in_object(item, cluster)
    if document.get("kind") != "Node":
        return
    metadata, spec = _mapping(document.get("metadata")), _mapping(document.get("spec"))
    several = spec.get("podCIDRs")
    for text in [spec.get("podCIDR"), *(several if isinstance(several, list) else [])]:
        try:
            yield PodCidr(parse_prefix(str(text)), cluster, str(metadata.get("name")))
        except Invalid:
            continue  # nor does the API server publish it


def _mapping(value: object) -> dict[Any, Any]:
    return value if isinstance(value, dict) else {}
