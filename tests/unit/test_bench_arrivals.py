"""What the bench makes of the changes it asked for and of what its watchers heard."""

from __future__ import annotations

import pytest
from bench.controlplane._arrivals import Expected, Heard, milliseconds

MS = 1_000_000


def test_a_change_took_from_being_asked_for_to_the_first_value_that_has_it() -> None:
    heard = [Heard(b"a", b"old", 1 * MS), Heard(b"b", b"new", 2 * MS), Heard(b"a", b"new", 9 * MS)]
    heard.append(Heard(b"a", b"new", 20 * MS))
    assert milliseconds([Expected(b"a", b"new", 3 * MS)], heard) == [6.0]


def test_a_change_that_a_later_one_has_overtaken_has_arrived_with_it() -> None:
    expected = [Expected(b"a", b"one", 1 * MS), Expected(b"a", b"two", 2 * MS), Expected(b"a", b"three", 3 * MS)]
    assert milliseconds(expected, [Heard(b"a", b"two", 5 * MS), Heard(b"a", b"three", 7 * MS)]) == [4.0, 3.0, 4.0]


def test_a_change_that_never_arrives_is_said() -> None:
    with pytest.raises(RuntimeError, match="1 changes never arrived"):
        milliseconds([Expected(b"a", b"one", 1), Expected(b"b", b"one", 1)], [Heard(b"a", b"one", 2)])
