"""One domain of the agent: what is dirty is planned, what is planned is applied, and now and then all of it is checked.

    take what is dirty -> plan each item (pure) -> trackers -> flush -> kernel
                                 ^ once more when due             audit <-

Rules
- A domain has a task of its own: what hangs or fails in one never delays another. It wakes when somebody says so, or
  when something that failed is due again.
- An item whose planning raises is a problem of that item: shown, counted, and planned again when it changes, or with a
  back-off of its own. It ends nothing and keeps nothing else from being planned.
- No step, the audit included, holds the event loop for long, and what changes during an audit does not wait for it.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping
from contextlib import aclosing, suppress
from typing import Any, Final, Generic, TypeVar

from clustermesh.errors import ClusterMeshError
from clustermesh.logs import about
from clustermesh.reconcile import Reconciler, Tracker
from clustermesh.retries import Problem, Retries

K = TypeVar("K", bound=Hashable)

AUDIT: Final = 30.0  # seconds between full comparisons with the kernel
_AUDIT_SHARE: Final = 200  # of the time that passes, where tables are large; they are compared every 5 minutes at least
_AUDIT_AT_MOST: Final = 300.0
_TURN: Final = 0.004  # seconds of planning between two turns of the event loop
_BREATH: Final = 1.0  # seconds until a step is repeated that failed as a whole, which only a bug of ours makes it do

_log = logging.getLogger(__name__)


class Domain(Generic[K]):
    """A subclass says what to `take` and how to `plan` it; `reconcilers` are applied in their order."""

    name = "domain"

    def __init__(self, *reconcilers: Reconciler, clock: Callable[[], float] = time.monotonic) -> None:
        self.reconcilers = reconcilers
        self.fault = ""  # a bug of ours that kept the last step from its end
        self.idle = asyncio.Event()  # nothing waits and no step is under way
        self.on_step: Callable[[], None] = lambda: None  # called after each
        self._clock = clock
        for tracker in self.trackers:
            tracker.keep_unclaimed()
        self._retries = Retries[K]()
        self._woken, self._stepped = asyncio.Event(), asyncio.Event()
        self.begun = self.ended = 0  # steps, by number
        self.stepping_since: float | None = None  # by the clock, while a step is under way
        self._bugs = set[K]()  # those of `problems` that no rule of ours foresaw

    # -- what a subclass is ------------------------------------------------------------------------------------------

    def take(self) -> Iterable[K]:
        """What may have to be planned again since the last time."""
        raise NotImplementedError

    def plan(self, item: K) -> None:
        """Bring the trackers in line with `item`. Whatever it raises becomes a problem of `item`."""
        raise NotImplementedError

    async def prepare(self) -> None:
        """What has to be there before the trackers are applied."""

    def applied(self) -> None:
        """The trackers were flushed."""

    # -- what every domain does --------------------------------------------------------------------------------------

    @property
    def problems(self) -> Mapping[K, Problem]:
        """The items that cannot be planned."""
        return self._retries.problems

    def is_bug(self, item: K) -> bool:
        """Whether the problem of `item` is one of ours, and not one of what it says."""
        return item in self._bugs

    @property
    def stepping_for(self) -> float:
        """Seconds that the step under way has taken so far, 0 where there is none."""
        return 0.0 if self.stepping_since is None else self._clock() - self.stepping_since

    @property
    def trackers(self) -> Iterator[Tracker[Any, Any]]:
        for reconciler in self.reconcilers:
            yield from reconciler.trackers

    @property
    def settled(self) -> bool:
        """True when the kernel holds all that is planned, and nothing waits for being planned or is."""
        return self.idle.is_set() and all(reconciler.settled for reconciler in self.reconcilers)

    @property
    def next_due(self) -> float | None:
        """When there is something to do even if nobody wakes it."""
        waits = [self._retries.next_due, *(reconciler.next_due for reconciler in self.reconcilers)]
        return min((due for due in waits if due is not None), default=None)

    def wake(self) -> None:
        """There is something to take."""
        self._woken.set()
        self.idle.clear()

    async def whole_step(self) -> None:
        """Return when a step has ended that began after this call: what was known by then is planned and applied."""
        wanted = self.begun + 1
        self.wake()
        while self.ended < wanted:
            await self._stepped.wait()

    def allow_deletes(self) -> None:
        """The first complete state is known: what was wanted since this process began, and is no more, may go."""
        for reconciler in self.reconcilers:
            reconciler.may_delete = True
        self.wake()

    def allow_pruning(self) -> None:
        """It was heard: what this process found and nobody has wanted since may go, too."""
        for tracker in self.trackers:
            tracker.release_unclaimed()
        self.wake()

    async def run(self) -> None:
        """Never returns. Begins with what the kernel holds, so that a restart changes nothing that is still wanted."""
        await self.adopt()
        audit_due = self._clock() + AUDIT
        while True:
            await self._step_guarded()
            if self._clock() >= audit_due:
                began = self._clock()
                await self.audit()
                took, is_whole = self._clock() - began, all(each.is_readable for each in self.trackers)
                audit_due = self._clock() + (audit_pause(took) if is_whole else max(AUDIT, took))
            await self._sleep(audit_due)

    async def adopt(self) -> None:
        for reconciler in self.reconcilers:
            await reconciler.adopt()
        self.wake()

    async def step(self) -> None:
        """Plan what is dirty and apply what is pending and due."""
        self._woken.clear()
        self.idle.clear()
        self.begun = begun = self.begun + 1
        self.stepping_since = self._clock()
        try:
            await self._plan_and_apply()
        finally:
            self.stepping_since = None
        self.ended = begun
        self._stepped.set()
        self._stepped.clear()
        if not self._woken.is_set():
            self.idle.set()
        self.on_step()

    async def _plan_and_apply(self) -> None:
        due, changed = self._retries.take_due(self._clock()), [*self.take()]
        for item in changed:
            self._retries.renew(item)
        await self._plan_each(dict.fromkeys([*due, *changed]))
        await self.prepare()
        for reconciler in self.reconcilers:
            await reconciler.flush()
        self.applied()

    async def audit(self) -> None:
        """Compare everything with the kernel, and repair it."""
        for tracker in self.trackers:
            drift = 0
            async with aclosing(tracker.compare()) as pages:
                async for found in pages:
                    drift += found
                    if self._woken.is_set():
                        await self._step_guarded()
                    await asyncio.sleep(0)
            tracker.drift += drift
            if drift:
                _log.warning("%s: %d entries were not as this agent left them; repairing", tracker.name, drift)
                self.wake()

    async def _step_guarded(self) -> None:
        try:
            await self.step()
        except Exception as e:
            _log.exception("%s: a step failed", self.name)
            self.fault = f"internal error, see the log: {e!r}"
            await asyncio.sleep(_BREATH)
            self.wake()
        else:
            self.fault = ""

    async def _plan_each(self, items: Iterable[K]) -> None:
        began = self._clock()
        for item in items:
            self._plan_guarded(item)
            if self._clock() - began > _TURN:
                await asyncio.sleep(0)
                began = self._clock()

    def _plan_guarded(self, item: K) -> None:
        try:
            self.plan(item)
        except ClusterMeshError as e:
            if item not in self.problems:
                _log.warning("%s: %s: %s", self.name, item, e, extra=about(kind=self.name, key=item))
            self._bugs.discard(item)
            self._retries.fail(item, str(e), self._clock())
        except Exception as e:
            if item not in self.problems:
                _log.exception("%s: %s cannot be planned", self.name, item, extra=about(kind=self.name, key=item))
            self._bugs.add(item)
            self._retries.fail(item, f"cannot be planned, see the log: {e!r}", self._clock())
        else:
            self._bugs.discard(item)
            self._retries.forget(item)

    async def _sleep(self, audit_due: float) -> None:
        due = self.next_due
        until = audit_due if due is None else min(due, audit_due)
        with suppress(TimeoutError):
            async with asyncio.timeout(max(until - self._clock(), 0.0)):
                await self._woken.wait()


def audit_pause(took: float) -> float:
    """Seconds between an audit that took so long and the next."""
    return min(max(AUDIT, _AUDIT_SHARE * took), _AUDIT_AT_MOST)


async def in_turns(go_on: Callable[[], bool], clock: Callable[[], float] = time.monotonic) -> None:
    """Until `go_on` says that there is no more. Others have as much time as it takes."""
    while True:
        began = clock()
        if not go_on():
            return
        await asyncio.sleep(clock() - began)
