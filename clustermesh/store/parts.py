"""A long answer of a stream in parts, each an answer of its own, cut between protobuf's fields while it comes. Pure.

A watch that catches up has up to a thousand revisions in one answer, of any size. Where it is asked to, etcd cuts it
into fragments, but measures a fragment anew with each event that it adds (sendFragments in its api/v3rpc/watch.go): one
of 13,000 small ones costs it seconds. So they are cut here, and marked as etcd marks fragments.
"""

from __future__ import annotations

from typing import Final, NamedTuple

from clustermesh.store import rpc_pb2 as pb

PART: Final = 1 << 16  # bytes, with one field more
MOST_FIELDS: Final = 1000  # of a part: some milliseconds of work
VARINT, BYTES = 0, 2  # how a field is written
FIXED: Final = {1: 8, 5: 4}
_MOST_HEAD: Final = 1 << 10
_LONGEST: Final = 20  # bytes of a field's number and size
_EVENT: Final = pb.WatchResponse.EVENTS_FIELD_NUMBER << 3 | BYTES
_MORE: Final = pb.WatchResponse(fragment=True).SerializeToString()


class Around(NamedTuple):
    """What makes an answer of a part: the fields before the first event, and that more follows."""

    head: bytes = b""
    tail: bytes = b""


NOTHING: Final = Around()


class Parts:
    """Of the answers of one stream."""

    def __init__(self) -> None:
        self._head: bytes | None = None  # of the answer that is under way, once a part of it was taken
        self._next = 0  # bytes of the next part, once that is known

    def size(self, data: bytes | bytearray, at: int, size: int) -> int:
        """Of the next part, where there are `size` bytes left of the answer and `data` has what came of them, from `at`
        on. Where that is not known yet it is more than what came."""
        if self._head is None and size <= PART:
            return size
        if not self._next:
            if len(data) - at < min(size, PART):
                return min(size, PART)
            end = _part_end(data, at, at + size)
            if end is None:
                return len(data) - at + 1
            self._next = end - at
        return self._next

    def take(self, data: bytes | bytearray, at: int, part: int, size: int) -> Around:
        """The next one is taken: what belongs around it."""
        head, self._next = self._head, 0
        if part == size:
            self._head = None
            return Around(head or b"")
        if head is None:
            self._head = _head(data, at, at + part)
        return Around(head or b"", _MORE)


def varint(data: bytes | bytearray, at: int) -> tuple[int, int]:
    """The number there, and where it ends; what is none is left to who decodes."""
    if at < len(data) and data[at] < 128:
        return data[at], at + 1
    number = 0
    for end, byte in enumerate(data[at : at + 10]):
        number |= (byte & 127) << 7 * end
        if byte < 128:
            return number, at + end + 1
    return number, len(data)


def _part_end(data: bytes | bytearray, at: int, end: int) -> int | None:
    """Where the part that begins at `at` ends, of an answer that ends at `end`; None where too little has come."""
    full, fields = min(at + PART, end), 0
    while at < full and fields < MOST_FIELDS:
        after = _field_end(data, at)
        if after is None and len(data) < min(end, at + _LONGEST):
            return None
        at = end if after is None else min(after, end)
        fields += 1
        if at > len(data):
            break
    return at


def _field_end(data: bytes | bytearray, at: int) -> int | None:
    """Where the field that begins there ends; None where that is not there to be read."""
    tag, at = varint(data, at)
    size, at = varint(data, at) if tag & 7 in (VARINT, BYTES) else (FIXED.get(tag & 7, 0), at)
    return None if at >= len(data) else at + (0 if tag & 7 == VARINT else size)


def _head(data: bytes | bytearray, at: int, end: int) -> bytes:
    """What precedes the first event; nothing where that is more than any etcd has to say."""
    start = at
    while at < end and data[at] != _EVENT:
        at = _field_end(data, at) or end
    return bytes(data[start:at]) if at - start <= _MOST_HEAD else b""
