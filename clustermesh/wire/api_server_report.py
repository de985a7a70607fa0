"""What an API server says of itself in its own cluster's etcd, under clustermesh/v1/apiserver.

{"v": 1, "problems": ["web.yaml: line 3: ..."], "more": 12}     the first ones, and how many others there are
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import msgspec
from msgspec import Struct

from clustermesh.wire import go_json
from clustermesh.wire.decoding import decodes

_MOST: Final = 20
_SENTENCE: Final = 500  # characters


class _Report(Struct, frozen=True):
    v: int = 1
    problems: tuple[str, ...] = ()
    more: int = 0


_REPORT: Final = msgspec.json.Decoder(_Report)


def encode(problems: Sequence[str]) -> bytes:
    """JSON of some 10 kB at most."""
    told = tuple(problem[:_SENTENCE].encode(errors="replace").decode() for problem in problems[:_MOST])
    return go_json.encode(_Report(1, told, len(problems) - len(told)))


@decodes("API server report")
def decode(value: bytes) -> list[str]:
    """The problems. Raises DecodeError."""
    found = _REPORT.decode(value)
    return [*found.problems, *([f"and {found.more} more: see its /readyz"] if found.more else [])]
