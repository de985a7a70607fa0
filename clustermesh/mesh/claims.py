"""Which cluster an IPv4 address belongs to, so that a peer speaks only for itself.

Clusters claim the pod CIDRs and addresses of their nodes. A claim that overlaps another cluster's is refused; the first
one stands until it is withdrawn, and the own cluster's is entered first.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from ipaddress import IPv4Address, IPv4Network


class Claims:
    """CIDR -> cluster, with longest-prefix reads that cost one dictionary lookup per prefix length in use."""

    def __init__(self) -> None:
        self._by_length: dict[int, dict[int, str]] = {}
        self._times: Counter[tuple[str, str]] = Counter()  # two nodes of one cluster may claim the same

    def conflict(self, cluster: str, cidr: str) -> tuple[str, str] | None:
        """The (cluster, CIDR) of another cluster that overlaps `cidr`, or None."""
        network = IPv4Network(cidr)
        for owner, claimed in self._overlapping(network):
            if owner != cluster:
                return owner, str(claimed)
        return None

    def claim(self, cluster: str, cidr: str) -> None:
        network = IPv4Network(cidr)
        self._times[cluster, cidr] += 1
        self._by_length.setdefault(network.prefixlen, {})[int(network.network_address)] = cluster

    def withdraw(self, cluster: str, cidr: str) -> None:
        """Undo one `claim`; a claim that is not held is withdrawn already."""
        self._times[cluster, cidr] -= 1
        if self._times[cluster, cidr] > 0:
            return
        del self._times[cluster, cidr]
        network = IPv4Network(cidr)
        table = self._by_length.get(network.prefixlen, {})
        if table.get(int(network.network_address)) == cluster:
            del table[int(network.network_address)]
            if not table:
                del self._by_length[network.prefixlen]

    def owner(self, address: str) -> str | None:
        """The cluster that claims the IPv4 `address`, or None."""
        number = int(IPv4Address(address))
        for length, table in self._by_length.items():
            if (owner := table.get(number & _mask(length))) is not None:
                return owner
        return None

    def _overlapping(self, network: IPv4Network) -> Iterator[tuple[str, IPv4Network]]:
        first = int(network.network_address)
        for length, table in self._by_length.items():
            if length <= network.prefixlen:
                start = first & _mask(length)
                if start in table:
                    yield table[start], IPv4Network((start, length))
            else:
                for start, owner in table.items():
                    if start & _mask(network.prefixlen) == first:
                        yield owner, IPv4Network((start, length))


def _mask(length: int) -> int:
    return (0xFFFFFFFF << (32 - length)) & 0xFFFFFFFF
