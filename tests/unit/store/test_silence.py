"""Who asks whether etcd is there, when, and who gives up: calls of one connection, on a clock that is stepped."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable
from itertools import pairwise

import pytest

from clustermesh.store import rpc_pb2 as pb
from clustermesh.store.connection import Connection, Dialer
from clustermesh.store.endpoint import parse
from clustermesh.store.silence import Chatter, Pulse, Silence, Step, Wait

SILENCE = Silence(grace=5.0, quiet=10.0, alone=90.0)
DELAY = 0.01  # seconds from a question to its answer


class Line:
    """A connection with so many calls, each of which waits for its next response; `answers` says who gets one."""

    def __init__(self, calls: int, answers: Callable[[int], bool], seed: int = 1) -> None:
        self.pulse = Pulse(random.Random(seed))
        self.now = 0.0
        self.waits = {call: Wait(self.pulse, SILENCE, 0.0) for call in range(calls)}
        self.asked: list[tuple[float, int]] = []
        self.gave_up: dict[int, float] = {}
        self._answers = answers
        self._coming: list[tuple[float, int]] = []

    def hear(self, call: int) -> None:
        self.pulse.heard = self.now
        if call in self.waits:
            self.waits[call] = Wait(self.pulse, SILENCE, self.now)

    def run(self, until: float) -> None:
        while (at := self._next()) <= until:
            self.now = at
            coming, self._coming = self._coming, []
            for when, call in coming:
                if when <= self.now:
                    self.hear(call)
                else:
                    self._coming.append((when, call))
            for call, wait in list(self.waits.items()):
                self._step(call, wait.step(self.now))
        self.now = until

    def _next(self) -> float:
        return min([*(when for when, _ in self._coming), *(wait.due for wait in self.waits.values())], default=1e9)

    def _step(self, call: int, step: Step) -> None:
        if step is Step.GIVE_UP:
            self.gave_up[call] = self.now
            del self.waits[call]
        elif step is Step.ASK:
            self.asked.append((self.now, call))
            if self._answers(call):
                self._coming.append((self.now + DELAY, call))


def test_one_call_asks_for_all_that_share_its_connection() -> None:
    line = Line(500, lambda _call: True)
    line.run(60.0)
    times = [at for at, _ in line.asked]
    assert 60 / 10 - 1 <= len(times) <= 60 / 8
    assert all(after - before <= 10.0 + DELAY for before, after in pairwise(times))
    assert not line.gave_up


def test_nobody_asks_while_any_of_them_is_heard_of() -> None:
    line = Line(500, lambda _call: False)
    for second in range(60):
        line.run(float(second))
        line.hear(7)
    assert not line.asked


def test_where_nobody_answers_each_asks_for_itself_and_then_gives_up() -> None:
    line = Line(500, lambda _call: False)
    line.run(60.0)
    assert len(line.gave_up) == 500
    assert max(line.gave_up.values()) <= 10.0 + 5.0 + 5.0
    assert sorted(call for _, call in line.asked) == list(range(500))  # once each


def test_one_whose_call_is_forgotten_gives_up_while_the_others_go_on() -> None:
    line = Line(500, lambda call: call != 7)
    line.run(200.0)
    assert list(line.gave_up) == [7]
    assert line.gave_up[7] <= 90.0 + 5.0


def test_a_question_of_one_that_has_left_is_asked_again_by_the_others() -> None:
    line = Line(3, lambda call: call != 0)
    line.run(10.0)
    assert [call for _, call in line.asked] == [0]
    del line.waits[0]
    line.run(60.0)
    assert {call for _, call in line.asked} == {0, 1, 2}
    assert not line.gave_up


def test_the_answer_to_a_request_is_waited_for_without_asking() -> None:
    wait = Wait(Pulse(), SILENCE, 100.0, is_asked=True)
    assert (wait.due, wait.step(104.9), wait.step(105.0)) == (105.0, Step.WAIT, Step.GIVE_UP)


@pytest.mark.parametrize("seed", range(20))
def test_nobody_gives_up_unheard_and_nobody_waits_for_ever(seed: int) -> None:
    rng = random.Random(seed)
    dead = {call for call in range(20) if rng.random() < 0.3}
    line = Line(20, lambda call: call not in dead, seed)
    while line.now < 300.0:
        line.run(line.now + rng.expovariate(1 / 7))
        line.hear(rng.choice([call for call in range(20) if call not in dead]))
    assert line.gave_up.keys() == dead
    assert dead <= {call for _, call in line.asked}
    assert max(line.gave_up.values(), default=0.0) <= 90.0 + 5.0


async def test_every_answer_of_etcd_is_a_word_on_its_connection() -> None:
    connection = Connection(parse("http://127.0.0.1:1"), "127.0.0.1", None)
    Dialer(["http://127.0.0.1:1"], None, {}, 1.0).observe(connection, pb.ResponseHeader(cluster_id=1))
    await connection.channel.close()
    assert 0 < connection.pulse.heard <= asyncio.get_running_loop().time()


def test_connections_ask_at_different_times() -> None:
    assert len({Wait(Pulse(random.Random(seed)), SILENCE, 0.0).due for seed in range(100)}) == 100


def test_chatter_is_borne_as_often_as_an_etcd_has_reason_for() -> None:
    chatter = Chatter()
    assert not any(chatter.is_too_much(0.1 * tick, 40) for tick in range(10_000))
    assert not any(chatter.is_too_much(1000.0, 40) for _ in range(900))
    assert any(chatter.is_too_much(1000.0, 40) for _ in range(200))


def test_one_message_of_chatter_may_be_too_much() -> None:
    assert Chatter().is_too_much(0.0, 1 << 20)
