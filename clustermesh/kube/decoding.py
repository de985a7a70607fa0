"""What the API answers -> what the brain hears. Pure; one bad object costs itself, anything else raises Unavailable."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Final, NamedTuple

import msgspec
from msgspec import Raw, Struct, field

from clustermesh.errors import ClusterMeshError, DecodeError, Unavailable
from clustermesh.kube.faults import fault, read_status
from clustermesh.kube.hearing import Bad, Entry, Failed, Gone, Page, Put, Received
from clustermesh.kube.resource import K, Resource, V

MAX_LINE: Final = 16 << 20
"""Bytes of one event of a watch; etcd holds objects of 1.5 MB."""


class _ListMetadata(Struct):
    version: str = field(default="", name="resourceVersion")
    next: str = field(default="", name="continue")


class _List(Struct):
    metadata: _ListMetadata
    items: list[Raw] | None = None  # Go writes null for an empty one


class _Metadata(Struct):
    name: str = ""
    namespace: str = ""
    version: str = field(default="", name="resourceVersion")


class _Object(Struct):
    metadata: _Metadata


class _Event(Struct):
    type: str
    object: Raw


_LIST: Final = msgspec.json.Decoder(_List)
_OBJECT: Final = msgspec.json.Decoder(_Object)
_EVENT: Final = msgspec.json.Decoder(_Event)


class Lines:
    """Whole lines out of pieces that end anywhere."""

    def __init__(self) -> None:
        self._rest: list[bytes] = []
        self._held = 0

    def feed(self, piece: bytes) -> list[bytes]:
        """The lines that `piece` completes. Unavailable where one has no end in sight."""
        *whole, rest = piece.split(b"\n")
        if whole:
            whole[0] = b"".join([*self._rest, whole[0]])
            self._rest, self._held = [], 0
        self._rest.append(rest)
        self._held += len(rest)
        if self._held > MAX_LINE:
            raise Unavailable(f"an event of the watch is longer than {MAX_LINE >> 20} MiB")
        return [line for line in whole if line]


class Outline(NamedTuple):
    """One page of a list, its objects not read yet."""

    items: Sequence[Raw]
    version: str
    next: str


def outline(resource: Resource[K, V], body: bytes) -> Outline:
    """What a page says of itself; reading it costs a small part of reading its objects."""
    try:
        found = _LIST.decode(body)
    except (msgspec.DecodeError, RecursionError, UnicodeDecodeError) as e:
        raise Unavailable(f"list {resource.title}: no list came back: {e}") from e
    if not found.metadata.version:
        raise Unavailable(f"list {resource.title}: no list came back: it has no resourceVersion")
    return Outline(found.items or (), found.metadata.version, found.metadata.next)


def decode_items(resource: Resource[K, V], items: Iterable[Raw]) -> list[Entry[K, V]]:
    """The objects of a page."""
    return [_put(resource, item) for item in items]


def decode_page(resource: Resource[K, V], body: bytes) -> Page[K, V]:
    """One page of a list."""
    items, version, token = outline(resource, body)
    return Page(decode_items(resource, items), version, token)


def decode_events(resource: Resource[K, V], lines: Iterable[bytes]) -> Iterator[Received[K, V] | Failed]:
    """The events of a watch, those that came together as one; an error ends it, and so does what is no event."""
    entries: list[Entry[K, V]] = []
    last: Raw | None = None
    failed: ClusterMeshError | None = None
    for line in lines:
        try:
            event = _EVENT.decode(line)
        except (msgspec.DecodeError, RecursionError, UnicodeDecodeError) as e:
            failed = Unavailable(f"watch {resource.title}: no event came: {e}")
            break
        if event.type == "ERROR":
            status = read_status(event.object)
            failed = fault(status.code, status, f"watch {resource.title}")
            break
        last = event.object
        if event.type in ("ADDED", "MODIFIED"):
            entries.append(_put(resource, event.object))
        elif event.type == "DELETED":
            entries.append(_gone(resource, event.object))
    if last is not None:
        yield Received(entries, _version(last))
    if failed is not None:
        yield Failed(failed)


def _put(resource: Resource[K, V], data: Raw) -> Entry[K, V]:
    try:
        return Put(*resource.decode(data))
    except DecodeError as e:
        return Bad(_key(resource, data), e)


def _gone(resource: Resource[K, V], data: Raw) -> Entry[K, V]:
    key = _key(resource, data)
    return Bad(None, DecodeError("metadata", bytes(data)[:40], "must name an object")) if key is None else Gone(key)


def _key(resource: Resource[K, V], data: Raw) -> K | None:
    try:
        metadata = _OBJECT.decode(data).metadata
    except (msgspec.DecodeError, RecursionError, UnicodeDecodeError):
        return None
    return resource.key(metadata.namespace, metadata.name) if metadata.name else None


def _version(data: Raw) -> str:
    try:
        return _OBJECT.decode(data).metadata.version
    except (msgspec.DecodeError, RecursionError, UnicodeDecodeError):
        return ""


def version_number(version: str) -> int | None:
    """A resourceVersion as the number that Kubernetes guarantees it to be, or None for what is none."""
    return int(version) if version.isascii() and version.isdigit() else None
