"""Whether clusters can be joined: everything, said at once, before anything is written. Pure.

What is wrong names field, value and rule: found later, each of these is a cluster that drops another's entries one by
one, or packets that go to the wrong pod.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from datetime import datetime
from itertools import combinations
from typing import Final

from certs.errors import CertsError
from clustermesh.address import Prefix, contains, family_length, is_address, nobodys, parse, prefix_text, single
from clustermesh.errors import ClusterMeshError, Invalid, Refused
from clustermesh.joining import names
from clustermesh.joining.links import Link, check_server, credentials, entries, known_peers, url_host
from clustermesh.joining.member import Member
from clustermesh.joining.secret_sizes import Room
from clustermesh.joining.versions import is_skewed
from clustermesh.mesh.authority import Authority, Ground, Place, judge_prefix
from clustermesh.mesh.peer_files import PeerFile
from clustermesh.standalone.pod_cidrs import find_overlap
from clustermesh.store import endpoint as etcd_endpoint

_MOST_NAMED: Final = 10
"""Prefixes of one cluster that are refused, of which each has a sentence."""


def find_problems(members: Sequence[Member], links: Sequence[Link], now: datetime) -> list[ClusterMeshError]:
    """Why `members`, between whom `links` are wanted, cannot be in one mesh; none where they can."""
    found = [problem for pair in combinations(members, 2) for problem in check_pair(*pair)]
    if any(first.name == second.name for first, second in combinations(members, 2)):
        return found  # all else would speak of a cluster and itself
    shown = list[tuple[Link, Mapping[str, bytes]]]()
    for link in links:
        found += _check_newcomer(link)
        try:
            shown.append((link, credentials(link, now)))
        except CertsError as e:
            found.append(_no_credentials(link, e))
        found += [*_check_trust(link, now), *_check_prefixes(link)]
    found += _check_room(members, shown)
    return list({str(problem): problem for problem in found}.values())


def check_pair(first: Member, second: Member) -> Iterator[ClusterMeshError]:
    """What keeps the two apart, whoever else is in the mesh."""
    ours, theirs = first.cluster, second.cluster
    if ours.name == theirs.name:
        both = f"{_where(first)} and {_where(second)}"
        rule = f"is the name of both {both}: set another cluster.name in one, or name another context"
        yield Invalid("cluster name", ours.name, rule)
        return
    if ours.id == theirs.id:
        both = f"{ours.name} and {theirs.name}"
        rule = f"is the id of both {both}: ids must differ within a mesh; set another cluster.id in one"
        yield Invalid("cluster id", ours.id, rule)
    if ours.max_clusters != theirs.max_clusters:
        why = "it decides how identities are numbered; set clustermesh.maxConnectedClusters"
        rule = f"must be {ours.max_clusters} as in {ours.name}: {why}"
        yield Invalid(f"maxConnectedClusters of {theirs.name}", theirs.max_clusters, rule)
    if first.encryption != second.encryption:
        why = "nodes that encrypt and nodes that do not drop each other's packets"
        rule = f"must be {first.encryption} as in {ours.name}: {why}"
        yield Invalid(f"encryption of {theirs.name}", second.encryption, rule)
    if first.entrance is not None and first.entrance == second.entrance:
        remedy = "correct it with --source-endpoint or --destination-endpoint"
        rule = f"is that of {ours.name}, too: each cluster has an etcd of its own; {remedy}"
        yield Invalid(f"endpoint of {theirs.name}", str(second.entrance), rule)
    yield from _check_versions(first, second)
    if overlap := find_overlap(first.pod_cidrs, second.pod_cidrs):
        mine, other = overlap
        rule = f"overlaps {mine}: pod CIDRs must be apart within a mesh; give one of the two clusters another range"
        yield Invalid(f"pod CIDR of node {other.node} in {other.cluster}", prefix_text(other.prefix), rule)


def check_allowed(links: Sequence[Link], allowed: Sequence[Prefix]) -> Iterator[ClusterMeshError]:
    """What never holds another cluster's pods must not be allowed to."""
    for prefix in allowed:
        spelled, instead = prefix_text(prefix), "name the prefixes that the other cluster's pods are in"
        if not family_length(prefix):
            yield Invalid("allow-prefix", spelled, f"holds every address; {instead}")
        elif clash := nobodys(prefix):
            yield Invalid(
                "allow-prefix", spelled, f"overlaps {prefix_text(clash)}, where no cluster has pods; {instead}"
            )
        elif own := _own_alone(links, prefix):
            yield Invalid("allow-prefix", spelled, f"is {own}'s own, and no other's; {instead}")


def _own_alone(links: Sequence[Link], prefix: Prefix) -> str:
    """Who reads others and has pods there, where no cluster that is read has."""
    if any(
        _holds(prefix, cidr.prefix) or _holds(cidr.prefix, prefix) for link in links for cidr in link.owner.pod_cidrs
    ):
        return ""
    inside = (link.reader.name for link in links for cidr in link.reader.pod_cidrs if _holds(cidr.prefix, prefix))
    return next(inside, "")


