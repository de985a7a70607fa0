"""Two agents of one name: who gives way for how long, and what is said of it."""

from __future__ import annotations

from msgspec.structs import replace

from agent.registration import LAST, Contest
from clustermesh.model import AgentRecord
from clustermesh.wire import local

OURS = AgentRecord(node="n1", wireguard_public_key="A" * 43 + "=", boot_id="ours")
TWIN = local.encode_agent(AgentRecord(node="n1", wireguard_public_key="B" * 42 + "A=", boot_id="theirs"))


def test_what_another_agent_wrote_stands_for_longer_each_time() -> None:
    contest = Contest(OURS)
    assert [contest.meet(TWIN, 0.0) for _ in range(8)] == [1, 2, 4, 8, 16, 32, 60, 60]


def test_what_no_other_agent_wrote_is_written_over_at_once() -> None:
    contest = Contest(OURS)
    assert [contest.meet(value, 0.0) for value in (b"", b"{}", b"garbage")] == [0, 0, 0]
    assert contest.problem(0.0) == ""


def test_the_other_is_named_until_it_was_silent_for_long_and_then_all_begins_anew() -> None:
    contest = Contest(OURS)
    contest.meet(TWIN, 0.0)
    contest.meet(TWIN, 1.0)
    assert "says that it is Node n1, on another machine (boot id theirs)" in contest.problem(2 * LAST)
    assert contest.problem(2 * LAST + 1.1) == ""
    assert contest.meet(TWIN, 2 * LAST + 1.1) == 1.0


def test_a_second_agent_on_this_machine_is_said_to_be_here() -> None:
    contest = Contest(OURS)
    contest.meet(local.encode_agent(replace(OURS, wireguard_public_key="B" * 42 + "A=")), 0.0)
    assert "on this machine" in contest.problem(0.0)
