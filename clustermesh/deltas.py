"""Desired against actual, entry by entry: what is still to be written, what failed, what is kept. Pure."""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Mapping, MutableSet
from itertools import chain, islice, repeat
from typing import Any, Final, Generic, NamedTuple, TypeVar

from clustermesh.retries import Problem, Retries

K = TypeVar("K", bound=Hashable)
V = TypeVar("V")
_ABSENT: Final = object()


class Delta(NamedTuple, Generic[K, V]):
    """What turns one table into another."""

    upserts: dict[K, V]
    deletes: list[K]


def diff(desired: Mapping[K, V], actual: Mapping[K, V]) -> Delta[K, V]:
    """The smallest delta with apply(diff(desired, actual), actual) == desired."""
    upserts = {key: value for key, value in desired.items() if actual.get(key, _ABSENT) != value}
    return Delta(upserts, [key for key in actual if key not in desired])


class Deltas(Generic[K, V]):
    """What one target should hold (`desired`), what it was last known to hold (`actual`), and where the two differ."""

    def __init__(self) -> None:
        self.desired: dict[K, V] = {}
        self.actual: dict[K, V] = {}
        self.surplus = 0  # entries that are there and not wanted: they take room until they are deleted
        self.failures = 0  # tries that failed, of any entry
        self.blocking: set[K] = set()  # entries with a problem that exist, or may: they still refer to others
        self._dirty: dict[K, V | None] = {}  # what to write (None: delete), in the order in which it was asked for
        self._retries = Retries[K]()  # what failed is here and, until it is due, not in `_dirty`
        self.problems: Mapping[K, Problem] = self._retries.problems
        self._unsure: set[K] = set()  # entries whose fate is unknown
        self._touched: set[K] | None = None  # what was written since a comparison began
        self._withdrawn: set[K] | None = None  # wanted once, and no more: while it is set, all else is kept, ...
        self._kept: dict[K, V | None] = {}  # ... apart from `_dirty`: a change must not cost all that is kept

    @property
    def failed(self) -> dict[K, str]:
        """The entries that could not be applied, each with a sentence."""
        return {key: problem.sentence for key, problem in self.problems.items()}

    @property
    def settled(self) -> bool:
        """True when the target is known to hold exactly what is wanted, and what is kept."""
        return not self.problems and not self._dirty

    @property
    def next_due(self) -> float | None:
        """When something that failed is to be tried again, by the clock."""
        return self._retries.next_due

    def set(self, key: K, value: V) -> None:
        held = self.actual.get(key)
        if held is not None and key not in self.desired:
            self.surplus -= 1
        self._kept.pop(key, None)
        if held is not None and held == value:
            self.desired[key] = held  # equal values are one object
            if not self.problems and not self._unsure:
                self._dirty.pop(key, None)  # what was there, and ...
                return
        else:
            self.desired[key] = value
            if key not in self._dirty and not self.problems:
                self._dirty[key] = value  # ... what is new, at a third of the cost
                return
        self._mark(key)

    def set_all(self, entries: Mapping[K, V]) -> None:
        """`set` each of them: what is new, as nearly all is at a start, at a fifth of the cost."""
        if self.problems or not self.actual.keys().isdisjoint(entries):
            for key, value in entries.items():
                self.set(key, value)
        else:
            self.desired.update(entries)
            self._dirty.update(entries)

    def remove(self, key: K) -> None:
        if self.desired.pop(key, None) is not None:
            self.surplus += key in self.actual
            if self._withdrawn is not None:
                self._withdrawn.add(key)
            self._mark(key)

    def replace(self, desired: Mapping[K, V]) -> None:
        """Make `desired` the whole of what is wanted."""
        delta = diff(desired, self.desired)
        for key, value in delta.upserts.items():
            self.set(key, value)
        for key in delta.deletes:
            self.remove(key)

    def keep_unclaimed(self) -> None:
        """From now on delete only what was wanted after this call, which comes before any other."""
        self._withdrawn = set()

    def release_unclaimed(self) -> None:
        """What was kept and is not wanted may go."""
        self._withdrawn = None
        self._dirty |= self._kept
        self._kept = {}

    def _is_kept(self, key: K) -> bool:
        return self._withdrawn is not None and key not in self.desired and key not in self._withdrawn

    def observe(self, key: K, value: V | None) -> None:
        """Take in that the target now holds `value` at `key` (None: nothing), whoever wrote it."""
        if self._touched is not None:
            self._touched.add(key)
        self._take(key, value)

    def _take(self, key: K, value: V | None) -> None:
        self._unsure.discard(key)
        if key not in self.desired:
            self.surplus += (value is not None) - (key in self.actual)
        if value is None:
            self.actual.pop(key, None)
        else:
            wanted = self.desired.get(key)
            self.actual[key] = value if wanted is None or wanted != value else wanted  # equal values are one object
        self._mark(key)

    @property
    def pending_size(self) -> int:
        """How many entries are still to be applied: the length of `pending` at a small part of its cost."""
        return len(self._dirty) + sum(key not in self._dirty for key in self.problems)

    @property
    def has_all(self) -> bool:
        """True when the target is known to hold everything that is wanted; more than that may be there."""
        return not any(key in self.desired for key in chain(self._dirty, self.problems))

    def pending(self) -> Delta[K, V]:
        """What is still to be applied, entries that failed before included."""
        return self._split([*self._dirty, *(key for key in self.problems if key not in self._dirty)])

    def _split(self, keys: Iterable[K]) -> Delta[K, V]:
        upserts: dict[K, V] = {}
        deletes: list[K] = []
        for key in keys:
            if key in self.desired:
                upserts[key] = self.desired[key]
            else:
                deletes.append(key)
        return Delta(upserts, deletes)

    def _mark(self, key: K) -> None:
        self._dirty.pop(key, None)  # what was marked last is applied last
        self._kept.pop(key, None)
        wanted = self.desired.get(key)
        if wanted != self.actual.get(key) or key in self._unsure:
            (self._kept if self._is_kept(key) else self._dirty)[key] = wanted
        else:
            self._retries.forget(key)
        self._note_blocking(key)

    def _note_blocking(self, key: K) -> None:
        if key in self.problems and (key in self.actual or key in self._unsure):
            self.blocking.add(key)
        else:
            self.blocking.discard(key)

    # -- what was read, and what came of writing ----------------------------------------------------------------------

    def _compare_page(self, page: Mapping[K, V], unseen: MutableSet[K]) -> int:
        found = 0
        if not (self.desired or self.problems or self._unsure or self._touched) and self.actual.keys().isdisjoint(page):
            self.actual.update(page)  # as at a start
            self.surplus += len(page)
            (self._dirty if self._withdrawn is None else self._kept).update(dict.fromkeys(page))
            return len(page)
        for key, value in page.items():
            unseen.discard(key)
            known = self.actual.get(key)
            if (known is None or known != value or key in self._unsure) and not self._is_touched(key):
                found += known != value
                self._take(key, value)
        return found

    def _compare_absent(self, keys: Iterable[K]) -> int:
        found = 0
        for key in keys:
            if not self._is_touched(key):
                found += key in self.actual
                self._take(key, None)
        return found

    def _is_touched(self, key: K) -> bool:
        return self._touched is not None and key in self._touched

    def _settle(self, entries: Mapping[K, V | None], failed: Mapping[K, str], now: float) -> None:
        """These were to be written (None: deleted), and all but `failed` were."""
        if not (failed or self.problems or self._unsure or self._touched is not None):
            self._settle_all(entries)
            return
        for key, value in entries.items():
            if key not in failed:
                self.observe(key, value)
                continue
            if self._is_what_was_tried(key, value):
                self._dirty.pop(key, None)  # until it is due
            self._retries.fail(key, failed[key], now)
            self._note_blocking(key)
        self.failures += len(failed)
        # Where something succeeds, room was made, or the target is back: a little more of the rest may succeed, too.
        self._retries.hurry(2 * (len(entries) - len(failed)), now)

    def _settle_all(self, entries: Mapping[K, V | None]) -> None:
        """Where all is well: what `observe` would do for each. All were written or all deleted."""
        still_so = _take_out(self._dirty, entries) == [*entries.values()]
        if None in islice(entries.values(), 1):
            self.surplus -= sum(key in self.actual and key not in self.desired for key in entries)
            _take_out(self.actual, entries)
        else:
            if not still_so:
                self.surplus += sum(key not in self.actual and key not in self.desired for key in entries)
            self.actual.update(entries)  # type: ignore[arg-type]
        if not still_so:  # some are wanted otherwise since the call began
            for key in entries:
                self._mark(key)

    def _is_what_was_tried(self, key: K, value: V | None) -> bool:
        return self.desired.get(key) == value


def _take_out(table: dict[K, Any], keys: Iterable[K]) -> list[Any]:
    """What was at each of them; _ABSENT where nothing was."""
    found = [*map(table.pop, keys, repeat(_ABSENT))]
    if not table:
        table.clear()  # else whoever goes over it goes over the places of all that were in it
    return found
