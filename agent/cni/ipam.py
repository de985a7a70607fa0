"""Which address of the node's pod CIDR a pod gets. Pure: what is in use is restored from the endpoints' own files."""

from __future__ import annotations

from ipaddress import IPv4Address, IPv4Network

from clustermesh.errors import Invalid, Refused


class Ipam:
    """Addresses of one pod CIDR, handed out in turn: a freed one is used again only after all others had theirs.

    Others may still talk to a freed address for a while (a cached name, a peer that has not heard), and must not meet
    another pod there. The network and broadcast addresses are never handed out, nor the router's, which is the first.
    """

    def __init__(self, pod_cidr: str) -> None:
        try:
            self._network = IPv4Network(pod_cidr)
        except ValueError as e:
            raise Invalid("pod CIDR", pod_cidr, f"must be an IPv4 CIDR ({e})") from e
        if self._network.prefixlen > 29:
            raise Invalid("pod CIDR", pod_cidr, "must be a /29 or larger")
        self._first = int(self._network.network_address) + 2
        self.capacity = self._network.num_addresses - 3
        self._used: set[int] = set()
        self._next = 0

    @property
    def router(self) -> str:
        """The node's own address inside its pod CIDR: the pods' gateway."""
        return str(self._network.network_address + 1)

    @property
    def used(self) -> int:
        """How many addresses are in use."""
        return len(self._used)

    def allocate(self) -> str:
        """An address nobody has. Raises Refused when all are in use."""
        if len(self._used) >= self.capacity:
            raise Refused(f"all {self.capacity} pod addresses of {self._network} are in use")
        while self._next in self._used:
            self._next = (self._next + 1) % self.capacity
        offset = self._next
        self._used.add(offset)
        self._next = (offset + 1) % self.capacity
        return str(IPv4Address(self._first + offset))

    def reserve(self, address: str) -> None:
        """Take in that `address` is in use, and go on after it. Raises Invalid: not one of ours, or in use already."""
        offset = self._offset(address)
        if offset is None:
            raise Invalid("pod address", address, f"is none that {self._network} has for pods")
        if offset in self._used:
            raise Invalid("pod address", address, "is in use by another pod")
        self._used.add(offset)
        self._next = (offset + 1) % self.capacity

    def release(self, address: str) -> None:
        """Make `address` free; free already, or none of ours, is success."""
        offset = self._offset(address)
        if offset is not None:
            self._used.discard(offset)

    def _offset(self, address: str) -> int | None:
        try:
            offset = int(IPv4Address(address)) - self._first
        except ValueError:
            return None
        return offset if 0 <= offset < self.capacity else None
