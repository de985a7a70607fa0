"""Who may write a node's record: an agent of its name that is elsewhere, one before it is known where it is, two."""

from __future__ import annotations

import asyncio

import pytest
from msgspec.structs import replace

from agent import registration
from agent.registration import LAST, Contest, Registration
from clustermesh.errors import Unavailable
from clustermesh.model import AgentRecord, Identity, Label
from clustermesh.store.operations import KeyValue
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


class OneKey:
    """An etcd that holds one value. `silent` is how many calls it does not answer."""

    def __init__(self, value: bytes | None = None) -> None:
        self.value, self.revision, self.silent, self.asked = value, 1, 0, 0

    async def get(self, key: bytes) -> KeyValue | None:
        return None if self.value is None else KeyValue(key, self.value, self.revision, 0, 1)

    async def swap(self, key: bytes, expected_mod_revision: int, value: bytes) -> bool:
        self.asked += 1
        if self.silent:
            self.silent -= 1
            raise Unavailable("etcd does not answer")
        if expected_mod_revision != (0 if self.value is None else self.revision):
            return False
        await self.put(key, value)
        return True

    async def put(self, _key: bytes, value: bytes) -> None:
        self.value, self.revision = value, self.revision + 1


async def turns(number: int = 50) -> None:
    for _ in range(number):
        await asyncio.sleep(0)


@pytest.fixture
def at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registration, "_LOOK", 0.0)


@pytest.mark.usefixtures("at_once")
@pytest.mark.parametrize("held", [None, TWIN])
async def test_who_is_not_known_to_be_here_asks_for_the_name_until_it_is_answered_and_no_more(
    held: bytes | None,
) -> None:
    """In an etcd that was emptied the node's own agent waits for its turn."""
    etcd = OneKey(held)
    etcd.silent = 3
    task = asyncio.create_task(Registration(OURS).keep(etcd, asyncio.Event(), lambda: 5000))  # type: ignore[arg-type]
    await turns()
    assert (etcd.value, etcd.asked) == (held or local.encode_agent(OURS), 4)
    etcd.value = None
    await turns()
    assert etcd.value is None
    task.cancel()


UNUSUAL = Identity(id=70000, labels=(Label(source="k8s", key="app", value="web"),))


@pytest.mark.parametrize("held", [None, TWIN])
async def test_news_do_not_break_into_a_contest_and_take_nobodys_turn(held: bytes | None) -> None:
    etcd, agent = OneKey(held), Registration(OURS)
    agent._registered = True
    agent.remember((UNUSUAL,))
    task = asyncio.create_task(agent._write_news(etcd, lambda: 1))  # type: ignore[arg-type]
    await turns()
    assert etcd.value == held
    task.cancel()


async def test_news_take_the_place_of_what_this_agent_said_before() -> None:
    etcd, agent = OneKey(local.encode_agent(OURS)), Registration(OURS)
    agent.remember((UNUSUAL,))
    task = asyncio.create_task(agent._write_news(etcd, lambda: 1))  # type: ignore[arg-type]
    await turns()
    assert etcd.value is not None
    assert local.decode_agent(etcd.value).identities == (UNUSUAL,)
    task.cancel()
