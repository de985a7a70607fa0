"""How long the next pass waits."""

from __future__ import annotations

from clustermesh.gathering import Gathering


def test_only_a_pass_that_writes_keeps_the_next_one_waiting() -> None:
    gathering = Gathering(0.5)
    assert gathering.wait(7.0) == 0
    gathering.begin(7.0, writes=True)
    gathering.begin(7.25, writes=False)
    assert [gathering.wait(now) for now in (7.25, 7.5, 8.0)] == [0.25, 0, 0]
