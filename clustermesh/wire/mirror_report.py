"""What a mirror says of itself in its own cluster's etcd, under clustermesh/v1/kvstoremesh, with a lease.

{"v": 1, "copied": {"beta": 12}}     so many MiB are copied of each cluster, rounded up: it changes seldom
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Final

import msgspec
from msgspec import Meta, Struct

from clustermesh.wire import go_json
from clustermesh.wire.decoding import decodes

_MIB: Final = 1 << 20


class _Report(Struct, frozen=True, omit_defaults=True):
    v: int = 0
    copied: dict[str, Annotated[int, Meta(ge=0, le=1 << 40)]] = {}


_REPORT: Final = msgspec.json.Decoder(_Report)


def encode(copied: Mapping[str, int]) -> bytes:
    """`copied` are the bytes of each cluster."""
    return go_json.encode(_Report(1, {name: -(-size // _MIB) for name, size in sorted(copied.items())}))


@decodes("mirror report")
def decode(value: bytes) -> dict[str, int]:
    """The bytes that are copied of each cluster, rounded up. Raises DecodeError."""
    return {name: size * _MIB for name, size in _REPORT.decode(value).copied.items()}
