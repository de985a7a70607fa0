"""How much of the loop a reader's cluster may take, by clocks that only what is taken in and waiting move."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator
from typing import Any

import pytest
from test_reader import CONFIG, SERVICES, Sink, heard, make_reader, put

from clustermesh.errors import Unavailable
from clustermesh.mesh.messages import Attested, Configured, Event, Heard
from clustermesh.mesh.pace import LONGEST, SAVED, SHARE, Budget
from clustermesh.model import Service
from clustermesh.store.follow import Changed, Deleted, Listed, Put
from clustermesh.wire import keys, service

WITNESSES = {keys.HEARTBEAT: 0, keys.canary_key("beta", "services"): 0}


class Slow(Sink):
    """Works for `cost` seconds for each service that is put or removed, and is stopped for `stopped` meanwhile."""

    now = cpu = slept = 0.0

    def __init__(self, cost: float = 0.06, stopped: float = 0.0) -> None:
        super().__init__("alpha")
        self.cost, self.stopped = cost, stopped

    def put(self, cluster: str, kind: str, name: Any, value: Any, revision: int = 0) -> None:
        super().put(cluster, kind, name, value)
        self._work(kind)

    def remove(self, cluster: str, kind: str, name: Any, revision: int = 0) -> None:
        super().remove(cluster, kind, name)
        self._work(kind)

    def _work(self, kind: str) -> None:
        if kind == "services":
            self.cpu += self.cost
            self.now += self.cost + self.stopped

    async def sleep(self, seconds: float) -> None:
        self.now += seconds
        self.slept += seconds


class Script:
    """Tells a reader what is in `events`, and ends it. `asked` is what `sink` had slept whenever it was asked."""

    waited = 0.0  # as the reader says in the end

    def __init__(self, sink: Slow, events: list[Event]) -> None:
        self._sink, self._events, self.asked = sink, [Configured(CONFIG), *events], [0.0]

    def follow(self, prefix: bytes, live: bool) -> None: ...

    def start(self, _about: object, events: AsyncIterator[Event]) -> None: ...

    async def next(self, _due: float | None) -> Event:
        self.asked.append(self._sink.slept)
        if not self._events:
            raise Unavailable("all is told")
        return self._events.pop(0)


async def play(sink: Slow, events: list[Event], budget: Budget | None) -> Script:
    reader, script = make_reader(sink), Script(sink, events)
    reader.budget, reader.cpu, reader.clock, reader.sleep = budget, lambda: sink.cpu, lambda: sink.now, sink.sleep
    with pytest.raises(Unavailable):
        await reader._read(None, script)  # type: ignore[arg-type]
    script.waited = reader.waited
    return script


def web(number: int, times: int = 1) -> Put:
    told = Service(cluster="beta", cluster_id=2, namespace="n", name=f"web{number}", shared=bool(times % 2))
    return put(keys.service_key("beta", "n", told.name), service.encode(told))


def rewritten(times: int) -> list[Event]:
    return [*heard()[:-1], *(Heard(SERVICES, Changed([web(0, each)], 3 + each)) for each in range(times))]


def deleted(times: int) -> list[Event]:
    """Each put, and gone with the answer that says so."""
    events: list[Event] = [*heard()[:-1]]
    for revision in range(3, 3 + 2 * times, 2):
        events.append(Heard(SERVICES, Changed([web(0)], revision)))
        events.append(Heard(SERVICES, Changed([Deleted(web(0).kv.key, revision + 1)], revision + 1)))
        events.append(Attested(WITNESSES, revision + 1))
    return events


def share_of(held: float) -> float:
    """Seconds to wait for so many."""
    return max(0.0, (held - SAVED) / SHARE - held)


@pytest.mark.parametrize(("times", "waits"), [(40, False), (400, True)])
async def test_a_peer_that_changes_much_all_the_time_has_its_share_of_the_loop_once_its_savings_are_spent(
    times: int, waits: bool
) -> None:
    sink = Slow()
    await play(sink, rewritten(times), Budget())
    assert bool(sink.slept) is waits
    assert sink.cpu == pytest.approx(0.06 * times)
    assert sink.slept == pytest.approx(share_of(sink.cpu), abs=1.0)


async def test_what_is_removed_is_of_the_share_as_well() -> None:
    sink = Slow()
    await play(sink, deleted(200), Budget())
    assert sink.cpu == pytest.approx(0.06 * 400), "all of them were taken in"
    assert sink.slept == pytest.approx(share_of(sink.cpu), abs=1.0)


async def test_neither_a_list_nor_the_own_cluster_waits_however_much_it_is() -> None:
    sink = Slow()
    listed = [Heard(SERVICES, Listed([web(number)], 2, more=number < 399)) for number in range(400)]
    await play(sink, [*heard()[:-2], *listed], Budget())
    await play(sink, rewritten(400), None)
    assert (round(sink.now / 0.06), sink.slept) == (800, 0)


async def test_a_machine_that_stands_still_meanwhile_costs_the_peer_nothing() -> None:
    sink = Slow(cost=0.001, stopped=30.0)
    await play(sink, rewritten(20), Budget())
    assert sink.now > 600
    assert sink.slept == 0
    assert make_reader(sink).cpu is time.thread_time


async def test_whoever_is_deep_in_debt_is_heard_every_second() -> None:
    sink = Slow(cost=30.0)
    script = await play(sink, rewritten(50), Budget())
    assert script.waited == sink.slept == pytest.approx(50 * LONGEST)
    gaps = [after - before for before, after in zip(script.asked, script.asked[1:], strict=False)]
    assert max(gaps) <= LONGEST + 1e-6
