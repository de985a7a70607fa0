"""The demo: a lab of its own, every promise of `promises` in turn, and the lab gone again. What happened is data."""

from __future__ import annotations

import asyncio
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final, Protocol

from msgspec import Struct

from lab import bring_up, preconditions, promises, state, teardown
from lab.lab import Lab
from lab.plan import LabPlan
from lab.records import Requests, Traffic, add
from lab.streams import Capture, Counts

_CLAIMS: Final = 9  # fewer verdicts than this: the run ended early


class Audience(Protocol):
    """Who watches: a terminal, a log."""

    def step(self, number: int, title: str) -> None: ...
    def doing(self, sentence: str) -> None: ...
    def load(self, load: Requests) -> None: ...
    def capture(self, capture: Capture) -> None: ...
    def claim(self, held: bool, sentence: str) -> None: ...


class Failover(Struct, frozen=True, kw_only=True):
    """Requests while alpha's pods went and came back; `longest_gap_ms` without any answer."""

    requests: int = 0
    failed: int = 0
    longest_gap_ms: float = 0.0


class Restart(Struct, frozen=True, kw_only=True):
    """Requests while an agent was killed and started again."""

    requests: int = 0
    failed: int = 0


class Wire(Struct, frozen=True, kw_only=True):
    """What the underlay carried during the whole demo."""

    clear_on_wire: int = 0
    wireguard_packets: int = 0


class Delay(Struct, frozen=True, kw_only=True):
    """YAML change in one cluster to map write in the other, in milliseconds; None where nothing was measured."""

    p50: float | None = None
    p99: float | None = None


class Outcome(Struct, kw_only=True):
    """What `clustermesh demo --json` prints. `ok` only where every claim held and nothing was left behind."""

    ok: bool = False
    clusters: int = 0
    nodes: int = 0
    requests: int = 0
    failed: int = 0
    answers: dict[str, int] = {}
    failover: Failover = Failover()
    agent_restart: Restart = Restart()
    encrypted: Wire = Wire()
    propagation_ms: Delay = Delay()
    left_behind: list[str] = []


