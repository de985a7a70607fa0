"""Clusters heard of for the first time: nothing is sent there before their tunnels carry something. Pure.

Each node of two clusters that are being connected learns of the other cluster at its own moment, and until both ends
know each other's key a tunnel drops what it is given. So the services of a new cluster wait at this gate.

Rules
- A cluster is let in when WireGuard has shaken hands with each of its nodes that has a key, or `WELCOME` seconds after
  its first node was known: by then waiting helps nobody.
- The kernel tells nobody of a handshake, so the device is looked at: one look for all who wait, soon after a node came
  and then less and less often, and never for more than `SHARE` of the time, however much a look costs.
"""

from __future__ import annotations

from collections.abc import Container, Set
from typing import Final

from msgspec import Struct, field

WELCOME: Final = 10.0  # seconds: two tries of WireGuard's handshake, 5 s apart
SHARE: Final = 0.05
_FIRST: Final = 0.05  # seconds until the first look ...
_LAST: Final = 1.0  # ... and between two at most, where looks are cheap
_GROWTH: Final = 1.25


class _Newcomer(Struct):
    keys: dict[str, str] = field(default_factory=dict)  # of its nodes, "" for one without
    overdue: float | None = None  # when it is let in anyway; None before a node of it is known


class Gate:
    """Who waits. Times are seconds of any clock that goes on by itself; what lets clusters in returns their names."""

    def __init__(self) -> None:
        self._waiting: dict[str, _Newcomer] = {}
        self._period = _FIRST
        self._next_look = 0.0
        self._not_before = 0.0  # looks would take more than their share

    @property
    def waiting(self) -> Set[str]:
        return self._waiting.keys()

    @property
    def next_look(self) -> float | None:
        """When to look at the device; None where that would let nobody in."""
        return self._next_look if any(self._keys(newcomer) for newcomer in self._waiting.values()) else None

    @property
    def next_overdue(self) -> float | None:
        return min((each.overdue for each in self._waiting.values() if each.overdue is not None), default=None)

    def hold(self, cluster: str) -> None:
        """`cluster` is new."""
        self._waiting.setdefault(cluster, _Newcomer())

    def leave(self, cluster: str) -> None:
        """`cluster` is disconnected."""
        self._waiting.pop(cluster, None)

    def meet(self, cluster: str, node: str, key: str | None, now: float) -> None:
        """A node has this WireGuard key, "" for none; None: the node is gone. Of clusters that wait only."""
        newcomer = self._waiting.get(cluster)
        if newcomer is None or newcomer.keys.get(node) == key:
            return
        if key is None:
            del newcomer.keys[node]
            return
        newcomer.keys[node] = key
        newcomer.overdue = newcomer.overdue or now + WELCOME
        self._period = _FIRST
        self._next_look = max(
            min(self._next_look, now + _FIRST) if self._next_look > now else now + _FIRST, self._not_before
        )

    def looked(self, shaken: Container[str], now: float, cost: float) -> list[str]:
        """A look that took `cost` seconds found that the peers with the keys `shaken` have shaken hands."""
        self._not_before = now + cost * (1 / SHARE - 1)
        self._period = min(self._period * _GROWTH, _LAST)
        self._next_look = max(now + self._period, self._not_before)
        return self._open(
            [
                name
                for name, newcomer in self._waiting.items()
                if (keys := self._keys(newcomer)) and all(key in shaken for key in keys)
            ]
        )

    def open_overdue(self, now: float) -> list[str]:
        return self._open(
            [name for name, each in self._waiting.items() if each.overdue is not None and each.overdue <= now]
        )

    def _open(self, clusters: list[str]) -> list[str]:
        for cluster in clusters:
            del self._waiting[cluster]
        return clusters

    @staticmethod
    def _keys(newcomer: _Newcomer) -> set[str]:
        return set(newcomer.keys.values()) - {""}
