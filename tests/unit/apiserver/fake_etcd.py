"""An etcd in memory, as much of it as a writer sees: transactions, leases, and a watch that lags."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from clustermesh.errors import Unavailable
from clustermesh.store.client import LeaseLost
from clustermesh.store.follow import Changed, Deleted, Listed
from clustermesh.store.follow import Put as Told
from clustermesh.store.operations import Delete, KeyValue, Listing, Op, Put


class FakeEtcd:
    """Stands in for EtcdClient. `untold` is what a watch has still to tell; `faults` makes the next calls fail."""

    def __init__(self) -> None:
        self.keys: dict[bytes, KeyValue] = {}
        self.revision = 1
        self.leases: set[int] = set()
        self.untold: list[tuple[int, Told | Deleted]] = []
        self.faults: list[str] = []
        self.log: list[list[bytes]] = []
        self._granted = 0

    async def grant(self, _ttl: int) -> int:
        self._granted += 1
        self.leases.add(self._granted)
        return self._granted

    async def transact(self, groups: Iterable[Sequence[Op]]) -> int:
        ops = [op for group in groups for op in group]
        fault = self.faults.pop(0) if self.faults else ""
        if fault == "refuse":
            raise Unavailable("etcd is away")
        self._apply(ops)
        if fault == "forget":
            raise Unavailable("no answer: perhaps written, perhaps not")
        return self.revision

    async def range(self, prefix: bytes) -> Listing:
        return Listing(self.revision, [kv for key, kv in sorted(self.keys.items()) if key.startswith(prefix)])

    async def get(self, key: bytes) -> KeyValue | None:
        return self.keys.get(key)

    def write(self, key: bytes, value: bytes | None) -> None:
        """As somebody else would, without a lease."""
        self._apply([Delete(key) if value is None else Put(key, value)])

    def expire(self, lease: int) -> None:
        self.leases.discard(lease)
        self._apply([Delete(key) for key, kv in list(self.keys.items()) if kv.lease == lease])

    def start_empty(self) -> Listed:
        """Another etcd, its revisions beginning anew; what a watch's next list says of it."""
        self.keys, self.untold, self.revision = {}, [], 1
        self.leases.clear()
        return Listed([], 1)

    def tell(self, number: int) -> Changed | None:
        """The next `number` of untold events, cut as a watch cuts them: never within a revision."""
        told, self.untold = self.untold[:number], self.untold[number:]
        while told and self.untold and self.untold[0][0] == told[-1][0]:
            told.append(self.untold.pop(0))
        return Changed([event for _, event in told], told[-1][0]) if told else None

    def _apply(self, ops: Sequence[Op]) -> None:
        assert len({op.key for op in ops}) == len(ops) <= 128
        if any(isinstance(op, Put) and op.lease and op.lease not in self.leases for op in ops):
            raise LeaseLost("requested lease not found")
        self.revision += 1
        self.log.append([op.key for op in ops])
        for op in ops:
            if isinstance(op, Put):
                self.keys[op.key] = KeyValue(op.key, op.value, self.revision, op.lease)
                self.untold.append((self.revision, Told(self.keys[op.key])))
            elif self.keys.pop(op.key, None):
                self.untold.append((self.revision, Deleted(op.key)))
