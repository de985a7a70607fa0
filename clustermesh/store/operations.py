"""What is read from and written to etcd, and how many writes are cut into transactions. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Final, TypeAlias

from msgspec import Struct

MAX_OPS: Final = 100  # etcd's default --max-txn-ops is 128
MAX_BYTES: Final = 1 << 20  # of keys and values; etcd's default --max-request-bytes is 1.5 MiB
KEY_COST: Final = 256  # bytes that a key costs whoever remembers it, however short it and its value are
_OVERHEAD: Final = 32  # bytes around a key and a value in a transaction, rounded up


class KeyValue(Struct, frozen=True, gc=False):
    """A key as etcd holds it. `mod_revision` is when it was last written, `lease` is 0 for none, `version` is 1 for one
    that was not there before, and one more each time it was written since."""

    key: bytes
    value: bytes
    mod_revision: int = 0
    lease: int = 0
    version: int = 0


class Listing(Struct, frozen=True, gc=False):
    """Every key under a prefix as of `revision`, sorted by key. `cluster_id` says which etcd cluster answered."""

    revision: int
    kvs: list[KeyValue]
    cluster_id: int = 0


class Digest(Struct, frozen=True):
    """Of what is under a prefix as of `revision`: the `number` of keys, and of each that was `written` after another
    revision when that was."""

    revision: int
    number: int
    written: Mapping[bytes, int]


class DigestOf(Struct, frozen=True):
    """Wanted is a digest of `prefix` as of `revision` (0: now), with up to `most` of the keys written after `since`."""

    prefix: bytes
    revision: int
    since: int
    most: int


class Renewals(Struct, frozen=True):
    """How many seconds ago leases that live were renewed, at most; as the leader of `term` has it, with whom each lease
    began anew."""

    ages: Mapping[int, float] = {}
    term: int = 0


class Put(Struct, frozen=True, gc=False):
    """Write `value` to `key`, attached to `lease` (0: none)."""

    key: bytes
    value: bytes
    lease: int = 0


class Delete(Struct, frozen=True, gc=False):
    """Delete `key`; absent is success."""

    key: bytes


Op: TypeAlias = Put | Delete


class Fence(Struct, frozen=True, gc=False):
    """Writes count only while `key` stands there as it was made at `create_revision`; with 0 none does."""

    key: bytes
    create_revision: int


def prefix_end(prefix: bytes) -> bytes:
    """The first key after all keys that begin with `prefix`, as etcd wants it: b"\\0" means no end."""
    kept = prefix.rstrip(b"\xff")
    return kept[:-1] + bytes([kept[-1] + 1]) if kept else b"\0"


def batches(ops: Iterable[Op | Sequence[Op]]) -> Iterator[list[Op]]:
    """Cut `ops` into transactions, in order. What is given as one sequence stays within one transaction.

    etcd refuses a transaction that writes a key twice, so a repeated key begins a new one.
    """
    batch: dict[bytes, Op] = {}
    size = 0
    for item in ops:
        if isinstance(item, Put | Delete):  # most are, and there are hundreds of thousands
            group, group_size, repeats = {item.key: item}, _size(item), item.key in batch
        else:
            group = {op.key: op for op in item}
            group_size, repeats = sum(map(_size, group.values())), not batch.keys().isdisjoint(group)
        full = len(batch) + len(group) > MAX_OPS or size + group_size > MAX_BYTES
        if batch and (full or repeats):
            yield list(batch.values())
            batch, size = {}, 0
        batch.update(group)
        size += group_size
    if batch:
        yield list(batch.values())


def _size(op: Op) -> int:
    return len(op.key) + _OVERHEAD + (len(op.value) if isinstance(op, Put) else 0)
