"""What is to be planned and decided on again, found out in turns: one event may concern a whole cluster. Pure."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Hashable, Iterator
from itertools import islice
from typing import Final

from clustermesh.address import Address
from clustermesh.mesh.view import ServiceName

TURN: Final = 2048  # names that are found out in one turn


class Doubts:
    """Places to look at, in the order in which they were said: one that waits is looked at as it is by then."""

    def __init__(self, turn: int = TURN) -> None:
        self._turn = turn
        self._waiting: OrderedDict[Hashable, tuple[str, Iterator[Address | ServiceName]]] = OrderedDict()
        self._begun: tuple[str, Iterator[Address | ServiceName]] | None = None

    def __bool__(self) -> bool:
        return self._begun is not None or bool(self._waiting)

    def add(self, place: Hashable, cluster: str, names: Iterator[Address | ServiceName]) -> None:
        """`names` are those of `cluster` at `place`, and are not looked at before their turn."""
        self._waiting.setdefault(place, (cluster, names))

    def go_on(self) -> Iterator[tuple[str, list[Address | ServiceName]]]:
        """One turn's worth of names, each with its cluster."""
        left = self._turn
        while left > 0 and self:
            cluster, names = self._begun or self._waiting.popitem(last=False)[1]
            found = list(islice(names, left))
            self._begun = (cluster, names) if len(found) == left else None
            left -= len(found) + 1
            yield cluster, found
