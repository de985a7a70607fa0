"""What is told while keys are written: what came before our write is no news, however it is told."""

from __future__ import annotations

from collections.abc import Iterable

from hypothesis import given
from hypothesis import strategies as st

from clustermesh.apiserver.in_order import InOrder
from clustermesh.store.operations import KeyValue

KEY = b"a"


class _Taken(InOrder):
    def __init__(self) -> None:
        self.written: dict[bytes, int] = {}
        super().__init__(self.written)
        self.value: bytes | None = None

    def _known(self) -> Iterable[bytes]:
        return ()

    def _take(self, key: bytes, kv: KeyValue | None) -> None:
        self.value = kv.value if kv else None


@given(st.lists(st.booleans(), min_size=1, max_size=6), st.integers(0, 6), st.booleans())
def test_what_is_known_in_the_end_is_what_was_written_last(ours: list[bool], late: int, answered_late: bool) -> None:
    """`ours` says of each revision who wrote it; up to `late` of them nothing is told before the writing begins, and
    etcd's answer to a write of ours may come after its echo."""
    taken = _Taken()

    def tell(revision: int) -> None:
        taken.observe(KEY, KeyValue(KEY, b"%d" % revision, revision), revision)

    def wrote(revision: int) -> None:
        taken.written[KEY] = revision

    with taken.busy():
        untold = []
        for revision, own in enumerate(ours, start=1):
            untold.append(revision)
            if own and not answered_late:
                wrote(revision)
            if revision >= late:
                for each in untold:
                    tell(each)
                untold.clear()
            if own and answered_late:
                wrote(revision)
            if own:
                taken.value = b"%d" % revision  # as who writes notes it
    for each in untold:
        tell(each)
    assert taken.value == b"%d" % len(ours)
    assert not taken.written or answered_late, "what was heard of is forgotten"
