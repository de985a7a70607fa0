"""What failed and when to try it again: each key for itself, waiting twice as long after each try. Pure."""

from __future__ import annotations

from collections.abc import Hashable
from heapq import heappop, heappush
from typing import Final, Generic, NamedTuple, TypeVar

FIRST: Final = 0.1
LAST: Final = 30.0

K = TypeVar("K", bound=Hashable)


class Problem(NamedTuple):
    """Why the last try failed, since when none succeeded, how many did not, and when the next is due."""

    sentence: str
    since: float
    tries: int
    due: float


class Retries(Generic[K]):
    """The problems of many keys. `problems` holds a key from its first failure until `forget`."""

    def __init__(self, first: float = FIRST, last: float = LAST) -> None:
        self.problems: dict[K, Problem] = {}
        self._first, self._last = first, last
        self._queue: list[tuple[float, int, K]] = []  # a heap by time; what does not match `problems` is void
        self._pushed = 0

    @property
    def next_due(self) -> float | None:
        """When the next try of anything is due, None where nothing waits."""
        self._drop_void()
        return self._queue[0][0] if self._queue else None

    def fail(self, key: K, sentence: str, now: float) -> None:
        """A try at `key` failed."""
        before = self.problems.get(key)
        tries = 1 if before is None else before.tries + 1
        delay = min(self._first * 2.0 ** min(tries - 1, 30), self._last)
        self._queue_up(key, Problem(sentence, now if before is None else before.since, tries, now + delay))

    def renew(self, key: K) -> None:
        """Something else is wanted of `key`: how often the former failed says nothing of it."""
        if (problem := self.problems.get(key)) is not None:
            self.problems[key] = problem._replace(tries=0)

    def forget(self, key: K) -> None:
        """All is well with `key`, or nobody wants it any more."""
        self.problems.pop(key, None)

    def take_due(self, now: float, most: int | None = None) -> list[K]:
        """The keys to try now, `most` of them, soonest first. Each is out of the queue until it fails again."""
        return self._take(len(self._queue) if most is None else most, now)

    def hurry(self, count: int, now: float) -> None:
        """Something changed for the better: make `count` of what waits due at once, the soonest first."""
        for key in self._take(count, float("inf")) if self.problems else ():
            self._queue_up(key, self.problems[key]._replace(due=now))

    def _take(self, count: int, now: float) -> list[K]:
        taken: list[K] = []
        while len(taken) < count:
            self._drop_void()
            if not self._queue or self._queue[0][0] > now:
                break
            taken.append(heappop(self._queue)[2])
        return taken

    def _queue_up(self, key: K, problem: Problem) -> None:
        self.problems[key] = problem
        self._pushed += 1  # keys need no order of their own
        heappush(self._queue, (problem.due, self._pushed, key))

    def _drop_void(self) -> None:
        while self._queue:
            due, _, key = self._queue[0]
            problem = self.problems.get(key)
            if problem is not None and problem.due == due:
                return
            heappop(self._queue)
