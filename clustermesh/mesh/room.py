"""How much of what one peer says is taken in, and what there was no room for. Pure.

What is dropped is forgotten but for its name, so its cluster has to say it again: once something has gone, and with it
there is room, the table is `short`, and whoever reads it lists it anew.
"""

from __future__ import annotations

from typing import Any, Final

from clustermesh.mesh.authority import Limits
from clustermesh.mesh.refusals import Reason, Refusal, Refusals
from clustermesh.model import Service

MOST_NAMED: Final = 10_000  # a peer full of what is dropped must not fill this node's memory


class Room:
    """Of one peer, by kind. What is not used is said in `refusals`."""

    def __init__(self, refusals: Refusals) -> None:
        self.short: set[str] = set()  # kinds of which something was dropped, and something has gone since
        self._refusals = refusals
        self._dropped: dict[str, dict[Any, None]] = {}
        self._more: set[str] = set()  # kinds of which some were dropped without a name: there are too many
        self._why: dict[str, str] = {}
        self.backends = 0  # of all its services together

    def dropped(self, kind: str) -> dict[Any, None]:
        """The names of what was dropped of `kind`, or of the first of them."""
        return self._dropped.get(kind, {})

    def take(self, kind: str, name: Any, before: Any, value: Any, held: int, limits: Limits) -> bool:
        """Whether there is room for `value` in the place of `before`, where `held` entries of `kind` are held."""
        backends = self.backends + _backends(value) - _backends(before)
        if value is not None and (why := self._objection(kind, before, held, backends, limits)):
            self._drop(kind, name, f"has more than {why}, which is the limit")
            return False
        freed = before is not None and (value is None or backends < self.backends)
        self.backends = backends
        if kind in self._dropped:
            self._forget(kind, name)
            if freed and kind in self._dropped:
                self.short.add(kind)
        return True

    def listed(self, kind: str) -> None:
        """All of `kind` was said anew: it had room, or it was dropped again."""
        if kind in self.short:
            self.clear(kind)

    def clear(self, kind: str) -> None:
        """Nothing of `kind` is dropped."""
        self._dropped.pop(kind, None)
        self._more.discard(kind)
        self.short.discard(kind)
        self._refusals.set("tables", kind, None)

    def change_limits(self) -> None:
        """They are others now: whatever was dropped may have room."""
        self.short.update(self._dropped)

    def _objection(self, kind: str, before: Any, held: int, backends: int, limits: Limits) -> str:
        limit = limits.keys.get(kind)
        if before is None and limit is not None and held >= limit:
            return f"{limit} {kind}"
        return f"{limits.backends} backends in all its services" if self.backends < backends > limits.backends else ""

    def _drop(self, kind: str, name: Any, why: str) -> None:
        dropped = self._dropped.setdefault(kind, {})
        if len(dropped) < MOST_NAMED:
            dropped[name] = None
        elif name not in dropped:
            self._more.add(kind)
        self.short.discard(kind)
        self._tell(kind, why)

    def _tell(self, kind: str, why: str) -> None:
        dropped = self._dropped[kind]
        number = f"{MOST_NAMED} or more" if kind in self._more else len(dropped)
        self._why[kind] = why
        said = f"{why}: {number} {kind} are not used"
        self._refusals.set("tables", kind, Refusal(Reason.LIMIT, said, max(len(dropped), 1)))

    def _forget(self, kind: str, name: Any) -> None:
        dropped = self._dropped[kind]
        dropped.pop(name, None)
        if not dropped and kind not in self._more:
            self.clear(kind)
            return
        self._tell(kind, self._why[kind])
        if not dropped:  # whether there are any left is what a list will say
            self.short.add(kind)


def _backends(value: Any) -> int:
    return len(value.backends) if isinstance(value, Service) else 0
