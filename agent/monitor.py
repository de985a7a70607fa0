"""What the programs tell of single packets and sockets, handed to all who listen at the moment.

The kernel's ring buffer has one reader, and many may want to know: so the agent reads it, and whoever of the listeners
has a turn reads for all of them. Nobody listens but for moments: then nothing is read, and the programs tell nothing.
They are asked to for some seconds at a time, so that a killed agent costs them nothing either.
"""

from __future__ import annotations

import asyncio
import json
import time
from base64 import b64encode
from collections.abc import AsyncGenerator, Collection, Iterable, Iterator
from contextlib import contextmanager, suppress
from typing import Any, Final

from agent.bpf.layouts import NO_ADDRESS, Event, EventsWanted, EventType, Reason, form_of, pack
from agent.bpf.loader import Datapath
from agent.bpf.ring import Ring
from agent.bpf.syscalls import map_update
from clustermesh.errors import Invalid

_PERIOD: Final = 0.01  # seconds between two looks at the ring buffer
_MOST: Final = 2048  # events taken at one look: some 2 ms of the event loop
_BEAT: Final = 1.0  # seconds until a listener that heard nothing is told that
_LEASE: Final = 3.0  # seconds for which the programs are asked to tell
_WAITING: Final = 8 << 20  # bytes that wait for a listener, at most

_NOTHING: Final = Event._make([0, 0, *[NO_ADDRESS] * 4, *[0] * 12, b""])
_SIZE: Final = len(pack(_NOTHING))
_TYPE_AT: Final = pack(_NOTHING._replace(type=1)).index(1)


class _Listener:
    """`types` are the numbers of those it wants, `lost` what the programs had lost before it came."""

    def __init__(self, types: Collection[int], lost: int) -> None:
        self.types, self.lost, self.waiting = frozenset(types), lost, bytearray()

    def hear(self, events: Iterable[bytes]) -> None:
        wanted = [event for event in events if event[_TYPE_AT] in self.types]
        room = (_WAITING - len(self.waiting)) // _SIZE
        self.waiting += b"".join(wanted[:room])
        self.lost -= max(0, len(wanted) - room)

    def take(self, lost: int) -> bytes:
        """What it is told next; `lost` is what the programs have lost by now."""
        told = {"events": b64encode(self.waiting).decode(), "lost": lost - self.lost}
        self.waiting.clear()
        return json.dumps(told).encode() + b"\n"


class Monitor:
    """All who listen to the programs of one datapath."""

    def __init__(self, datapath: Datapath) -> None:
        self._datapath = datapath
        self._listeners = set[_Listener]()
        self._ring: Ring | None = None
        self._asked = 0.0

    def listen(self, params: dict[str, Any]) -> AsyncGenerator[bytes, None]:
        """Lines for one listener, without end: how to read an event, then the events, those of `types` where given.

        {"result": {"form": "=QQ...", "fields": [...], "types": [...], "reasons": [...]}}
        {"events": "<base64: one after the other>", "lost": <events lost since the first line>}
        """
        types = params.get("types") or [each.name.lower() for each in EventType]
        known = {each.name.lower(): each.value for each in EventType}
        if not isinstance(types, list) or not all(isinstance(each, str) and each in known for each in types):
            raise Invalid("types", types, f"a list of some of {', '.join(known)}")
        return self._lines([known[each] for each in types])

    async def _lines(self, types: Collection[int]) -> AsyncGenerator[bytes, None]:
        names = {"types": EventType, "reasons": Reason}
        head = {"form": form_of(Event), "fields": Event._fields}
        listener = _Listener(types, self._lost())
        with self._listening(listener):
            yield (
                json.dumps(
                    {"result": head | {name: [each.name.lower() for each in kind] for name, kind in names.items()}}
                ).encode()
                + b"\n"
            )
            told = time.monotonic()
            while True:
                now = time.monotonic()
                self._read(now)
                if listener.waiting or now - told > _BEAT:
                    yield listener.take(self._lost())
                    told = now
                await asyncio.sleep(_PERIOD)

    @contextmanager
    def _listening(self, listener: _Listener) -> Iterator[None]:
        if self._ring is None:
            self._ring = Ring(self._datapath.maps["events"], self._datapath.sizes["events"], _SIZE)
            self._ring.skip()
        self._listeners.add(listener)
        self._ask(time.monotonic())
        try:
            yield
        finally:
            self._listeners.remove(listener)
            with suppress(OSError):  # the datapath is let go of before its listeners are
                self._ask(time.monotonic())
            if not self._listeners:
                self._ring.close()
                self._ring = None

    def _read(self, now: float) -> None:
        assert self._ring is not None
        if now - self._asked > _LEASE / 3:
            self._ask(now)
        if events := self._ring.take(_MOST):
            for listener in self._listeners:
                listener.hear(events)

    def _ask(self, now: float) -> None:
        """Have the programs tell what anybody wants, for a while."""
        wanted = {each for listener in self._listeners for each in listener.types}
        value = EventsWanted(int((now + _LEASE) * 1e9), sum(1 << each for each in wanted))
        map_update(self._datapath.maps["events_wanted"], bytes(4), pack(value))
        self._asked = now

    def _lost(self) -> int:
        return self._datapath.counters()[Reason.EVENT_LOST]
