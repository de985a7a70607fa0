"""Sockets found, ended and moved, by what this kernel has for it. All of it may take a while: not for an event loop's
thread."""

from __future__ import annotations

import logging
import socket
from collections import Counter
from collections.abc import Mapping, Set
from enum import StrEnum
from functools import partial
from itertools import chain
from pathlib import Path
from typing import NamedTuple, Protocol

from agent.bpf.loader import find_object
from agent.conntrack.tracked import Tracked
from agent.eviction.diag import Diag, locate
from agent.eviction.iterators import Ender
from agent.eviction.meaning import REMEMBERED, Located, Meant, Remembered, read_meant
from agent.eviction.moving import move
from agent.eviction.networks import in_each, inside
from agent.eviction.sweeper import Sweeper
from clustermesh.errors import ClusterMeshError, Refused

_log = logging.getLogger(__name__)


class Outcome(StrEnum):
    """What became of a socket. FAILED: it was found, and not ended: it had just closed."""

    RESET = "reset"
    MOVED = "moved"
    FAILED = "failed"


class Evicted(NamedTuple):
    """How many sockets of each outcome, and what went wrong, if anything."""

    outcomes: Counter[Outcome]
    error: str = ""


class Ending(Protocol):
    def end(self, gone: Located) -> set[int]:
        """End these sockets, of the network namespace it is asked in; the cookies of those that were. OSError."""

    def close(self) -> None: ...


def open_evictor(maps: Mapping[str, int], sweeper: Sweeper, folder: Path | None = None) -> Evictor:
    """Over the `maps` of a datapath, by name: by programs, those compiled in `folder` or beside the datapath's, or else
    by netlink."""
    ending: Ending = Diag()
    try:
        ending = Ender(folder or find_object().parent, maps)
    except Refused as e:
        _log.info("sockets are ended by netlink, for this kernel does not take the program: %s", e)
    remembered = Remembered(maps["lb_reverse_sk"], maps["metrics"])
    return Evictor(ending, maps["lb_meant"], remembered, Tracked(maps["ct"]), sweeper)


class Evictor:
    """`meant` is the map lb_meant, `remembered` what found no room there. That is ended by netlink: programs ask
    lb_meant. `tracked` are connections that no socket of this node's means."""

    def __init__(self, ending: Ending, meant: int, remembered: Remembered, tracked: Tracked, sweeper: Sweeper) -> None:
        self._ending, self._meant, self._remembered, self.tracked = ending, meant, remembered, tracked
        self._sweeper = sweeper

    def find(self) -> Meant:
        """Every connected socket that means a service, on this node, as far as that is known. OSError."""
        return read_meant(self._meant) | self._remembered.read()

    def evict(self, gone: Meant, may_move: bool = True) -> Evicted:
        """Move the sockets of UDP, if they may, and end all others and what cannot be moved. Where the service is gone
        they may not: they would be connected to its address itself. Those that are in no namespace that anybody lives
        in have closed, or nobody knows a way to them."""
        located, left, error = _locate(gone)
        if left:
            self._sweeper.want()
        udp: Located = {}
        for _, some in located:
            for value, sockets in some.items():
                if may_move and value.protocol == socket.IPPROTO_UDP and value.backend_id != REMEMBERED:
                    udp.setdefault(value, []).extend(sockets)
        moved, ended = move(udp, self._meant), set[int]()
        for path, some in located:
            rest = {value: [each for each in sockets if each.cookie not in moved] for value, sockets in some.items()}
            try:
                ended |= inside(path, partial(self._end, rest))
            except FileNotFoundError:
                pass  # whoever lived in it has ended, and its sockets with it
            except OSError as e:
                error = f"sockets of the network namespace {path} are not ended: {e}"
        failed = sum(len(sockets) for _, some in located for sockets in some.values()) - len(moved | ended)
        if not error:
            self._remembered.forget(gone)
        counts = {Outcome.MOVED: len(moved), Outcome.RESET: len(ended - moved), Outcome.FAILED: failed}
        return Evicted(Counter({outcome: count for outcome, count in counts.items() if count}), error)

    def sweep(self, found: Meant) -> str:
        """Take out of lb_meant what is closed, of what was found there a moment ago; what went wrong, if anything."""
        known = {value: cookies for value, cookies in found.items() if value.backend_id != REMEMBERED}
        try:
            freed = self._sweeper.sweep(known, self._remembered.ever())
        except (ClusterMeshError, OSError) as e:
            return f"what closed sockets meant is not looked for: {e}"
        if freed:
            _log.info("%d places of lb_meant were of sockets that are closed", freed)
        return ""

    def _end(self, some: Located) -> set[int]:
        remembered = {value: sockets for value, sockets in some.items() if value.backend_id == REMEMBERED}
        ended = self._ending.end({value: sockets for value, sockets in some.items() if value not in remembered})
        return ended | Diag().end(remembered) if remembered else ended

    def close(self) -> None:
        self._ending.close()


def _locate(gone: Meant) -> tuple[list[tuple[str, Located]], Set[int], str]:
    """Where these sockets are: paths to network namespaces; who was found nowhere, and what kept one from being looked
    into."""
    left = {cookie: value for value, cookies in gone.items() for cookie in cookies}
    found, error = list[tuple[str, Located]](), ""
    for path, some in in_each(partial(locate, left)):
        if isinstance(some, OSError):
            error = f"sockets of the network namespace {path} are not looked for: {some}"
        elif some:
            found.append((path, some))
            for each in chain.from_iterable(some.values()):
                left.pop(each.cookie, None)
        if not left:
            break
    return found, left.keys(), error
