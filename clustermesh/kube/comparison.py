"""What is known of a kind, compared with a list of it, while a watch goes on telling. Pure.

Who is told of an object by the watch meanwhile knows it better than the list. Of the rest the list counts, but not
before the watch is past it: what differs until then may be under way. What differs still was kept from us.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Generic

from clustermesh.kube.hearing import Entry, Put
from clustermesh.kube.resource import K, V


class Comparison(Generic[K, V]):
    """`differing` is what the list has otherwise, None for what it does not have; `version` is the list's once it is
    whole, at `since`."""

    def __init__(self, known: Mapping[K, V]) -> None:
        self.differing: dict[K, V | None] = {}
        self.version, self.since = "", 0.0
        self._unseen, self._told = set(known), set[K]()
        self._may_be_any = False  # what is not seen may be an object that has no name in the list

    def told(self, entries: Iterable[Entry[K, V]]) -> None:
        """The watch has told of these."""
        for entry in entries:
            if entry.key is not None:
                self._told.add(entry.key)
                self.differing.pop(entry.key, None)

    def page(self, known: Mapping[K, V], entries: Iterable[Entry[K, V]]) -> None:
        """A part of the list."""
        for entry in entries:
            if entry.key is None:
                self._may_be_any = True
                continue
            self._unseen.discard(entry.key)
            if isinstance(entry, Put) and entry.key not in self._told and known.get(entry.key) != entry.value:
                self.differing[entry.key] = entry.value

    def end(self, version: str, now: float) -> None:
        """The list is whole."""
        self.version, self.since = version, now
        if not self._may_be_any:
            self.differing.update((key, None) for key in self._unseen - self._told)
        self._unseen.clear()