def _check_versions(first: Member, second: Member) -> Iterator[ClusterMeshError]:
    """One minor version apart at most, as Cilium promises; of other products nothing is known."""
    ours, theirs = first.version, second.version
    if ours is not None and theirs is not None and is_skewed(ours, theirs):
        rule = f"is more than one minor version from {ours.number} of {first.name}: upgrade the older of the two first"
        yield Invalid(f"version of {second.name}", theirs.number, rule)


def _check_newcomer(link: Link) -> Iterator[ClusterMeshError]:
    """What the reader already reads, and the owner would be taken for."""
    reader, owner = link.reader, link.owner
    for name, other in known_peers(reader.entries).items():
        if name == owner.name:
            continue
        whose = f"of {name}, which is connected to {reader.name}"
        remedy = f"if {name} is gone, `clustermesh disconnect{_option(reader)} --peer {name}`"
        if other.cluster_id == owner.cluster.id:
            rule = f"is already the id {whose}: ids must differ within a mesh; {remedy}"
            yield Invalid(f"cluster id of {owner.name}", owner.cluster.id, rule)
        if _places(other) & {(host, link.entrance.port) for host in link.entrance.hosts}:
            rule = f"is already that {whose}: each cluster has an etcd of its own; {remedy}"
            yield Invalid(f"endpoint of {owner.name}", str(link.entrance), rule)


def _places(peer: PeerFile) -> set[tuple[str, int]]:
    urls = [etcd_endpoint.parse(url) for url in peer.endpoints]
    return {(host, url.port) for url in urls for host in peer.host_aliases.get(url.host, (url.host,))}


def _no_credentials(link: Link, error: CertsError) -> Refused:
    reader, owner = link.reader, link.owner
    return Refused(
        f"{owner.name} would not let {reader.name} in: what {reader.name} shows (Secret {names.REMOTE_CERT}) is "
        f"not signed by {owner.name}'s authority, and that cannot sign another: {error}: put ca.key into the Secret "
        f"{names.AUTHORITY} of {_where(owner)}, or give both clusters one authority; where `certs status` says that it "
        "is being replaced, that has to end"
    )


def _check_room(
    members: Sequence[Member], shown: Iterable[tuple[Link, Mapping[str, bytes]]]
) -> Iterator[ClusterMeshError]:
    """Whether each of `members` has room for all that it is to read, which is shown those files."""
    rooms = {
        each.name: (Room(each.name, names.PEERS, each.peers), Room(each.name, names.COPIED, each.copied))
        for each in members
    }
    for link, files in shown:
        for room, data in zip(rooms[link.reader.name], entries(link, files), strict=True):
            if full := room.take(link.owner.name, data):
                yield full


def _check_trust(link: Link, now: datetime) -> Iterator[ClusterMeshError]:
    reader, owner = link.reader, link.owner
    try:
        check_server(link, now)
    except CertsError as e:
        hosts = ", ".join(url_host(url) for url in link.entrance.endpoints(owner.name))
        yield Refused(
            f"{reader.name} would not trust {owner.name} at {link.entrance}: {e}: issue the Secret {names.SERVER_CERT} "
            f"of {_where(owner)} again with {hosts} among its names, in the chart's "
            "clustermesh.apiserver.tls.server.extraDnsNames"
        )


def _check_prefixes(link: Link) -> Iterator[ClusterMeshError]:
    """Prefixes of the owner's pods that the reader's agents would refuse, as far as that is known from here."""
    reader, owner = link.reader, link.owner
    peers = known_peers(reader.entries).items()
    reached: dict[str, Sequence[str]] = {name: [host for host, _ in _places(file)] for name, file in peers} | {
        owner.name: link.entrance.hosts
    }
    if reader.entrance is not None:
        reached[reader.name] = reader.entrance.hosts
    ground, authority, more = Ground(_etcds(reached)), Authority(name=owner.name, allowed=link.allowed), -_MOST_NAMED
    for cidr in owner.pod_cidrs:
        if refusal := judge_prefix(authority, cidr.prefix, ground):
            more += 1
            if more <= 0:
                spelled = prefix_text(cidr.prefix)
                rule = f"would be refused by {reader.name}: {refusal.why.removeprefix(f'pod CIDR {spelled} ')}"
                yield Invalid(f"pod CIDR of node {cidr.node} in {owner.name}", spelled, rule)
    if more > 0:
        yield Refused(f"{more} more pod CIDRs of {owner.name} would be refused by {reader.name}")


def _etcds(reached: Mapping[str, Sequence[str]]) -> Iterator[Place]:
    for name, hosts in reached.items():
        for host in filter(is_address, hosts):
            with suppress(Invalid):
                yield Place(single(parse(host)), f"the etcd of {name}", lifeline=True, cluster=name)


def _holds(around: Prefix, prefix: Prefix) -> bool:
    return contains(around, prefix.address) and around.length <= prefix.length


def _where(member: Member) -> str:
    return f"context {member.context}" if member.context else "the current context"


def _option(member: Member) -> str:
    return f" --context {member.context}" if member.context else ""
