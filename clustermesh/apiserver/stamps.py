"""When the services that are being written were observed: one key, written anew in each transaction that has some.

Its revision is that of the services, which is how a reader knows whose times these are. Nothing depends on it, and what
it held before is of no use any more: it has no lease, and is not put back where somebody removes it.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Final

from clustermesh.metrics import API_SERVER
from clustermesh.store.operations import Op
from clustermesh.wire import local

SECONDS: Final = API_SERVER["clustermesh_apiserver_propagation_seconds"].histogram()


class Stamps:
    """The times of services under `prefix` that are not written yet."""

    def __init__(self, prefix: bytes, clock: Callable[[], int] = time.time_ns) -> None:
        self._prefix, self._clock = prefix, clock
        self._observed: dict[bytes, int] = {}

    def note(self, key: bytes, observed: int) -> None:
        """What is to be written at `key` was observed then."""
        self._observed[key] = observed

    def of(self, ops: Sequence[Op]) -> bytes | None:
        """What stands beside `ops`; None where nobody knows when any of them was observed."""
        known = {self._name(op.key): self._observed[op.key] for op in ops if op.key in self._observed}
        return local.encode_stamps(known, self._clock()) if known else None

    def written(self, ops: Sequence[Op]) -> None:
        """`ops` are in etcd, and so are their times."""
        now = self._clock()
        for op in ops:
            if (observed := self._observed.pop(op.key, None)) is not None:
                SECONDS.observe(max(now - observed, 0) / 1e9)

    def _name(self, key: bytes) -> tuple[str, str]:
        namespace, _, name = key.removeprefix(self._prefix).decode().partition("/")
        return namespace, name
