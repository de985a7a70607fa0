"""Whose turn it is, of the names that wait to be settled. Pure."""

from __future__ import annotations

from collections.abc import Iterable

from clustermesh.multicluster.documents import Name


class Turns:
    """Of those that wait the newest come first, as many as of who waits longest: so one change among thousands is seen
    soon, and who changes all the time keeps nobody waiting for ever. Half is for what is begun, in its order: a Service
    that was made for an import may have slices to be made."""

    def __init__(self) -> None:
        self._news, self._waiting, self._begun = set[Name](), dict[Name, None](), dict[Name, None]()

    def __bool__(self) -> bool:
        return bool(self._news or self._waiting or self._begun)

    def touch(self, names: Iterable[Name], *, ours: bool = False) -> None:
        """They are to be settled anew; `ours` is what was made for another name."""
        if ours:
            self._begun |= dict.fromkeys(names)
        else:
            self._news.update(names)

    def take(self, most: int) -> list[Name]:
        """Who is next."""
        self._waiting = dict.fromkeys(sorted(self._news)) | self._waiting
        self._news.clear()
        found = list(self._begun)[: max(most // 2, most - len(self._waiting))]
        order, room = list(self._waiting), most - len(found)
        found += order if len(order) <= room else [*order[: room // 2], *order[len(order) - (room - room // 2) :]]
        for name in found:
            self._waiting.pop(name, None)
            self._begun.pop(name, None)
        return found
