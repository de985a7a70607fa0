"""What a mirror's readiness waits for: every peer's first copy, but not for ever. Pure; seconds are arguments."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from msgspec import Struct

OVERALL: Final = 600.0
UNCONNECTED: Final = 15.0
"""Seconds, as Cilium's kvstoremesh has them (global-ready-timeout, per-cluster-ready-timeout)."""


class Progress(Struct, frozen=True):
    """How far the copy of one cluster is: whether it `answered` since this process began, what is `missing` and what
    that waits for, and the last `error`."""

    answered: bool
    missing: Mapping[str, str]
    error: str = ""


class Readiness:
    """Once it is ready it stays so: a cluster that comes later makes nobody wait."""

    def __init__(self, overall: float = OVERALL, unconnected: float = UNCONNECTED) -> None:
        self._overall, self._unconnected = overall, unconnected
        self._ready = False

    def waiting(self, peers: Mapping[str, Progress] | None, age: float) -> list[str]:
        """A sentence for each cluster that is waited for `age` seconds after the start; `peers` None: not read yet."""
        if self._ready or age > self._overall:
            return []
        if peers is None:
            return ["the folder of peers has not been read yet"]
        found = []
        for name, peer in sorted(peers.items()):
            if not peer.answered and age <= self._unconnected:
                found.append(f"cluster {name} has not answered yet{peer.error and f': {peer.error}'}")
            elif peer.answered and peer.missing:
                found.append(f"cluster {name}: not copied yet: {', '.join(map(_shown, peer.missing.items()))}")
        self._ready = not found
        return found


def _shown(missing: tuple[str, str]) -> str:
    kind, why = missing
    return f"{kind} ({why})" if why else kind
