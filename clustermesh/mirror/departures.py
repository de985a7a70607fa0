"""When the copies of a cluster that was disconnected go: after a wait in which it may come back."""

from __future__ import annotations

import os
from collections.abc import Set
from pathlib import Path
from typing import Final, NamedTuple

WAIT: Final = 180.0
"""Seconds that Cilium's kvstoremesh waits too: agents have stopped reading the cluster by then."""


class Leaving(NamedTuple):
    """Clusters whose configuration is to be withdrawn now, and those of which nothing is to be left."""

    retract: list[str]
    forget: list[str]


class Departures:
    """Tell `look` regularly which clusters are `held` and which are `connected`."""

    def __init__(self, wait: float = WAIT) -> None:
        self.due: dict[str, float] = {}
        self._wait = wait

    def look(self, held: Set[str], connected: Set[str], now: float) -> Leaving:
        """What is to be done at `now`."""
        self.due = {cluster: due for cluster, due in self.due.items() if cluster in held - connected}
        fresh = sorted(held - connected - self.due.keys())
        self.due |= dict.fromkeys(fresh, now + self._wait)
        return Leaving(fresh, sorted(cluster for cluster, due in self.due.items() if now >= due))


def is_gone(file: Path) -> bool:
    """Whether there is no such file. One that cannot be looked at now may be there."""
    try:
        os.stat(file)
    except FileNotFoundError:
        return True
    except OSError:
        pass
    return False
