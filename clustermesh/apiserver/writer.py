"""Writes what the ledger wants, in the order a reader relies on, for as long as the process lives.

First the cluster config and the heartbeat; then the data; canaries last, and only while every entry is acknowledged.
One that stood and is gone is written again only after a look at the entries themselves: of two things that were lost
together, the watches may tell in any order.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from contextlib import ExitStack, suppress
from typing import Final

from clustermesh.apiserver.ledger import Ledger
from clustermesh.apiserver.resources import ABOUT, CANARIES, DATA
from clustermesh.gathering import Gathering
from clustermesh.logs import about
from clustermesh.reconcile import Reconciler

_LOG: Final = logging.getLogger(__name__)
_GATHER: Final = 0.02  # seconds


class Writer:
    """Call `wake` after changing the ledger, `open_data` once some of a source is wanted, `open_canaries` once all is.

    `canaries` is called each time all data is written, to want the canaries, all of them where it says so; `done`
    once, when they are written too.
    """

    def __init__(
        self, ledger: Ledger, canaries: Callable[[], bool], done: Callable[[], None], audit_every: float
    ) -> None:
        self.ledger, self._say_complete, self._done, self._audit_every = ledger, canaries, done, audit_every
        self.synced = False
        self._about = Reconciler(ledger[ABOUT].tracker)
        self._data = Reconciler(*(ledger[name].tracker for name in DATA))
        self._canaries = Reconciler(ledger[CANARIES].tracker)
        self._data.may_delete = self._canaries.may_delete = True  # what was found is guarded by the ledger itself
        self._data_open = self._canaries_open = self._may_audit = False
        self._stood = frozenset[bytes]()  # canaries, after the last pass
        self._wake = asyncio.Event()

    def wake(self) -> None:
        self._wake.set()

    def hurry(self) -> None:
        """etcd is there again: write now what could not be written."""
        for section in self.ledger.sections.values():
            section.tracker.hurry()
        self.wake()

    def open_data(self) -> None:
        """From now on data is written; before, only the cluster config and the heartbeat are."""
        self._data_open = True

    def open_canaries(self) -> None:
        """From now on the canaries are written, too: what is wanted is the source's first complete list, at least."""
        self._canaries_open = True

    def open_audit(self) -> None:
        """From now on, what nobody wants is removed wherever it is found."""
        self._may_audit = True

    async def run(self) -> None:
        """Write until cancelled; what fails is tried again, each key in its time."""
        clock = asyncio.get_running_loop().time
        audited, gathering = clock(), Gathering(_GATHER)
        while True:
            self._wake.clear()
            gathering.begin(clock(), writes=self._has_pending())
            await self.write()
            if clock() - audited > self._audit_every and self._may_audit:
                await self._audit()
                audited = clock()
            with suppress(TimeoutError):
                async with asyncio.timeout(self._seconds_to_wait(clock())):
                    await self._wake.wait()
            if wait := gathering.wait(clock()):
                await asyncio.sleep(wait)

    def _has_pending(self) -> bool:
        return any(section.tracker.pending_size for section in self.ledger.sections.values())

    def _seconds_to_wait(self, now: float) -> float:
        due = [due for each in (self._about, self._data, self._canaries) if (due := each.next_due) is not None]
        return max(min([*due, now + self._audit_every]) - now, 0.0)

    async def write(self) -> bool:
        """One pass over what changed and what is due again; True when nothing is left that failed."""
        with ExitStack() as stack:
            for section in self.ledger.sections.values():
                stack.enter_context(section.busy())
            await self._pass()
        return not any(section.tracker.problems for section in self.ledger.sections.values())

    async def _pass(self) -> None:
        await self._about.flush()
        if not self._data_open or not self.ledger[ABOUT].complete:
            return
        await self._data.flush()
        if self._canaries_open and all(self.ledger[name].complete for name in DATA):
            said = self._say_complete()
            if await self._is_still_complete():
                await self._canaries.flush()
                self._stood = frozenset(self.ledger[CANARIES].tracker.actual)
                self._note_synced(said)

    async def _is_still_complete(self) -> bool:
        if self._stood.isdisjoint(self.ledger[CANARIES].tracker.pending().upserts):
            return True
        await self._data.adopt()
        await self._data.flush()
        return all(self.ledger[name].complete for name in DATA)

    def _note_synced(self, said: bool) -> None:
        if said and not self.synced and self.ledger[CANARIES].complete:
            self.synced = True
            self._done()
            _LOG.info("everything is published: %d keys", sum(len(self.ledger[n].tracker.actual) for n in DATA))

    async def _audit(self) -> None:
        """Compare with etcd itself, in case a watch has kept something from us."""
        for section in self.ledger.sections.values():
            with section.busy():
                drift = await section.tracker.audit()
            if drift:
                fields = about(kind=section.name)
                _LOG.warning("%s: %d keys were not as the watch had told", section.name, drift, extra=fields)
                self.wake()
