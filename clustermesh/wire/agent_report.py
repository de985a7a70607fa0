"""What an agent says of itself in its own cluster's etcd, under clustermesh/v1/status/<node>: small, as there are many.

    {"v": 2, "version": "0.1.0", "since": 1763732000,
     "notReady": "waiting for the first whole state",                 left out where it is ready
     "problems": ["node set-up: no WireGuard"],                       left out where there are none
     "clusters": {"fresh": {"beta": [2, 12, 100, 40, 2000, 300, 0, 20]},   by state: 16 bytes and its counts each
                  "stale": {"gamma": [3, 3600, 50]}},
     "errors": {"gamma": "connection refused"}}                       the last ones, of the first few

A row: id, seconds since `since`, nodes, services, endpoints, identities, refused entries, milliseconds that its last
change took to the maps; without the zeros at its end. What a later version adds behind these is not looked at.
The format before this one, without "v", held everything of `clustermesh node status` and is still read.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import islice
from typing import Annotated, Any, Final

import msgspec
from msgspec import Meta, Struct, field

from clustermesh.wire import go_json
from clustermesh.wire.decoding import decodes

_YEAR_9999: Final = 253402300799
_MOST_PROBLEMS: Final = 6
_MOST_ERRORS: Final = 5  # clusters whose last error is told: where the network is gone all have the same
_SENTENCE: Final = 160  # characters
_Time = Annotated[float, Meta(ge=0, le=_YEAR_9999)]
_Seconds = Annotated[int, Meta(ge=0, le=_YEAR_9999)]
_COUNTS: Final = ("nodes", "services", "endpoints", "identities", "refused", "propagation_ms")
_ZEROS: Final = (0,) * (2 + len(_COUNTS))


class SeenCluster(Struct, frozen=True, gc=False):
    """One cluster as one agent sees it. `since` is Unix seconds.

    `propagation_ms` is how long its last change took from its source to this node's maps, 0 where none was seen yet.
    """

    name: str
    state: str
    id: int | None = None
    since: _Time = 0.0
    error: str = ""
    nodes: int = 0
    services: int = 0
    endpoints: int = 0
    identities: int = 0
    refused: int = 0
    propagation_ms: int = 0


class AgentReport(Struct, frozen=True, gc=False):
    """`not_ready` says why, "" where it is ready; `problems` are one sentence each.

    `shared` are those that all nodes may have at the same moment; etcd holds them as the last of the problems.
    """

    version: str = ""
    not_ready: str = ""
    problems: tuple[str, ...] = ()
    clusters: tuple[SeenCluster, ...] = ()
    shared: tuple[str, ...] = ()


class _Compact(Struct, frozen=True, omit_defaults=True, gc=False):
    v: int = 0
    version: str = ""
    since: _Seconds = 0
    not_ready: str = field(name="notReady", default="")
    problems: tuple[str, ...] = ()
    clusters: dict[str, dict[str, tuple[_Seconds, ...]]] = {}
    errors: dict[str, str] = {}


class _Behind(SeenCluster, frozen=True, gc=False):
    behind: dict[str, str] = {}


class _Whole(Struct, frozen=True):
    """The format without a version."""

    version: str = ""
    ready: bool = False
    problems: tuple[str, ...] = ()
    clusters: tuple[_Behind, ...] = ()


class _Version(Struct, frozen=True):
    v: int = 1


_VERSION: Final = msgspec.json.Decoder(_Version)
_COMPACT: Final = msgspec.json.Decoder(_Compact)
_WHOLE: Final = msgspec.json.Decoder(_Whole)


def encode(report: AgentReport) -> bytes:
    """JSON, a few kB whatever is wrong: of many problems the first are told."""
    since = int(min((cluster.since for cluster in report.clusters), default=0))
    clusters: dict[str, dict[str, tuple[int, ...]]] = {}
    for cluster in report.clusters:
        clusters.setdefault(cluster.state, {})[cluster.name] = _row(cluster, since)
    errors = ((cluster.name, _short(cluster.error)) for cluster in report.clusters if cluster.error)
    compact = _Compact(
        v=2,
        version=report.version,
        since=since,
        not_ready=_short(report.not_ready),
        problems=_first((*report.problems, *report.shared)),
        clusters=clusters,
        errors=dict(islice(errors, _MOST_ERRORS)),
    )
    return go_json.encode(compact)


def _row(cluster: SeenCluster, since: int) -> tuple[int, ...]:
    row: list[int] = [cluster.id or 0, int(cluster.since) - since, *(getattr(cluster, name) for name in _COUNTS)]
    while row and not row[-1]:
        row.pop()
    return tuple(row)


def _first(problems: Sequence[str]) -> tuple[str, ...]:
    told = tuple(map(_short, problems[:_MOST_PROBLEMS]))
    rest = len(problems) - len(told)
    return (*told, f"and {rest} more: see `clustermesh node status` there") if rest else told


def _short(sentence: str) -> str:
    clean = sentence.encode(errors="replace").decode()  # a path of the file system need not be Unicode
    return clean if len(clean) <= _SENTENCE else clean[: _SENTENCE - 1] + "…"


@decodes("agent report")
def decode(value: bytes) -> AgentReport:
    """Raises DecodeError. Where a cluster of the old format has no error it is said what it waits for."""
    if _VERSION.decode(value).v == 1:
        return _from_whole(_WHOLE.decode(value))
    found = _COMPACT.decode(value)
    clusters = tuple(
        _from_row(name, state, row, found) for state, rows in found.clusters.items() for name, row in rows.items()
    )
    return AgentReport(found.version, found.not_ready, found.problems, clusters)


def _from_row(name: str, state: str, row: tuple[int, ...], found: _Compact) -> SeenCluster:
    number, after, *counts = (*row, *_ZEROS[len(row) :])[: len(_ZEROS)]
    since = float(min(found.since + after, _YEAR_9999))
    return SeenCluster(name, state, number or None, since, found.errors.get(name, ""), *counts)


def _from_whole(found: _Whole) -> AgentReport:
    clusters = tuple(_from_behind(cluster) for cluster in found.clusters)
    return AgentReport(found.version, "" if found.ready else "it is not ready", found.problems, clusters)


def _from_behind(cluster: _Behind) -> SeenCluster:
    told: dict[str, Any] = {name: getattr(cluster, name) for name in SeenCluster.__struct_fields__}
    waits = "; ".join(f"{what}: {why}" for what, why in cluster.behind.items())
    return SeenCluster(**told | {"error": cluster.error or waits})
