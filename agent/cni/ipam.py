"""Which addresses of the node's pod CIDRs a pod gets. Pure: what is in use is restored from endpoint files."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Final, NamedTuple

from clustermesh.address import BITS, Address, Prefix, contains, from_int, is_ipv4, nth, prefix_text, text, to_int
from clustermesh.errors import Invalid, Refused

_LEAST_BITS: Final = 3  # of a pod CIDR: 8 addresses, a /29 or a /125


class PodAddress(NamedTuple):
    """An address of a pod and the gateway of its family."""

    ip: Address
    gateway: Address


class Ipam:
    """Addresses of one pod CIDR, handed out in turn: a freed one is used again only after all others had theirs.

    Others may still talk to a freed address for a while (a cached name, a peer that has not heard), and must not meet
    another pod there. Never handed out: `router`, which is the node's own wherever it lies (None: the first), the first
    of the block (the network, or IPv6's anycast of its routers), and the last of IPv4 (its broadcast).
    """

    def __init__(self, pod_cidr: Prefix, router: Address | None = None) -> None:
        bits = BITS - pod_cidr.length
        if bits < _LEAST_BITS:
            least = "a /29" if is_ipv4(pod_cidr.address) else "a /125"
            raise Invalid("pod CIDR", prefix_text(pod_cidr), f"must be {least} or larger")
        self.pod_cidr = pod_cidr
        self.router = nth(pod_cidr, 1) if router is None else router
        self._first = to_int(pod_cidr.address) + 1
        self._places = (1 << bits) - (2 if is_ipv4(pod_cidr.address) else 1)
        own = self._place(self.router)
        self._kept = set() if own is None else {own}
        self.capacity = self._places - len(self._kept)
        self._used: set[int] = set()
        self._next = 0

    @property
    def used(self) -> int:
        """How many addresses are in use."""
        return len(self._used)

    def allocate(self) -> Address:
        """An address nobody has. Raises Refused when all are in use."""
        if len(self._used) >= self.capacity:
            raise Refused(f"all {self.capacity} pod addresses of {prefix_text(self.pod_cidr)} are in use")
        while self._next in self._used or self._next in self._kept:
            self._next = (self._next + 1) % self._places
        place = self._next
        self._use(place)
        return from_int(self._first + place)

    def reserve(self, address: Address) -> None:
        """Take in that `address` is in use, and go on after it. Raises Invalid: not one of ours, or in use already."""
        place = self._place(address)
        if place is None:
            raise Invalid("pod address", text(address), f"is none that {prefix_text(self.pod_cidr)} has for pods")
        if place in self._kept:
            raise Invalid("pod address", text(address), "is the node's own, the pods' gateway")
        if place in self._used:
            raise Invalid("pod address", text(address), "is in use by another pod")
        self._use(place)

    def release(self, address: Address) -> None:
        """Make `address` free; free already, or none of ours, is success."""
        place = self._place(address)
        if place is not None:
            self._used.discard(place)

    def _use(self, place: int) -> None:
        self._used.add(place)
        self._next = (place + 1) % self._places

    def _place(self, address: Address) -> int | None:
        """Where an address stands among those that pods could have."""
        place = to_int(address) - self._first
        return place if contains(self.pod_cidr, address) and 0 <= place < self._places else None


class Pools:
    """One Ipam for each address family of the node: a pod gets an address of each, or none."""

    def __init__(self, pools: Sequence[Ipam]) -> None:
        self._pools = pools

    def allocate(self, held: Iterable[Address] = ()) -> tuple[PodAddress, ...]:
        """An address of each pool; one of `held` where it has that family. Refused where a pool has none left."""
        kept = {is_ipv4(address): address for address in held}
        taken: list[tuple[Ipam, Address]] = []
        try:
            for pool in self._pools:
                if (family := is_ipv4(pool.router)) not in kept:
                    kept[family] = pool.allocate()
                    taken.append((pool, kept[family]))
        except Refused:
            for pool, address in taken:
                pool.release(address)
            raise
        return tuple(PodAddress(kept[is_ipv4(pool.router)], pool.router) for pool in self._pools)

    def reserve(self, address: Address) -> None:
        """As Ipam's; also Invalid where no pool is of the address's family."""
        of_family = [pool for pool in self._pools if is_ipv4(pool.router) == is_ipv4(address)]
        if not of_family:
            raise Invalid("pod address", text(address), "is of a family of which this node has no pod CIDR")
        of_family[0].reserve(address)

    def release(self, addresses: Iterable[Address]) -> None:
        for address in addresses:
            for pool in self._pools:
                pool.release(address)
