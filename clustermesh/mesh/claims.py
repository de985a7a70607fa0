"""What belongs to which cluster, so that a peer speaks only for itself: IPv4 addresses, and WireGuard keys.

Clusters claim the pod CIDRs and addresses of their nodes, and their keys. A claim that is, or overlaps, another
cluster's is refused; the first one stands until it is withdrawn, and the own cluster's is entered first.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections import Counter
from collections.abc import Iterator
from ipaddress import IPv4Network
from socket import AF_INET, inet_pton
from typing import Final

NOBODYS: Final = ("0.0.0.0/8", "127.0.0.0/8", "169.254.0.0/16", "224.0.0.0/3")
"""Addresses that are never another machine's: this network, loopback, link-local, multicast and above."""
_SHORTEST: Final = 8  # bits: whoever claims more than that wants other people's addresses


def find_fault(cidr: str) -> str:
    """Why no peer can have `cidr`, or "": it would take away what is this machine's or everybody's."""
    network = IPv4Network(cidr)
    if network.prefixlen < _SHORTEST:
        return f"is wider than a /{_SHORTEST}"
    clash = _NOBODYS.conflict("", cidr)
    return f"overlaps {clash[1]}, which is no cluster's" if clash else ""


def is_nobodys(address: str) -> bool:
    """True for an IPv4 address that no peer can have."""
    return _NOBODYS.owner(address) is not None


class Claims:
    """CIDR -> cluster. What two clusters claim never overlaps: call `claim` only where `conflict` found none."""

    def __init__(self) -> None:
        self._by_length: dict[int, dict[int, str]] = {}
        self._starts: dict[int, list[int]] = {}  # of the same, in order
        self._times: Counter[tuple[str, str]] = Counter()  # two nodes of one cluster may claim the same

    def conflict(self, cluster: str, cidr: str) -> tuple[str, str] | None:
        """The (cluster, CIDR) of another cluster that overlaps `cidr`, or None."""
        network = IPv4Network(cidr)
        around = next(self._around(network), None)
        if around is not None and around[0] == cluster:
            return None  # all in it is this cluster's: no need to look at thousands of claims there
        inside = (found for found in self._inside(network) if found[0] != cluster)
        owner, claimed = around or next(inside, ("", None))
        return None if claimed is None else (owner, str(claimed))

    def claim(self, cluster: str, cidr: str) -> None:
        network = IPv4Network(cidr)
        start, table = int(network.network_address), self._by_length.setdefault(network.prefixlen, {})
        self._times[cluster, cidr] += 1
        if start not in table:
            insort(self._starts.setdefault(network.prefixlen, []), start)
        table[start] = cluster

    def withdraw(self, cluster: str, cidr: str) -> None:
        """Undo one `claim`; a claim that is not held is withdrawn already."""
        self._times[cluster, cidr] -= 1
        if self._times[cluster, cidr] > 0:
            return
        del self._times[cluster, cidr]
        network = IPv4Network(cidr)
        start, table = int(network.network_address), self._by_length.get(network.prefixlen, {})
        if table.get(start) == cluster:
            del table[start]
            starts = self._starts[network.prefixlen]
            del starts[bisect_left(starts, start)]
            if not table:
                del self._by_length[network.prefixlen], self._starts[network.prefixlen]

    def owner(self, address: str) -> str | None:
        """The cluster that claims the IPv4 `address`, or None."""
        number = int.from_bytes(inet_pton(AF_INET, address), "big")  # five times as fast as ipaddress
        for length, table in self._by_length.items():
            if (owner := table.get(number & _mask(length))) is not None:
                return owner
        return None

    def _around(self, network: IPv4Network) -> Iterator[tuple[str, IPv4Network]]:
        """The claims that hold all of `network`: they are of one cluster."""
        first = int(network.network_address)
        for length, table in self._by_length.items():
            if length <= network.prefixlen and (owner := table.get(first & _mask(length))) is not None:
                yield owner, IPv4Network((first & _mask(length), length))

    def _inside(self, network: IPv4Network) -> Iterator[tuple[str, IPv4Network]]:
        first, last = int(network.network_address), int(network.broadcast_address)
        for length, starts in self._starts.items():
            if length > network.prefixlen:
                for start in starts[bisect_left(starts, first) : bisect_left(starts, last + 1)]:
                    yield self._by_length[length][start], IPv4Network((start, length))


class KeyClaims:
    """WireGuard key -> cluster, by the same rule: a peer that publishes another's keys must not cut its tunnels."""

    def __init__(self) -> None:
        self._holders: dict[str, Counter[str]] = {}

    def conflict(self, cluster: str, key: str) -> tuple[str, str] | None:
        """The (cluster, key) of another cluster that has this `key`, or None."""
        owner = next((owner for owner in self._holders.get(key, ()) if owner != cluster), None)
        return None if owner is None else (owner, key)

    def claim(self, cluster: str, key: str) -> None:
        self._holders.setdefault(key, Counter())[cluster] += 1

    def withdraw(self, cluster: str, key: str) -> None:
        holders = self._holders.get(key, Counter())
        holders[cluster] -= 1
        if holders[cluster] <= 0:
            del holders[cluster]
        if not holders:
            self._holders.pop(key, None)


def _mask(length: int) -> int:
    return (0xFFFFFFFF << (32 - length)) & 0xFFFFFFFF


def _nobodys() -> Claims:
    claims = Claims()
    for cidr in NOBODYS:
        claims.claim("nobody", cidr)
    return claims


_NOBODYS: Final = _nobodys()
