"""What a follower keeps of the keys it was told: enough to prove later that the history is still the same one. Pure.

`Everything` also tells a new list as the difference to the old one; that costs some 250 bytes for each key. `Newest`
is for whoever holds the keys himself: it keeps a few, and a list is told whole, page by page.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import lru_cache
from heapq import nlargest
from typing import Final, TypeAlias

from msgspec import Struct

from clustermesh.store.operations import KeyValue

_FEW: Final = 32


class Put(Struct, frozen=True, gc=False):
    """A key has a value. In a `Listed` the value is new to us, in a `Changed` it may be the same as before."""

    kv: KeyValue


class Deleted(Struct, frozen=True, gc=False):
    """A key is gone, since `mod_revision` where a watch has told of it."""

    key: bytes
    mod_revision: int = 0


Event: TypeAlias = Put | Deleted


class _Print(Struct, frozen=True, gc=False):
    """What tells a key from one of the same name in another history; the newest is the greatest."""

    mod_revision: int
    lease: int
    value_hash: int

    @property
    def age(self) -> tuple[int, int]:
        return self.mod_revision, self.lease


class Everything:
    """Every key. A list comes at once, and is told as the difference to what was known before."""

    paged = False

    def __init__(self) -> None:
        self._prints: dict[bytes, _Print] = {}

    def __len__(self) -> int:
        return len(self._prints)

    def listed(self, kvs: Sequence[KeyValue], _first: bool) -> list[Event]:
        gone = self._prints.keys() - {kv.key for kv in kvs}
        events: list[Event] = [Put(kv) for kv in kvs if self._is_news(kv)]
        self._prints = {kv.key: _print(kv) for kv in kvs}
        return events + [Deleted(key) for key in sorted(gone)]

    def told(self, events: Iterable[Event]) -> None:
        for event in events:
            if isinstance(event, Put):
                self._prints[event.kv.key] = _print(event.kv)
            else:
                self._prints.pop(event.key, None)

    def anchor(self) -> bytes:
        """The newest key that is kept, b"" for none."""
        return max(self._prints, key=lambda key: self._prints[key].age, default=b"")

    def proves(self, kv: KeyValue) -> bool:
        """Whether `kv` is just as it was told."""
        return self._prints.get(kv.key) == _print(kv)

    def _is_news(self, kv: KeyValue) -> bool:
        known = self._prints.get(kv.key)
        return known is None or known.value_hash != hash(kv.value)


class Newest(Everything):
    """The keys written last, a few dozen of them; a list is told whole, page by page.

    Where all of these are deleted nothing is proved any more, and all is listed again.
    """

    paged = True

    def listed(self, kvs: Sequence[KeyValue], first: bool) -> list[Event]:
        if first:
            self._prints = {}
        newest = nlargest(_FEW, kvs, key=lambda kv: kv.mod_revision)
        self._prints.update((kv.key, _print(kv)) for kv in newest)
        self._trim()
        return [Put(kv) for kv in kvs]

    def told(self, events: Iterable[Event]) -> None:
        super().told(events)
        self._trim()

    def _trim(self) -> None:
        if len(self._prints) > 2 * _FEW:
            newest = nlargest(_FEW, self._prints, key=lambda key: self._prints[key].mod_revision)
            self._prints = {key: self._prints[key] for key in newest}


class Nothing(Newest):
    """No key at all: whatever happened during a cut comes as a new list, and never as changes that are old by then."""

    def listed(self, kvs: Sequence[KeyValue], _first: bool) -> list[Event]:
        return [Put(kv) for kv in kvs]

    def told(self, events: Iterable[Event]) -> None:
        pass


def _print(kv: KeyValue) -> _Print:
    return _Print(kv.mod_revision, _one(kv.lease), hash(kv.value))


@lru_cache(1024)
def _one(lease: int) -> int:
    """One number for all keys of a lease: thousands of them have few."""
    return lease