class Demo:
    """One run. `outcome` holds what is known so far, also where the run ends early; `begun` once anything was made."""

    def __init__(self, plan: LabPlan, audience: Audience) -> None:
        self._plan, self._audience = plan, audience
        self.begun = False
        self._held: list[bool] = []
        self._traffic: list[Traffic] = []
        self.outcome = Outcome(clusters=len(plan.clusters), nodes=sum(len(cluster.nodes) for cluster in plan.clusters))

    async def run(self) -> None:
        """Bring up, show, tear down; the last also after an error, SIGINT or SIGTERM, and in any case."""
        folder = Path(self._plan.folder)
        with state.only_one(folder), _terminated_like_interrupted():
            preconditions.check(self._plan.families)
            bring_up.check_free(folder)
            self.begun = True
            try:
                await self._show(await self._bring_up())
            finally:
                self._tear_down(folder)

    async def _bring_up(self) -> Lab:
        families = " and ".join(family.replace("ip", "IP") for family in self._plan.families)
        size = f"{self.outcome.clusters} clusters, {self.outcome.nodes} nodes"
        self._audience.step(0, f"{size}, {families}, on this machine")
        begin = time.monotonic()
        lab = await bring_up.up(self._plan, self._audience.doing, connected=False, bound=True)
        self._audience.claim(True, f"up after {time.monotonic() - begin:.1f} s, all pods ready")
        return lab

    async def _show(self, lab: Lab) -> None:
        await self._join(lab)
        capture = Capture(lab, promises.MARKER, promises.SELF_TEST)
        self._audience.capture(capture)
        async with capture.running():
            await self._call(lab)
            await self._fail_over(lab)
            await self._kill_agent(lab)
            await self._propagate(lab)
            await self._look_at_wire(lab, capture)
        await self._part(lab)

    async def _join(self, lab: Lab) -> None:
        self._audience.step(1, "Join them: clustermesh connect")
        joined = await promises.joins(lab, self._audience.load)
        self._count(joined.before.tcp, joined.before.udp)
        self._claim(joined.before.held, f"before: {_by_cluster(joined.before.tcp)}, alpha's backends only")
        self._claim(joined.held, f"connected: every cluster answers {joined.seconds:.1f} s later")

    async def _call(self, lab: Lab) -> None:
        self._audience.step(2, "A pod in alpha calls the global service `web`")
        both = await promises.answered_by_all(lab, self._audience.load)
        self._count(both.tcp, both.udp)
        self._claim(both.held, f"TCP: {_by_cluster(both.tcp)}; UDP: {_by_cluster(both.udp)}")

    async def _fail_over(self, lab: Lab) -> None:
        self._audience.step(3, "alpha's pods are deleted, and come back")
        over = await promises.fails_over(lab, self._audience.load)
        self._count(over.traffic)
        self.outcome.failover = Failover(
            requests=over.traffic.requests,
            failed=over.traffic.failed,
            longest_gap_ms=over.traffic.longest_gap_ms,
        )
        self._claim(
            over.held,
            f"{over.traffic.requests} requests at {over.rate:.0f}/s, {_failures(over.traffic)}; meanwhile "
            f"{_by_cluster(over.gone)}, then {_by_cluster(over.back)}; longest gap {over.traffic.longest_gap_ms} ms",
        )

    async def _kill_agent(self, lab: Lab) -> None:
        self._audience.step(4, "kill -9 of the agent, while the requests go on")
        restart = await promises.survives_agent_kill(lab, self._audience.load)
        self._count(restart.traffic)
        self.outcome.agent_restart = Restart(requests=restart.traffic.requests, failed=restart.traffic.failed)
        self._claim(
            restart.held,
            f"{restart.traffic.requests} requests at {restart.rate:.0f}/s, {_failures(restart.traffic)}; "
            f"{restart.down.requests} of them in the {restart.seconds} s without an agent",
        )

    async def _propagate(self, lab: Lab) -> None:
        self._audience.doing("how fast a change travels")
        delay = await promises.propagates(lab)
        self.outcome.propagation_ms = Delay(p50=delay.p50, p99=delay.p99)
        self._claim(
            delay.held, f"a line of YAML in beta is in alpha's kernel after {delay.p50} ms (p50), {delay.p99} ms (p99)"
        )

    async def _look_at_wire(self, lab: Lab, capture: Capture) -> None:
        self._audience.step(5, "What the wire between the nodes carried")
        secret = await promises.encrypted(lab, capture, self._audience.load)
        counts = capture.counts or Counts()
        self.outcome.encrypted = Wire(clear_on_wire=counts.clear_on_wire, wireguard_packets=counts.wireguard_packets)
        self._claim(
            secret.held,
            f"{counts.clear_on_wire} clear-text markers, {counts.wireguard_packets} WireGuard packets "
            f"({counts.self_test} clear test datagrams were seen, {counts.dropped} frames missed)",
        )

    async def _part(self, lab: Lab) -> None:
        self._audience.step(6, "Take them apart: clustermesh disconnect, then everything is removed")
        parted = await promises.parts(lab, self._audience.load)
        self._count(parted.meanwhile, parted.after.tcp, parted.after.udp)
        self._claim(
            parted.held,
            f"{parted.meanwhile.requests} requests meanwhile, {_failures(parted.meanwhile)}; "
            f"{parted.seconds:.1f} s later: {_by_cluster(parted.after.tcp)}",
        )

    def _tear_down(self, folder: Path) -> None:
        """Not to be interrupted: what is half removed is worse than a second of patience."""
        self._audience.doing("removing everything")
        before = signal.signal(signal.SIGINT, signal.SIG_IGN)
        try:
            self.outcome.left_behind = teardown.down(folder)
        finally:
            signal.signal(signal.SIGINT, before)
        left = self.outcome.left_behind
        self._claim(not left, f"left behind: {', '.join(left) or 'nothing'}")
        self.outcome.ok = len(self._held) == _CLAIMS and all(self._held)

    def _claim(self, held: bool, sentence: str) -> None:
        self._held.append(held)
        self._audience.claim(held, sentence)

    def _count(self, *parts: Traffic) -> None:
        self._traffic += parts
        whole = add(self._traffic)
        self.outcome.requests, self.outcome.failed, self.outcome.answers = whole.requests, whole.failed, whole.answers


@contextmanager
def _terminated_like_interrupted() -> Iterator[None]:
    """SIGTERM cancels this task, as SIGINT does under asyncio.run: so both lead through teardown."""
    loop, task = asyncio.get_running_loop(), asyncio.current_task()
    assert task is not None
    loop.add_signal_handler(signal.SIGTERM, task.cancel)
    try:
        yield
    finally:
        loop.remove_signal_handler(signal.SIGTERM)


def _by_cluster(traffic: Traffic) -> str:
    return " and ".join(f"{count} answers from {cluster}" for cluster, count in traffic.answers.items()) or "no answer"


def _failures(traffic: Traffic) -> str:
    """How many failed, and of what."""
    why = "; ".join(f"{count} times {error}" for error, count in traffic.errors.items())
    return f"{traffic.failed} failed" + (f" ({why})" if why else "")
