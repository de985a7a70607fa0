"""What etcd should hold in this cluster's places, and what it does hold, whoever wrote it.

Rules
- Whatever differs from what is wanted is put right: changed back, written again, or removed where nobody wants it.
- Keys found at the start are as whoever was here before has left them. Those on a lease that was adopted by the time
  they are asked for, and that hold what is wanted, are right as they are: nothing is written.
- Those that are not wanted are left alone until the source is known in whole (`prune`): a manifest that cannot be read
  just now must not empty the mesh.
- What a watch tells while keys are being written or dumped is taken in afterwards, and what it tells of a key from
  before our last write of that key is no news.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import chain

from clustermesh.apiserver.in_order import InOrder, Sections
from clustermesh.apiserver.keys_target import Held, KeysTarget
from clustermesh.apiserver.publish import Updates
from clustermesh.apiserver.stamps import Stamps
from clustermesh.reconcile import Tracker
from clustermesh.store.operations import KeyValue


class Section(InOrder):
    """One kind of entry: a tracker over its keys, and the order of what is told of them."""

    def __init__(self, name: str, target: KeysTarget) -> None:
        super().__init__(target.written)
        self.name, self.target = name, target
        self.tracker: Tracker[bytes, Held] = Tracker(name, target)
        self._found: dict[bytes, KeyValue] | None = {}

    @property
    def complete(self) -> bool:
        """True when etcd holds everything that is wanted; more than that may be there."""
        return self.tracker.has_all

    def is_kept(self, key: bytes) -> bool:
        """True where what etcd holds at `key` hangs on a lease that we keep."""
        held = self.tracker.actual.get(key)
        return held is not None and held.kept

    def held(self, key: bytes) -> bytes | None:
        """The value etcd holds at `key`, as far as is known."""
        entry = self.tracker.actual.get(key) or (self._found or {}).get(key)
        return entry.value if entry else None

    def last_good(self, key: bytes) -> bytes | None:
        """What is wanted at `key`, else what was there at the start and nobody has asked for since."""
        entry = self.tracker.desired.get(key) or (self._found or {}).get(key)
        return entry.value if entry else None

    def is_inherited(self, key: bytes) -> bool:
        """True for what was there at the start and nobody has asked for since."""
        return self._found is not None and key in self._found

    def found(self) -> dict[bytes, bytes]:
        """What was there at the start and nobody has asked for since."""
        return {key: kv.value for key, kv in (self._found or {}).items()}

    def leases(self) -> set[int]:
        """What that hangs on."""
        return {kv.lease for kv in (self._found or {}).values()}

    def want(self, key: bytes, value: bytes | None) -> None:
        """From now on `key` should hold `value`, or nothing."""
        if self._found and key in self._found:
            self.tracker.observe(key, self.target.held(self._found.pop(key)))
        if value is None:
            self.tracker.remove(key)
        else:
            self.tracker.set(key, Held(value, kept=True))

    def prune(self) -> None:
        """Everything that is wanted was asked for: what else was found is to go."""
        found, self._found = self._found or {}, None
        for key, kv in found.items():
            self.tracker.observe(key, self.target.held(kv))

    def lose_lease(self, key: bytes) -> None:
        held = self.tracker.actual.get(key)
        if held is not None:
            self.tracker.observe(key, Held(held.value, kept=False))

    def _known(self) -> Iterable[bytes]:
        return chain(self.tracker.actual, self._found or ())

    def _take(self, key: bytes, kv: KeyValue | None) -> None:
        if self._found is not None and key not in self.tracker.desired and key not in self.tracker.actual:
            self._found.pop(key, None)
            if kv is not None:
                self._found[key] = kv
        else:
            held = None if kv is None else self.target.held(kv)
            self.tracker.drift += held != self.tracker.actual.get(key)
            self.tracker.observe(key, held)


class Ledger(Sections[Section]):
    """Several sections. `take` what a watch tells, `want` what a Publisher says."""

    def __init__(self, sections: Sequence[Section], stamps: Stamps | None = None) -> None:
        super().__init__((section.name, section) for section in sections)
        self._stamps = stamps
        self._by_key = {key: section for section in sections for key in section.target.keys}

    def held(self, key: bytes) -> bytes | None:
        """The value etcd holds at `key`, as far as is known."""
        section = self._of(key)
        return section.held(key) if section else None

    def is_inherited(self, key: bytes) -> bool:
        """True for a key that was there at the start and that nobody has asked for since."""
        section = self._of(key)
        return section is not None and section.is_inherited(key)

    def last_good(self, key: bytes) -> bytes | None:
        """What is wanted at `key`, else what was there at the start and nobody has asked for since."""
        section = self._of(key)
        return section.last_good(key) if section else None

    def want(self, updates: Updates) -> None:
        if self._stamps is not None:
            for key, observed in updates.observed.items():
                self._stamps.note(key, observed)
        for name, entries in updates.items():
            for key, value in entries.items():
                self.sections[name].want(key, value)

    def prune(self, names: Iterable[str]) -> None:
        for name in names:
            self.sections[name].prune()

    def leases(self) -> set[int]:
        """What everything that was there at the start, and that nobody has asked for since, hangs on."""
        return set[int]().union(*(section.leases() for section in self.sections.values()))

    def _of(self, key: bytes) -> Section | None:
        if key in self._by_key:
            return self._by_key[key]
        return next((section for section in self.sections.values() if section.target.covers(key)), None)
