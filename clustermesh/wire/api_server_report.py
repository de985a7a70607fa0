"""What an API server says of itself in its own cluster's etcd, under clustermesh/v1/apiserver.

{"v": 1, "problems": ["web.yaml: line 3: ..."], "more": 12,     the first ones, and how many others there are
 "source": "Kubernetes API, native mode"}                        where the objects come from

A problem that ends with TRIED_AGAIN is nobody's to correct.
"""

from __future__ import annotations

from typing import Final

import msgspec
from msgspec import Struct

from clustermesh.wire import go_json
from clustermesh.wire.decoding import decodes

TRIED_AGAIN: Final = "it is tried again by itself"
_MOST: Final = 20
_SENTENCE: Final = 500  # characters


class ApiServerReport(Struct, frozen=True):
    """`problems` are what is not acted on; `source` is where the objects come from, and in which mode."""

    problems: tuple[str, ...] = ()
    source: str = ""


class _Report(Struct, frozen=True, omit_defaults=True):
    v: int = 0
    problems: tuple[str, ...] = ()
    more: int = 0
    source: str = ""


_REPORT: Final = msgspec.json.Decoder(_Report)


def encode(report: ApiServerReport) -> bytes:
    """JSON of some 10 kB at most."""
    told = tuple(problem[:_SENTENCE].encode(errors="replace").decode() for problem in report.problems[:_MOST])
    source = report.source[:_SENTENCE].encode(errors="replace").decode()
    return go_json.encode(_Report(1, told, len(report.problems) - len(told), source))


@decodes("API server report")
def decode(value: bytes) -> ApiServerReport:
    """With a sentence for the problems that were left out. Raises DecodeError."""
    found = _REPORT.decode(value)
    more = (f"and {found.more} more: see its /readyz",) if found.more else ()
    return ApiServerReport(found.problems + more, found.source)
