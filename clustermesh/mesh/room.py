"""How much of what peers say is taken in, of each alone and of all together, and what there was no room for. Pure.

What is dropped is forgotten but for its name, so its cluster has to say it again: once something has gone, and with it
there is room, the table is `short`, and whoever reads it lists it anew. A service that changes never stays as it was:
its dead backends would be called. It is taken as far as it fits, and listed anew all the same.
"""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Mapping, Set
from typing import Any, Final

from msgspec.structs import replace

from clustermesh.mesh.authority import TOGETHER, Limits
from clustermesh.mesh.refusals import Reason, Refusal, Refusals
from clustermesh.model import Service
from clustermesh.wire.kinds import SERVICES

MOST_NAMED: Final = 10_000  # a peer full of what is dropped must not fill this node's memory
_BACKENDS: Final = "backends"


class SharedRoom:
    """What all peers have together of what the kernel's maps bound, and who waits for room there."""

    def __init__(self, most: Mapping[str, int] = TOGETHER) -> None:
        self.most, self.used = most, dict.fromkeys(most, 0)
        self._waiting: dict[str, dict[Room, None]] = {}

    def has_room(self, what: str, more: int) -> bool:
        return more <= self.free(what)

    def free(self, what: str) -> int:
        return self.most[what] - self.used[what] if what in self.used else sys.maxsize

    def wait(self, what: str, room: Room) -> None:
        """`room` is told once there is less of `what`."""
        self._waiting.setdefault(what, {})[room] = None

    def leave(self, room: Room) -> None:
        """`room` waits for nothing any more."""
        for waiting in self._waiting.values():
            waiting.pop(room, None)

    def use(self, what: str, more: int) -> None:
        """So many more, or fewer."""
        if what in self.used:
            self.used[what] += more
        if more < 0 and self._waiting:
            for room in self._waiting.pop(what, ()):
                room.may_have_more(SERVICES if what == _BACKENDS else what)


