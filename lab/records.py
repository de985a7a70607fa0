"""What a load generator recorded, and the figures that follow from it. Pure."""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from itertools import pairwise
from typing import NamedTuple, Protocol

from msgspec import Struct


class Record(NamedTuple):
    """One request: when it began and how long it took (seconds), who answered, or what went wrong, who was asked."""

    at: float
    took: float
    cluster: str | None
    error: str | None
    host: str = ""


class Traffic(Struct, frozen=True, kw_only=True):
    """Figures of some requests. `answers` counts by cluster, `at` the same for each address that was asked, `errors` by
    what went wrong; `longest_gap_ms` is the longest time without an answer, between two answers.
    """

    requests: int = 0
    failed: int = 0
    answers: dict[str, int] = {}
    errors: dict[str, int] = {}
    longest_gap_ms: float = 0.0
    at: dict[str, dict[str, int]] = {}

    @property
    def clusters(self) -> set[str]:
        """Who answered at least once."""
        return set(self.answers)

    @property
    def everywhere(self) -> set[str]:
        """Who answered at least once at every address that was asked."""
        return set.intersection(*map(set, self.at.values())) if self.at else set()


class Requests(Protocol):
    """Requests that are under way: their records so far, in order of completion, and the figures of them."""

    records: list[Record]

    @property
    def traffic(self) -> Traffic: ...


def summarize(records: Iterable[Record]) -> Traffic:
    taken = list(records)
    answered = [record for record in taken if record.cluster is not None]
    return Traffic(
        requests=len(taken),
        failed=len(taken) - len(answered),
        answers=_by_cluster(answered),
        at={host: _by_cluster(r for r in answered if r.host == host) for host in sorted({r.host for r in taken})},
        errors=dict(Counter(record.error for record in taken if record.error)),
        longest_gap_ms=round(_longest_gap([record.at + record.took for record in answered]) * 1000, 1),
    )


def _by_cluster(answered: Iterable[Record]) -> dict[str, int]:
    return dict(sorted(Counter(record.cluster for record in answered if record.cluster).items()))


def between(records: Iterable[Record], since: float, until: float) -> list[Record]:
    """Those that began in [since, until)."""
    return [record for record in records if since <= record.at < until]


def add(parts: Iterable[Traffic]) -> Traffic:
    """All of them as one; the longest gap is the longest of any."""
    taken = list(parts)
    answers: Counter[str] = Counter()
    errors: Counter[str] = Counter()
    at: dict[str, Counter[str]] = defaultdict(Counter)
    for part in taken:
        answers.update(part.answers)
        errors.update(part.errors)
        for host, counts in part.at.items():
            at[host].update(counts)
    return Traffic(
        requests=sum(part.requests for part in taken),
        failed=sum(part.failed for part in taken),
        answers=dict(sorted(answers.items())),
        errors=dict(errors),
        at={host: dict(sorted(counts.items())) for host, counts in sorted(at.items())},
        longest_gap_ms=max((part.longest_gap_ms for part in taken), default=0.0),
    )


def _longest_gap(moments: Sequence[float]) -> float:
    ordered = sorted(moments)
    return max((later - earlier for earlier, later in pairwise(ordered)), default=0.0)


def percentile(samples: Sequence[float], percent: float) -> float | None:
    """The nearest-rank percentile; None of no samples."""
    if not samples:
        return None
    ordered = sorted(samples)
    return ordered[max(0, math.ceil(len(ordered) * percent / 100) - 1)]
