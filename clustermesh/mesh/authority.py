"""What each cluster may say, and what nobody may take, as data; the judgements on pod CIDRs and addresses. Pure.

A prefix of another cluster's pods
- is never what no cluster has (loopback, link-local, multicast), and never holds a place that agents live by: an etcd
  of any cluster, a gateway, a node (nodes are claims: see `clustermesh.mesh.admission`);
- lies in what the operator named for that cluster (`connect --allow-prefix`), or else in the private ranges, is no
  wider than a /12 (IPv4) or /40 (IPv6), and is apart from local interfaces, resolvers and API servers.

The own cluster's prefixes are held to the first of the two. The address of a node may be public: it is the end of a
tunnel, never a route. It is not another cluster's etcd, nor a gateway, a resolver or an address of this machine.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable, Iterator, Mapping
from types import MappingProxyType
from typing import Final, NamedTuple

from msgspec import Struct

from clustermesh.address import (
    Address,
    Prefix,
    family_length,
    is_ipv4,
    nobodys,
    overlaps,
    parse_prefix,
    prefix_text,
    single,
    text,
)
from clustermesh.mesh.refusals import Reason, Refusal
from clustermesh.model import Cluster
from clustermesh.wire.numbering import MIN_ALLOCATED, identity_range

PRIVATE: Final = tuple(
    parse_prefix(each) for each in ("10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16", "100.64.0.0/10", "fc00::/7")
)
"""Where other clusters' pods may be without a word of the operator (RFC 1918, 6598, 4193)."""
WIDEST: Final = {True: 12, False: 40}
"""Bits, by is_ipv4: whoever claims more than that wants other people's addresses."""

TOGETHER: Final[Mapping[str, int]] = MappingProxyType({"endpoints": 384_000, "backends": 98_304, "prefixes": 98_304})
"""What all peers together may have of what the kernel has maps for (ipcache, lb_backends, ipcache_cidr): three quarters
of each. The rest is the own cluster's, whose new pods and services find room whatever peers say."""

