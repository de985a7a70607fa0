"""Which of many names hold addresses that touch: equal ones, or a CIDR around them. Pure.

Spans are blocks as CIDRs are, so two of them nest or have nothing in common. What touches one span is found without a
look at the others: what begins within it by order, what is around it by the few sizes there are.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right, insort
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence

Span = tuple[int, int]
"""First and last address, as numbers."""


class Spans:
    """The spans of each name."""

    def __init__(self) -> None:
        self._of: dict[str, tuple[Span, ...]] = {}
        self._names: dict[Span, set[str]] = {}
        self._order: list[Span] = []
        self._sizes: Counter[int] = Counter()

    def put(self, name: str, spans: Sequence[Span]) -> set[str]:
        """`name` has `spans` now; whom it touched before, and whom it touches now, itself not counted."""
        touched = set(self._neighbours(name))
        for span in self._of.pop(name, ()):
            self._discard(span, name)
        if spans:
            self._of[name] = tuple(dict.fromkeys(spans))
        for span in self._of.get(name, ()):
            self._add(span, name)
        touched.update(self._neighbours(name))
        return touched - {name}

    def closure(self, names: Iterable[str]) -> set[str]:
        """`names`, whom they touch, whom those touch, and so on."""
        found, waiting = set(names), list(names)
        while waiting:
            new = set(self._neighbours(waiting.pop())) - found
            found |= new
            waiting += new
        return found

    def _neighbours(self, name: str) -> Iterator[str]:
        for span in self._of.get(name, ()):
            for other in self._touching(span):
                yield from self._names[other]

    def _touching(self, span: Span) -> Iterator[Span]:
        first, last = span
        begin, end = bisect_left(self._order, (first, first)), bisect_right(self._order, (last, 1 << 128))
        yield from self._order[begin:end]
        for size in self._sizes:
            around = first - first % size
            if around < first and (other := (around, around + size - 1)) in self._names:
                yield other

    def _add(self, span: Span, name: str) -> None:
        if span not in self._names:
            insort(self._order, span)
            self._sizes[span[1] - span[0] + 1] += 1
        self._names.setdefault(span, set()).add(name)

    def _discard(self, span: Span, name: str) -> None:
        self._names[span].discard(name)
        if not self._names[span]:
            del self._names[span]
            del self._order[bisect_left(self._order, span)]
            self._sizes[span[1] - span[0] + 1] -= 1
            self._sizes += Counter()  # without those that are zero
