"""What is not used of what a cluster says, and why: one reason and one sentence each, counted by reason."""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable, Iterator, Mapping
from enum import StrEnum
from itertools import islice
from typing import NamedTuple

from clustermesh.address import Address, text


class Reason(StrEnum):
    """Why something is refused. The values are the labels of metrics and status."""

    GARBLED = "garbled"  # it cannot be decoded, or its key, its value and its owner do not agree
    RESERVED = "reserved"  # loopback, link-local, multicast: no cluster's
    CUTS_OFF = "cuts-off"  # it holds an etcd, a node or a gateway
    TAKEN = "taken"  # another node has the prefix, the address or the key
    NOT_ALLOWED = "not-allowed"  # not private, or too wide, and not named by the operator
    LOCAL = "local"  # on a local interface, or where this cluster's services, resolvers or API server are
    NOT_HELD = "not-held"  # the cluster has no node with that address or with a pod CIDR around it
    IDENTITY = "identity"  # a number that is not the cluster's to give
    PORT = "port"  # nobody answers at port 0
    LIMIT = "limit"  # its cluster has too many
    FULL = "full"  # all peers together have
    WAITING = "waiting"  # the own cluster is not known yet


class Refusal(NamedTuple):
    """`why` is a sentence that begins with what it is about, in words of the person who made it. It stands for so many
    `entries`."""

    reason: Reason
    why: str
    entries: int = 1


class Refusals:
    """The refusals of one cluster, by kind ("nodes") and name: never more than it has entries, and named garbage.

    `unnamed` says how many keys of a table are garbage beside those that are named.
    """

    def __init__(self) -> None:
        self.unnamed: dict[str, int] = {}
        self._of: dict[str, dict[Hashable, Refusal]] = {}
        self._more: Counter[Reason] = Counter()  # entries that one refusal stands for beside the first
        self._names: dict[tuple[Reason, str], dict[Hashable, None]] = {}  # by kind, so that nobody looks for the first

    def of(self, kind: str) -> Mapping[Hashable, Refusal]:
        """The refusals of `kind`, by name."""
        return self._of.get(kind, {})

    def set(self, kind: str, name: Hashable, refusal: Refusal | None) -> None:
        """`name` is refused for this from now on, or not at all."""
        table = self._of.setdefault(kind, {})
        if (before := table.pop(name, None)) is not None:
            del self._names[before.reason, kind][name]
            self._more[before.reason] -= before.entries - 1
        if refusal is not None:
            table[name] = refusal
            self._more[refusal.reason] += refusal.entries - 1
            self._names.setdefault((refusal.reason, kind), {})[name] = None

    def clear(self, kind: str) -> None:
        """Nothing of `kind` is refused."""
        for refusal in self._of.pop(kind, {}).values():
            self._more[refusal.reason] -= refusal.entries - 1
        for reason in Reason:
            self._names.pop((reason, kind), None)

    def count_unnamed(self, kind: str, number: int) -> None:
        """So many keys of the table `kind` are garbage, and have no name here."""
        self.unnamed.pop(kind, None)
        if number:
            self.unnamed[kind] = number

    @property
    def counts(self) -> Counter[Reason]:
        """How many there are, of each reason there is."""
        counts = Counter({Reason.GARBLED: sum(self.unnamed.values())})
        for (reason, _), names in self._names.items():
            counts[reason] += len(names)
        counts.update(self._more)
        return +counts

    def __len__(self) -> int:
        return self.counts.total()

    def listed(self) -> Iterator[tuple[Reason, str, str]]:
        """Reason, name as in `named`, and sentence of each."""
        for kind, table in self._of.items():
            for name, refusal in table.items():
                yield refusal.reason, _spelled(kind, name), refusal.why

    def first(self, most: int) -> dict[Reason, dict[str, str]]:
        """Up to `most` of each reason, name -> why; no longer a look than that takes."""
        found: dict[Reason, dict[str, str]] = {}
        for (reason, kind), names in self._names.items():
            if not names:
                continue
            named = found.setdefault(reason, {})
            for name in islice(names, most - len(named)):
                named[_spelled(kind, name)] = self._of[kind][name].why
        return found

    def named(self, most: int) -> dict[str, str]:
        """Up to `most` of them, "nodes/w1" -> why; garbage is called by its key."""
        return {name: why for _, name, why in islice(self.listed(), most)}


def _spelled(kind: str, name: Hashable) -> str:
    if isinstance(name, bytes):
        return f"{kind}/{text(Address(name))}"
    if isinstance(name, tuple):
        return "/".join((kind, *name))
    return str(name) if kind == "keys" else f"{kind}/{name}"
