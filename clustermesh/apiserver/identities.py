"""Numbers for label sets, out of the cluster's own range. Pure; time is an argument (Unix nanoseconds).

Rules
- One label set has one number and one number one label set, for as long as both are known.
- What etcd held when this process began is adopted, so a restart renumbers nothing.
- A new number is looked for from the place that the labels themselves determine (`usual_number`), and those that have
  another are remembered by the agents of the nodes where they are in use: a cluster that lost etcd and process together
  numbers everything as before (`renumber`), and its peers' caches stay right.
- A number nobody uses is kept for a grace before it may mean something else: peers may still have it in a packet.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Final

from clustermesh.errors import Refused
from clustermesh.model import Cluster, Identity, Label
from clustermesh.wire.numbering import identity_range, usual_number

GRACE: Final = 15 * 60 * 1_000_000_000
"""Nanoseconds that a number is kept after its last use: the lease of a key, after which no peer holds on to it."""

Labels = tuple[Label, ...]
"""Sorted by key."""


class Allocator:
    """The identities of one cluster. `acquire` and `release` count uses; `expire` gives back what none is left of."""

    def __init__(self, cluster: Cluster, grace: int = GRACE) -> None:
        self._cluster, self._grace = cluster, grace
        self._range = identity_range(cluster.id, cluster.max_clusters)
        self._number: dict[Labels, int] = {}
        self._labels: dict[int, Labels] = {}
        self._uses: dict[Labels, int] = {}
        self._idle_since: dict[Labels, int] = {}

    def __len__(self) -> int:
        return len(self._labels)

    def __iter__(self) -> Iterator[Identity]:
        return (Identity(id=number, labels=labels) for number, labels in self._labels.items())

    def adopt(self, identity: Identity, now: int) -> bool:
        """Take over a number allotted before; False where it is not ours, or clashes with one that we know."""
        number, labels = identity.id, identity.labels
        if number not in self._range or number in self._labels or labels in self._number:
            return False
        self._take(number, labels)
        self._idle_since[labels] = now
        return True

    def renumber(self, told: Mapping[Labels, int]) -> dict[Labels, int]:
        """Number all labels anew, in an order that they alone determine, those that are `told` as they were; what has
        another number now, with the one it had. For when nobody has heard of any number yet."""
        before, self._number, self._labels = self._number, {}, {}
        for labels in sorted(before, key=lambda labels: (labels not in told, _order(labels))):
            number = told.get(labels, -1)
            free = number in self._range and number not in self._labels
            self._take(number if free else self._free_number(labels), labels)
        return {labels: number for labels, number in before.items() if self._number[labels] != number}

    def acquire(self, labels: Labels) -> Identity:
        """What stands for `labels`, used once more. Refused when every number of the range is taken.

        Its labels are one object for all who use them.
        """
        number = self._number.get(labels)
        if number is None:
            number = self._free_number(labels)
            self._take(number, labels)
        self._uses[labels] = self._uses.get(labels, 0) + 1
        self._idle_since.pop(labels, None)
        return Identity(id=number, labels=self._labels[number])

    def uses(self, labels: Labels) -> int:
        """How often `labels` are in use."""
        return self._uses.get(labels, 0)

    def release(self, labels: Labels, now: int) -> None:
        """Used once less."""
        self._uses[labels] -= 1
        if not self._uses[labels]:
            del self._uses[labels]
            self._idle_since[labels] = now

    def expire(self, now: int) -> list[int]:
        """Forget what has been out of use for longer than the grace; the numbers that are free now."""
        expired = [labels for labels, since in self._idle_since.items() if now - since > self._grace]
        return [self._drop(labels) for labels in expired]

    def _take(self, number: int, labels: Labels) -> None:
        self._number[labels] = number
        self._labels[number] = labels

    def _drop(self, labels: Labels) -> int:
        del self._idle_since[labels]
        number = self._number.pop(labels)
        del self._labels[number]
        return number

    def _free_number(self, labels: Labels) -> int:
        size = len(self._range)
        if len(self._labels) >= size:
            raise Refused(
                f"all {size} identities of cluster {self._cluster.name} are taken: a pod with labels that no other pod "
                "has gets none until one is free"
            )
        first = usual_number(labels, self._cluster) - self._range[0]
        return next(n for step in range(size) if (n := self._range[(first + step) % size]) not in self._labels)


def _order(labels: Labels) -> tuple[tuple[str, str, str], ...]:
    return tuple((label.key, label.value, label.source) for label in labels)
