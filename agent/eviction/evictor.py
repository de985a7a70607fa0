"""Sockets found, ended and moved, by what this kernel has for it. All of it may take a while: not for an event loop's
thread."""

from __future__ import annotations

import logging
import socket
from collections import Counter, defaultdict
from collections.abc import Mapping
from enum import StrEnum
from pathlib import Path
from typing import NamedTuple, Protocol, cast

from agent.bpf.loader import find_object
from agent.eviction.diag import Diag
from agent.eviction.iterators import Ender, Finder
from agent.eviction.meaning import Meant
from agent.eviction.moving import move
from agent.eviction.networks import find_networks
from clustermesh.errors import Refused

_log = logging.getLogger(__name__)


class Outcome(StrEnum):
    """What became of a socket. FAILED: it was not ended: it had just closed, or nobody knows its network namespace."""

    RESET = "reset"
    MOVED = "moved"
    FAILED = "failed"


class Evicted(NamedTuple):
    """How many sockets of each outcome, and what went wrong, if anything."""

    outcomes: Counter[Outcome]
    error: str = ""


class Finding(Protocol):
    def find(self) -> Meant:
        """Every connected socket that means a service, on this node. OSError."""

    def close(self) -> None: ...


class Ending(Protocol):
    def end(self, path: str, gone: Meant) -> set[int]:
        """End these sockets, all of the network namespace at `path`; the cookies of those that were. OSError."""

    def close(self) -> None: ...


def open_evictor(maps: Mapping[str, int], folder: Path | None = None) -> Evictor:
    """Over the `maps` of a datapath, by name: by programs, those compiled in `folder` or beside the datapath's, or else
    by netlink."""
    diag = Diag(maps["lb_meant"])
    finding, ending = cast(Finding, diag), cast(Ending, diag)
    try:
        compiled = folder or find_object().parent
        finding = Finder(compiled, maps)
        ending = Ender(compiled, maps)
    except Refused as e:
        _log.info("sockets are gone over by netlink, for this kernel does not take the program: %s", e)
    return Evictor(finding, ending, maps["lb_meant"])


class Evictor:
    """`meant` is the map lb_meant."""

    def __init__(self, finding: Finding, ending: Ending, meant: int) -> None:
        self._finding, self._ending, self._meant = finding, ending, meant
        self.find = finding.find

    def evict(self, gone: Meant) -> Evicted:
        """Move the sockets of UDP, and end all others and what cannot be moved."""
        udp = {meaning: each for meaning, each in gone.items() if meaning.protocol == socket.IPPROTO_UDP}
        moved = move(udp, self._meant)
        ended, error = self._end(gone, moved)
        failed = sum(map(len, gone.values())) - len(moved | ended)
        counts = {Outcome.MOVED: len(moved), Outcome.RESET: len(ended - moved), Outcome.FAILED: failed}
        return Evicted(Counter({outcome: count for outcome, count in counts.items() if count}), error)

    def _end(self, gone: Meant, moved: set[int]) -> tuple[set[int], str]:
        by_network: defaultdict[int, Meant] = defaultdict(dict)
        for meaning, sockets in gone.items():
            for each in sockets:
                if each.cookie not in moved:
                    by_network[each.network].setdefault(meaning, []).append(each)
        ended, error = set[int](), ""
        for inode, path in find_networks(by_network.keys()).items():
            try:
                ended |= self._ending.end(path, by_network[inode])
            except FileNotFoundError:
                pass  # whoever lived in it has ended, and its sockets with it
            except OSError as e:
                error = f"sockets of the network namespace {path} are not ended: {e}"
        return ended, error

    def close(self) -> None:
        self._finding.close()
        self._ending.close()
