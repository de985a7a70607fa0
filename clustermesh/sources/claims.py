"""Who is behind an address where several say that they are: an address that is used again has two owners for a while.

The owner is the best by rank, and the next one when it goes. Nearly every address has one claimant, and pays for one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, MutableMapping
from typing import Any

from clustermesh.address import Address
from clustermesh.model import Endpoint
from clustermesh.sources.objects import Ref
from clustermesh.sources.pods import PodEndpoint

Claim = PodEndpoint | Endpoint


class Claims:
    """Keeps `endpoints` what the best claimants say. `rank` orders them, the best one first, by what they are now."""

    def __init__(self, endpoints: MutableMapping[Address, Claim], rank: Callable[[Ref], Any]) -> None:
        self._endpoints, self._rank = endpoints, rank
        self._owner: dict[Address, Ref] = {}
        self._rivals: dict[Address, dict[Ref, Claim]] = {}
        self._addresses: dict[Ref, tuple[Address, ...] | Address] = {}  # most have one

    def put(self, ref: Ref, found: Mapping[Address, Claim]) -> Iterator[Address]:
        """`ref` claims `found` now, and nothing else; the addresses that say something else by that."""
        before = self._addresses.pop(ref, ())
        addresses = tuple(found)
        if found:
            self._addresses[ref] = addresses[0] if len(addresses) == 1 else addresses
        for ip in dict.fromkeys((*(before if isinstance(before, tuple) else (before,)), *addresses)):
            if self._settle(ip, ref, found.get(ip)):
                yield ip

    def contested(self) -> Iterator[tuple[Address, Ref, list[Ref]]]:
        """Addresses with several claimants: the owner, and the others."""
        for ip in sorted(self._rivals):
            first, *others = sorted(self._rivals[ip], key=self._rank)
            yield ip, first, others

    def _settle(self, ip: Address, ref: Ref, claim: Claim | None) -> bool:
        before, owner = self._endpoints.get(ip), self._owner.get(ip)
        if ip in self._rivals or owner not in (None, ref):
            self._choose(ip, ref, claim)
        elif claim is None:
            self._endpoints.pop(ip, None)
            self._owner.pop(ip, None)
        else:
            self._endpoints[ip], self._owner[ip] = claim, ref
        return before != self._endpoints.get(ip)

    def _choose(self, ip: Address, ref: Ref, claim: Claim | None) -> None:
        rivals = self._rivals.pop(ip, None) or {self._owner[ip]: self._endpoints[ip]}
        rivals.pop(ref, None)
        if claim is not None:
            rivals[ref] = claim
        owner = min(rivals, key=self._rank)
        self._endpoints[ip], self._owner[ip] = rivals[owner], owner
        if len(rivals) > 1:
            self._rivals[ip] = rivals
