"""What a mirror says of itself in its own cluster's etcd, under clustermesh/v1/kvstoremesh, with a lease.

{"v": 1, "copied": {"beta": 12},     so many MiB are copied of each cluster, rounded up: it changes seldom
 "behind": {"beta": "stale: permission denied"}}      of those that are not followed now: the state, and the error
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Final

import msgspec
from msgspec import Meta, Struct

from clustermesh.wire import go_json
from clustermesh.wire.decoding import decodes

_MIB: Final = 1 << 20
_SENTENCE: Final = 160  # characters


class MirrorReport(Struct, frozen=True):
    """The bytes that are `copied` of each cluster, rounded up; of those that it does not follow now (`behind`) in which
    state they are, and why."""

    copied: Mapping[str, int] = {}
    behind: Mapping[str, str] = {}


class _Report(Struct, frozen=True, omit_defaults=True):
    v: int = 0
    copied: dict[str, Annotated[int, Meta(ge=0, le=1 << 40)]] = {}
    behind: dict[str, str] = {}


_REPORT: Final = msgspec.json.Decoder(_Report)


def encode(report: MirrorReport) -> bytes:
    """JSON of some 100 kB at most: 511 clusters may all be behind."""
    copied = {name: -(-size // _MIB) for name, size in sorted(report.copied.items())}
    behind = {name: why[:_SENTENCE].encode(errors="replace").decode() for name, why in sorted(report.behind.items())}
    return go_json.encode(_Report(1, copied, behind))


@decodes("mirror report")
def decode(value: bytes) -> MirrorReport:
    """Raises DecodeError."""
    found = _REPORT.decode(value)
    return MirrorReport({name: size * _MIB for name, size in found.copied.items()}, found.behind)
