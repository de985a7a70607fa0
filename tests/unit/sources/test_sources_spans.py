"""Neighbours found by order and size, beside a look at everybody."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from clustermesh.sources.spans import Span, Spans

_SPANS = st.builds(lambda bits, place: (place >> bits << bits, (place >> bits << bits) + (1 << bits) - 1),
                   st.integers(0, 5), st.integers(0, 63))  # fmt: skip
_STEPS = st.lists(st.tuples(st.sampled_from("abcdef"), st.lists(_SPANS, max_size=3)), max_size=20)


def touch(one: list[Span], other: list[Span]) -> bool:
    return any(a[0] <= b[1] and b[0] <= a[1] for a in one for b in other)


@given(_STEPS)
def test_whom_a_name_touches_is_whom_a_look_at_every_pair_would_find(steps: list[tuple[str, list[Span]]]) -> None:
    spans, twin = Spans(), dict[str, list[Span]]()
    for name, held in steps:
        before = twin.pop(name, [])
        expected = {other for other, theirs in twin.items() if touch(before, theirs) or touch(held, theirs)}
        assert spans.put(name, held) == expected
        twin[name] = held
        reached, waiting = {name}, [name]
        while waiting:
            here = twin[waiting.pop()]
            new = {other for other, theirs in twin.items() if touch(here, theirs)} - reached
            reached |= new
            waiting += new
        assert spans.closure({name}) == reached