class Room:
    """Of one peer, by kind, in `shared`. What is not used is said in `refusals`."""

    def __init__(self, refusals: Refusals, shared: SharedRoom) -> None:
        self.short: set[str] = set()  # kinds of which something was dropped, and something has gone since
        self._refusals, self._shared = refusals, shared
        self._used = Counter[str]()  # by kind, and the backends of all its services together
        self._dropped: dict[str, dict[Any, None]] = {}
        self._more: set[str] = set()  # kinds of which some were dropped without a name: there are too many
        self._objections: dict[str, Refusal] = {}

    @property
    def backends(self) -> int:
        """Addresses and ports, of all its services together."""
        return self._used[_BACKENDS]

    @property
    def kinds_dropped(self) -> Set[str]:
        """Of which something was."""
        return self._dropped.keys()

    def dropped(self, kind: str) -> dict[Any, None]:
        """The names of what was dropped of `kind`, or of the first of them."""
        return self._dropped.get(kind, {})

    def take(self, kind: str, name: Any, before: Any, value: Any, limits: Limits) -> Any:
        """`value` as far as there is room for it in the place of `before`: None where it is not taken at all."""
        entries, backends = _growth(kind, before, value)
        objection = self._object(kind, entries, backends, limits) if entries > 0 or backends > 0 else None
        if objection is not None:
            value = None if before is None else _cut(value, _backends(before) + max(self._free(limits), 0))
            entries, backends = _growth(kind, before, value)
        if entries:
            self._use(kind, entries)
        if backends:
            self._use(_BACKENDS, backends)
        if objection is not None:
            self._drop(kind, name, objection)
        elif kind in self._dropped:
            self._forget(kind, name)
        if entries < 0 or backends < 0:
            self.may_have_more(kind)
        return value

    def begin_list(self, kind: str) -> None:
        """All of `kind` is about to be said anew: what has no name here has room, or is dropped again."""
        if kind not in self._dropped:
            return
        self.short.discard(kind)
        self._more.discard(kind)
        if self._dropped[kind]:
            self._tell(kind)
        else:
            self.clear(kind)

    def empty(self, kind: str) -> None:
        """Nothing of `kind` is held any more."""
        self._use(kind, -self._used[kind])
        if kind == SERVICES:
            self._use(_BACKENDS, -self.backends)
        self.clear(kind)

    def leave(self) -> None:
        """Nothing at all is."""
        for kind in list(self._used):
            self.empty(kind)
        self._shared.leave(self)

    def clear(self, kind: str) -> None:
        """Nothing of `kind` is dropped."""
        self._dropped.pop(kind, None)
        self._more.discard(kind)
        self.short.discard(kind)
        self._refusals.set("tables", kind, None)

    def change_limits(self) -> None:
        """They are others now: whatever was dropped may have room."""
        self.short.update(self._dropped)

    def may_have_more(self, kind: str) -> None:
        """Something has gone, here or of another peer's."""
        if kind in self._dropped:
            self.short.add(kind)

    def _use(self, what: str, more: int) -> None:
        self._used[what] += more
        self._shared.use(what, more)

    def _object(self, kind: str, entries: int, backends: int, limits: Limits) -> Refusal | None:
        limit = limits.keys.get(kind)
        if entries > 0 and limit is not None and self._used[kind] >= limit:
            return Refusal(Reason.LIMIT, f"has more than {limit} {kind}, which is the limit")
        if (
            backends > 0
            and backends > (left := limits.backends - self.backends)
            and left <= self._shared.free(_BACKENDS)
        ):
            why = f"has more than {limits.backends} backends in all its services, which is the limit"
            return Refusal(Reason.LIMIT, why)
        if entries > 0 and not self._shared.has_room(kind, entries):
            return self._wait(kind)
        return self._wait(_BACKENDS) if backends > 0 and not self._shared.has_room(_BACKENDS, backends) else None

    def _free(self, limits: Limits) -> int:
        """So many more backends could be taken."""
        return min(limits.backends - self.backends, self._shared.free(_BACKENDS))

    def _wait(self, what: str) -> Refusal:
        self._shared.wait(what, self)
        why = f"finds no room, for all peers together have {self._shared.most[what]} {what} at most"
        return Refusal(Reason.FULL, why)

    def _drop(self, kind: str, name: Any, objection: Refusal) -> None:
        dropped = self._dropped.setdefault(kind, {})
        if len(dropped) < MOST_NAMED:
            dropped[name] = None
        elif name not in dropped:
            self._more.add(kind)
        self.short.discard(kind)
        self._objections[kind] = objection
        self._tell(kind)

    def _tell(self, kind: str) -> None:
        (reason, why, _), dropped = self._objections[kind], self._dropped[kind]
        number = f"{MOST_NAMED} or more" if kind in self._more else len(dropped)
        partly = ", or not with all their backends" if kind == SERVICES else ""
        refusal = Refusal(reason, f"{why}: {number} {kind} are not used{partly}", max(len(dropped), 1))
        self._refusals.set("tables", kind, refusal)

    def _forget(self, kind: str, name: Any) -> None:
        dropped = self._dropped[kind]
        dropped.pop(name, None)
        if not dropped and kind not in self._more:
            self.clear(kind)
            return
        self._tell(kind)
        if not dropped:  # whether there are any left is what a list will say
            self.short.add(kind)


def _growth(kind: str, before: Any, value: Any) -> tuple[int, int]:
    """So many more entries, and backends, with `value` in the place of `before`."""
    entries = (value is not None) - (before is not None)
    return entries, _backends(value) - _backends(before) if kind == SERVICES else 0


def _cut(service: Service, most: int) -> Service:
    """`service` with its first backends, in the order of addresses: as many as take no more than `most`."""
    kept = {}
    for address in sorted(service.backends):
        ports = service.backends[address]
        most -= len(ports) or 1
        if most < 0:
            break
        kept[address] = ports
    return replace(service, backends=kept)


def _backends(service: Service | None) -> int:
    """As many as the kernel's map may have of it."""
    return 0 if service is None else sum(len(ports) or 1 for ports in service.backends.values())
