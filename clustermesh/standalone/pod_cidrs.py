"""The pod CIDRs of a cluster's Nodes, and whether two clusters have any address in common.

Used before two clusters are connected: with one address in both, a packet for it has two right places to go. The
manifests are read leniently, since judging them is the business of `clustermesh.sources`: what is no Node is skipped.
"""

from __future__ import annotations

import ipaddress
import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, Final, NamedTuple

from clustermesh.errors import ClusterMeshError
from clustermesh.yaml_file import parse_documents, read_bytes

MAX_MANIFEST_BYTES: Final = 64 << 20
_SUFFIXES: Final = (".yaml", ".yml", ".json")
Network = ipaddress.IPv4Network | ipaddress.IPv6Network


class PodCidr(NamedTuple):
    """A network that the node `node` of the cluster `cluster` hands out to its pods."""

    network: Network
    cluster: str
    node: str

    def __str__(self) -> str:
        return f"{self.network} of node {self.node} in {self.cluster}"


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
    sides.sort(key=lambda item: _order(item[1].network))
    widest: list[PodCidr | None] = [None, None]
    for side, cidr in sides:
        other = widest[1 - side]
        if other is not None and cidr.network.version == other.network.version and cidr.network.overlaps(other.network):
            return (other, cidr) if side else (cidr, other)
        own = widest[side]
        if own is None or _end(cidr.network) > _end(own.network):
            widest[side] = cidr
    return None


def _order(network: Network) -> tuple[int, int, int]:
    return network.version, int(network.network_address), network.prefixlen


def _end(network: Network) -> tuple[int, int]:
    return network.version, int(network.broadcast_address)


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
            yield PodCidr(ipaddress.ip_network(str(text), strict=False), cluster, str(metadata.get("name")))
        except ValueError:
            continue


def _mapping(value: object) -> dict[Any, Any]:
    return value if isinstance(value, dict) else {}
