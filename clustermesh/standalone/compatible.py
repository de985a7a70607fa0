"""Whether two clusters can be connected: everything that is checked before `connect` touches a file.

What is wrong is said with field, value and rule: found later, each of these is a cluster that drops another's entries
one by one, or packets that go to the wrong pod.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path

from msgspec import Struct

from clustermesh.address import Prefix, contains, family_length, nobodys, parse, prefix_text, single
from clustermesh.errors import ClusterMeshError, Invalid
from clustermesh.mesh.authority import Authority, Ground, Place, judge_prefix
from clustermesh.mesh.peer_files import PeerFile
from clustermesh.standalone.context import CLUSTER_FILE, Context, load
from clustermesh.standalone.pod_cidrs import find_overlap, read_pod_cidrs
from clustermesh.store import endpoint as etcd_endpoint


class Known(Struct, frozen=True, kw_only=True):
    """A cluster that is connected already, as far as it is known: `context` is None where its folder is not at hand."""

    name: str
    id: int | None
    endpoints: tuple[str, ...]
    context: Context | None


def known_clusters(peers: Mapping[str, PeerFile]) -> list[Known]:
    """The clusters in a peers folder, with their folders where those can be read and are still theirs."""
    return [_known(peer) for peer in peers.values()]


def check_pair(source: Context, destination: Context) -> None:
    """Raises Invalid when the two cannot be in one mesh, whoever else is in it."""
    if source.path == destination.path:
        raise Invalid("destination-context", str(destination.path), "is this cluster's own folder; give another one")
    if source.name == destination.name:
        rule = f"is the name of both {source.path} and {destination.path}; names must differ within a mesh"
        raise Invalid("cluster name", source.name, rule)
    if source.id == destination.id:
        rule = f"is the id of both {source.name} and {destination.name}; ids must differ within a mesh"
        raise Invalid("cluster id", source.id, rule)
    if source.endpoint == destination.endpoint:
        raise _at_one_endpoint(destination, source.name, "")
    if source.max_clusters != destination.max_clusters:
        rule = f"must be {source.max_clusters} as in {source.name}: the number decides how identities are numbered"
        raise Invalid(f"maxConnectedClusters of {destination.name}", destination.max_clusters, rule)
    _check_cidrs(source, destination, "")


def check_newcomer(home: Context, newcomer: Context, connected: list[Known]) -> None:
    """Raises Invalid when `newcomer` cannot be connected to `home` because of a cluster that already is."""
    for other in connected:
        if other.name == newcomer.name:
            _check_same(home, newcomer, other)
            continue
        if other.id == newcomer.id:
            rule = (
                f"is already the id of {other.name}, which is connected to {home.name}; ids must differ within a mesh"
            )
            raise Invalid(f"cluster id of {newcomer.name}", newcomer.id, rule)
        if newcomer.endpoint in other.endpoints:
            raise _at_one_endpoint(newcomer, other.name, f", which is connected to {home.name}")
        if other.context is not None:
            _check_cidrs(other.context, newcomer, f", which is connected to {home.name}")


def check_allowed(source: Context, allowed: Sequence[Prefix], both: bool) -> None:
    """Raises Invalid for what never holds pods of a cluster that `source` reads, or that reads it where `both` do."""
    instead = "name the prefixes that the other cluster's pods are in"
    for prefix in allowed:
        spelled = prefix_text(prefix)
        if not family_length(prefix):
            raise Invalid("allow-prefix", spelled, f"holds every address; {instead}")
        if clash := nobodys(prefix):
            raise Invalid(
                "allow-prefix", spelled, f"overlaps {prefix_text(clash)}, where no cluster has pods; {instead}"
            )
        needed = both and judge_prefix(Authority(name=source.name), prefix, Ground()) is not None
        for own in read_pod_cidrs(source.manifests, source.name) if not needed else ():
            if contains(own.prefix, prefix.address) and own.prefix.length <= prefix.length:
                raise Invalid("allow-prefix", spelled, f"is {source.name}'s own: {own}; {instead}")


def check_authority(
    reader: Context, owner: Context, allowed: tuple[Prefix, ...], connected: Mapping[str, PeerFile]
) -> None:
    """Raises Invalid when the agents of `reader`, who goes by `allowed`, would refuse a Node of `owner`.

    They know more: what is in the way on their own machines is found there only.
    """
    endpoints = {owner.name: (owner.endpoint,), reader.name: (reader.endpoint,)}
    ground = Ground(_etcds({**{name: file.endpoints for name, file in connected.items()}, **endpoints}))
    authority = Authority(name=owner.name, allowed=allowed)
    for cidr in read_pod_cidrs(owner.manifests, owner.name):
        if refusal := judge_prefix(authority, cidr.prefix, ground):
            spelled = prefix_text(cidr.prefix)
            rule = f"would be refused by {reader.name}: {refusal.why.removeprefix(f'pod CIDR {spelled} ')}"
            raise Invalid(f"pod CIDR of node {cidr.node} in {owner.name}", spelled, rule)


def _etcds(endpoints: Mapping[str, Sequence[str]]) -> Iterator[Place]:
    """Those that are called by an address; names may be others where the agents are."""
    for name, urls in endpoints.items():
        for url in urls:
            with suppress(Invalid):
                address = parse(etcd_endpoint.parse(url).host)
                yield Place(single(address), f"the etcd of {name}", lifeline=True, cluster=name)


def _check_same(home: Context, newcomer: Context, other: Known) -> None:
    # The same name from elsewhere: another cluster if its folder still stands, the same one moved if not.
    if other.context is not None and other.context.path != newcomer.path:
        rule = f"is already connected to {home.name} from {other.context.path}; disconnect that one first"
        raise Invalid("cluster name", newcomer.name, rule)


def _at_one_endpoint(cluster: Context, other: str, other_is: str) -> Invalid:
    where = cluster.path / CLUSTER_FILE
    rule = f"is that of {other}, too{other_is}; each cluster has an etcd of its own: correct the endpoint in {where}"
    return Invalid(f"endpoint of {cluster.name}", cluster.endpoint, rule)


def _check_cidrs(first: Context, second: Context, first_is: str) -> None:
    ours, theirs = read_pod_cidrs(first.manifests, first.name), read_pod_cidrs(second.manifests, second.name)
    overlap = find_overlap(ours, theirs)
    if overlap is not None:
        mine, other = overlap
        rule = f"overlaps {mine}{first_is}; pod CIDRs must be apart within a mesh"
        raise Invalid(f"pod CIDR of node {other.node} in {second.name}", prefix_text(other.prefix), rule)


def _known(peer: PeerFile) -> Known:
    context = None if peer.context is None else _load(peer.context, peer.name)
    number = peer.cluster_id if context is None else context.id
    return Known(name=peer.name, id=number, endpoints=peer.endpoints, context=context)


def _load(path: Path, name: str) -> Context | None:
    try:
        context = load(path)
    except ClusterMeshError:
        return None
    return context if context.name == name else None
