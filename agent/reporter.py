"""When an agent's report is written, so that all agents of a cluster together never write too much. Pure.

Rules, for a cluster of N nodes whose agents know nothing of each other:
- What concerns this node alone (its set-up, its device, its pods) is written at once.
- What every node sees at the same moment (another cluster is gone, a table is full, nothing was written yet) is written
  after a time drawn evenly from N/7 seconds: 7 writes a second; and not before N/7 seconds are over since the last
  write, so that two such waves never meet. Up to 20 nodes: at once. What is over by then is never written.
- Counts are written seldom: 0.72 s times N, an hour at 5,000 nodes. A number in a sentence that changes is a count.
- Every write is paid from this node's share of 15 MB that are saved up and 22 MB that come in each hour. A write may
  leave a debt, and the next one waits until it is paid: when that is must not depend on what is said then, or a report
  that gets shorter on all nodes would be affordable to many of them in one moment.

So 5,000 nodes with 50 clusters write 20 times a second and 50 MB an hour at most, but for one case: a fault that each
of many nodes has for itself in the same second costs one write from each.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Iterator
from enum import Enum
from typing import Final

from clustermesh.errors import DecodeError
from clustermesh.wire import agent_report
from clustermesh.wire.agent_report import AgentReport

FEW_NODES: Final = 20  # may all write in one second
_SHARED_PER_SECOND: Final = 7.0
_COUNTS_SECONDS: Final = 0.72  # per node
_COUNTS_AT_LEAST: Final = 2.0
_UNKNOWN_SECONDS: Final = 5.0  # to wait for the number of nodes, before the first report
_BYTES_PER_SECOND: Final = 22e6 / 3600
_BYTES_SAVED: Final = 15e6
_OVERHEAD: Final = 100  # bytes that etcd keeps beside each value
NUMBER: Final = re.compile(r"\d+")


class News(Enum):
    """What changed since the last report was written."""

    FIRST = "nothing was written"
    OWN = "this node"
    SHARED = "what every node sees"
    COUNTS = "only counts"


class Reporter:
    """`draw` gives numbers evenly from 0 to 1."""

    def __init__(self, draw: Callable[[], float]) -> None:
        self._draw = draw
        self._written = b""
        self._said: AgentReport | None = None
        self._noticed: dict[News, tuple[float, float]] = {}  # when, and the number drawn for it
        self._credit: float | None = None
        self._heard_at = self._wrote_at = -math.inf

    def found(self, value: bytes) -> None:
        """`value` is in etcd, from an earlier agent of this node; b"" for nothing."""
        self._written, self._said = value, None

    def remembers(self, value: bytes) -> bool:
        """Whether `value` is what was written last."""
        return value == self._written

    def hear(self, said: AgentReport, now: float, nodes: int) -> bytes | None:
        """The value to write at `now` (seconds, any clock that only goes on), None where there is nothing to do yet."""
        value = agent_report.encode(said)
        news = set(self._news(said, value))
        self._noticed = {each: self._noticed.get(each) or (now, self._draw()) for each in news}
        self._earn(now, max(nodes, 1))
        return value if self.due(nodes) <= now else None

    def due(self, nodes: int) -> float:
        """When what was heard last will be written, if it stays like that."""
        waits = (self._turn(each, nodes, *noticed) for each, noticed in self._noticed.items())
        return max(min(waits, default=math.inf), self._payable(max(nodes, 1)))

    def wrote(self, said: AgentReport, value: bytes) -> None:
        """`value`, what `hear` gave for `said`, is in etcd."""
        self._written, self._said = value, said
        self._noticed.clear()
        self._wrote_at = self._heard_at
        self._credit = (self._credit or 0.0) - len(value) - _OVERHEAD

    def _news(self, said: AgentReport, value: bytes) -> Iterator[News]:
        if value == self._written:
            return
        if not self._written:
            yield News.FIRST
            return
        yield News.COUNTS
        if self._said is None:  # another agent wrote it, and did not say which problems are whose
            if _facts(value) != _facts(self._written):
                yield News.SHARED
            return
        if _own(said) != _own(self._said):
            yield News.OWN
        if _everywhere(said) != _everywhere(self._said):
            yield News.SHARED

    def _turn(self, news: News, nodes: int, noticed: float, drawn: float) -> float:
        """When `news` may be told, noticed at `noticed` and `drawn` a number for."""
        turn = nodes / _SHARED_PER_SECOND
        if news is News.COUNTS:
            return noticed + max(_COUNTS_AT_LEAST, nodes * _COUNTS_SECONDS) * (0.5 + drawn)
        if news is News.FIRST and not nodes:
            return noticed + _UNKNOWN_SECONDS
        if news is News.OWN or nodes <= FEW_NODES:
            return noticed
        if news is News.FIRST:
            return noticed + drawn * turn * 2  # it begins with a lease, which is a write as well
        return max(noticed + drawn * turn, self._wrote_at + turn)

    def _earn(self, now: float, nodes: int) -> None:
        most = _BYTES_SAVED / nodes
        earned = (now - self._heard_at) * _BYTES_PER_SECOND / nodes
        self._credit = most if self._credit is None else min(most, self._credit + earned)
        self._heard_at = now

    def _payable(self, nodes: int) -> float:
        """When the last write is paid."""
        return self._heard_at + max(0.0, -(self._credit or 0.0)) * nodes / _BYTES_PER_SECOND


def _facts(value: bytes) -> tuple[object, ...]:
    """What is no count in a report, () where it is none."""
    try:
        report = agent_report.decode(value)
    except DecodeError:
        return ()
    return _own(report), _everywhere(report)


def _own(report: AgentReport) -> list[str]:
    return _numberless((report.not_ready, *report.problems))


def _everywhere(report: AgentReport) -> tuple[object, ...]:
    clusters = {each.name: (each.state, int(each.since), each.refused > 0) for each in report.clusters}
    return _numberless(report.shared), clusters


def _numberless(sentences: Iterable[str]) -> list[str]:
    return [NUMBER.sub("#", sentence) for sentence in sentences]