_ALONE: Final = {what: most // 2 for what, most in TOGETHER.items()}
"""What one peer may have of that, unless the operator says otherwise: it never takes it all from the others."""

_KEYS: Final[Mapping[str, int]] = MappingProxyType(
    {"nodes": 25_000, "identities": 65_536, "endpoints": _ALONE["endpoints"], "services": 50_000}
)


class Limits(Struct, frozen=True, kw_only=True):
    """How much another cluster may make this one remember; beyond that its entries are refused. `keys` is by kind."""

    keys: Mapping[str, int] = _KEYS
    listing_bytes: int = 512 << 20
    value_bytes: int = 2 << 20  # etcd takes 1.5 MiB at most, unless it is told otherwise
    service_backends: int = 10_000  # beyond that a value is not even read: see entries.MOST_BACKENDS
    backends: int = _ALONE["backends"]  # addresses and ports, of all its services together
    copied_bytes: int = 512 << 20  # of all its entries together, in a mirror, with some 500 for each key
    exports: int = 2000  # ports of services by the MCS API, one at least of each, which may take a cluster IP here
    node_prefixes: int = 64  # pod CIDRs and addresses of one node
    # Of all its nodes, those that are refused included: pod CIDRs (the kernel's map has room for 131,072); addresses.
    prefixes: int = 12_000
    addresses: int = 100_000


class Authority(Struct, frozen=True, kw_only=True):
    """What the cluster `name` may say. `identities` are those it allots, by this cluster's own maximum of clusters;
    `allowed` are the prefixes that the operator named for its pods."""

    name: str
    id: int = 0
    identities: range = range(MIN_ALLOCATED, 1 << 24)
    allowed: tuple[Prefix, ...] = ()
    limits: Limits = Limits()

    @classmethod
    def of(cls, cluster: Cluster, allowed: tuple[Prefix, ...] = (), limits: Limits | None = None) -> Authority:
        """The authority of `cluster`, whose `max_clusters` is that of the cluster which grants it."""
        identities = identity_range(cluster.id, cluster.max_clusters)
        return cls(name=cluster.name, id=cluster.id, identities=identities, allowed=allowed, limits=limits or Limits())

    def allows(self, prefix: Prefix) -> bool:
        """True where the operator named `prefix`, or what is around it."""
        return any(_holds(around, prefix) for around in self.allowed)


ALL_PORTS: Final = (0,)


class Place(NamedTuple):
    """Somewhere this machine or its cluster lives by; `what` is "the etcd of beta". An etcd is a `cluster`'s.

    Nothing may be routed over a `lifeline`, whoever wants it, and no service has its cluster IP there; one that is
    reached from outside is there all the same, but at those of its TCP `ports`.
    """

    prefix: Prefix
    what: str
    lifeline: bool = False
    cluster: str = ""
    ports: tuple[int, ...] = ALL_PORTS


class Ground:
    """The places that stand before any cluster says a word. Made anew where they change."""

    def __init__(self, places: Iterable[Place] = ()) -> None:
        self.places = frozenset(places)
        ordered = sorted(self.places)
        self._lifelines = [place for place in ordered if place.lifeline]
        self._firsts = [place.prefix.address for place in self._lifelines]
        self._others = [place for place in ordered if not place.lifeline]
        self._alone: dict[Prefix, list[Place]] = {}
        for place in ordered:
            self._alone.setdefault(place.prefix, []).append(place)

    def without_peers(self, own: str) -> Ground:
        """Only what does not rest on the word of another cluster than `own`."""
        return Ground(place for place in self.places if place.cluster in ("", own))

    def cut_off_by(self, prefix: Prefix) -> Place | None:
        """A place that this machine could not reach any more with a route for `prefix`, or None."""
        return next(self._lifelines_in(prefix), None)

    def _lifelines_in(self, prefix: Prefix) -> Iterator[Place]:
        at = bisect_left(self._firsts, prefix.address)
        while at < len(self._firsts) and _holds(prefix, single(self._firsts[at])):
            yield self._lifelines[at]
            at += 1

    def split(self, prefixes: Iterable[Prefix], own: str = "") -> tuple[tuple[Prefix, ...], str]:
        """Those of `prefixes`, that stand, which a route may be made for; and a sentence about what is wrong, or "".

        Where the etcd of another cluster than `own` is, is that cluster's word: it takes no route from who stands.
        """
        free, cut, lost = list[Prefix](), list[str](), list[str]()
        for prefix in prefixes:
            inside = list(self._lifelines_in(prefix))
            ours = next((place for place in inside if place.cluster in ("", own)), None)
            if ours is None:
                free.append(prefix)
                lost += [_said(prefix, place) for place in inside[:1]]
            else:
                cut.append(_said(prefix, ours))
        if cut:
            return tuple(free), f"no route leads to its pods: {', '.join(cut)}, which could not be reached any more"
        return tuple(free), f"keeps its routes: {', '.join(lost)}, which cannot be reached there" if lost else ""

    def at(self, prefix: Prefix) -> Place | None:
        """A place, not a lifeline, that has an address in common with `prefix`, or None."""
        return next((place for place in self._others if overlaps(place.prefix, prefix)), None)

    def is_at(self, address: Address) -> list[Place]:
        """What has `address` for its only one: networks around it do not count."""
        return self._alone.get(single(address), [])


def _said(prefix: Prefix, place: Place) -> str:
    return f"{prefix_text(prefix)} holds {text(place.prefix.address)}, {place.what}"


def judge_prefix(authority: Authority | None, prefix: Prefix, ground: Ground) -> Refusal | None:
    """Why no pods of a cluster with `authority` (None: the own one) can be in `prefix`, whoever else has it."""
    shown = f"pod CIDR {prefix_text(prefix)}"
    if clash := nobodys(prefix):
        return Refusal(Reason.RESERVED, f"{shown} overlaps {prefix_text(clash)}, which is no cluster's")
    if place := ground.cut_off_by(prefix):
        address = text(place.prefix.address)
        return Refusal(Reason.CUTS_OFF, f"{shown} holds {address}, {place.what}, which nobody could reach any more")
    if authority is None or authority.allows(prefix):
        return None
    return _judge_default(authority, prefix, ground, shown)


def _judge_default(authority: Authority, prefix: Prefix, ground: Ground, shown: str) -> Refusal | None:
    remedy = f"name it with `clustermesh connect --allow-prefix {prefix_text(prefix)}` if it is {authority.name}'s"
    widest = WIDEST[is_ipv4(prefix.address)]
    if not any(_holds(private, prefix) for private in PRIVATE):
        return Refusal(Reason.NOT_ALLOWED, f"{shown} is not in a private range: {remedy}")
    if family_length(prefix) < widest:
        return Refusal(Reason.NOT_ALLOWED, f"{shown} is wider than a /{widest}: {remedy}")
    if place := ground.at(prefix):
        return Refusal(Reason.LOCAL, f"{shown} overlaps {prefix_text(place.prefix)}, {place.what}: {remedy}")
    return None


def judge_address(authority: Authority | None, address: Address, ground: Ground) -> Refusal | None:
    """Why no node of the cluster with `authority` (None: the own one) can be at `address`, whoever else is there."""
    shown = f"node address {text(address)}"
    if clash := nobodys(single(address)):
        return Refusal(Reason.RESERVED, f"{shown} lies in {prefix_text(clash)}, which is no cluster's")
    for place in () if authority is None else ground.is_at(address):
        if authority is not None and place.cluster != authority.name:  # an etcd may run on a node of its own cluster
            return Refusal(Reason.LOCAL, f"{shown} is {place.what}")
    return None


def _holds(around: Prefix, prefix: Prefix) -> bool:
    return around.length <= prefix.length and overlaps(around, prefix)
