"""The keys of the cache by kind: what is wanted there, and what etcd holds, whoever wrote it.

Rules
- Whatever differs from what is wanted is put right by who leads: changed back, written again, or removed.
- Who stands by takes in what the leader writes and on which leases, and wants what its own readers say: where it takes
  over, the difference between the two is all there is to write.
- What a watch tells while keys are being written is taken in before the next are, and what it tells of a key from
  before our last write of that key is no news.
- A key that hangs on no lease of ours holds, whatever it is, not what is wanted: it would not last.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator, Callable, Collection, Iterable, Mapping, Sequence
from contextlib import aclosing
from typing import Final

from clustermesh.apiserver.in_order import InOrder, Sections
from clustermesh.apiserver.keys_target import Held, KeysTarget
from clustermesh.reconcile import Tracker
from clustermesh.store.client import EtcdClient
from clustermesh.store.lease import LeaseKeeper
from clustermesh.store.operations import KeyValue
from clustermesh.wire import keys

_LOOSE: Final = b"\0"  # before what a key holds that hangs on no lease of ours; no value begins with it


class CopiesTarget:
    """The keys under `place` but for those at `but`, as a target of the reconciler. What is no copy by `is_copy`, the
    key and the value asked, is nobody's business here: as if it were not there.

    While it does not `lead`, whoever does answers for the leases: they are noted.
    """

    def __init__(
        self,
        client: EtcdClient,
        keeper: LeaseKeeper,
        place: bytes,
        but: tuple[bytes, ...] = (),
        is_copy: Callable[[bytes, bytes], bool] = lambda _key, _value: True,
    ) -> None:
        self.place, self.keeper, self.leads = place, keeper, False
        self.on_write: Callable[[], None] = lambda: None  # called before keys are written
        self.on_written: Callable[[Iterable[bytes]], None] = lambda _keys: None  # and after
        self.is_copy = is_copy
        self._client, self._keys = client, KeysTarget(client, keeper, [place], but=but)
        self.covers, self.written = self._keys.covers, self._keys.written

    def value(self, kv: KeyValue) -> bytes:
        kept = self.keeper.claim(kv.key, kv.lease) if self.leads else self.keeper.note(kv.key, kv.lease)
        return kv.value if kept else _LOOSE + kv.value

    async def pages(self) -> AsyncIterator[Mapping[bytes, bytes]]:
        pages: AsyncGenerator = self._client.pages(self.place)  # type: ignore[type-arg]
        async with aclosing(pages) as listings:
            async for listing, _ in listings:
                copies = (kv for kv in listing.kvs if self.covers(kv.key) and self.is_copy(kv.key, kv.value))
                yield {kv.key: self.value(kv) for kv in copies}

    async def dump(self) -> Mapping[bytes, bytes]:
        return {key: value async for page in self.pages() for key, value in page.items()}

    async def upsert(self, entries: Mapping[bytes, bytes]) -> None:
        self.on_write()
        await self._keys.upsert({key: Held(value, kept=True) for key, value in entries.items()})
        self.on_written(entries)

    async def delete(self, gone: Collection[bytes]) -> None:
        self.on_write()
        await self._keys.delete(gone)


class Section(InOrder):
    """One kind of entry: a tracker over its keys, and the order of what is told of them."""

    def __init__(self, name: str, target: CopiesTarget) -> None:
        super().__init__(target.written)
        self.name, self.target = name, target
        self.tracker: Tracker[bytes, bytes] = Tracker(name, target)
        self._withdrawn = set[bytes]()  # what its cluster no longer has, and who leads has not removed yet
        target.on_write = self._catch_up

    def want(self, key: bytes, value: bytes | None) -> None:
        """From now on `key` should hold `value`, or nothing."""
        if value is not None:
            self._withdrawn.discard(key)
            self.tracker.set(key, value)
            return
        if key in self.tracker.desired and key in self.tracker.actual and not self.target.leads:
            self._withdrawn.add(key)
        self.tracker.remove(key)
        self._release_absent(key)

    def held(self, key: bytes) -> bytes | None:
        """What etcd holds at `key`, as far as is known."""
        held = self.tracker.actual.get(key)
        return None if held is None else _plain(held)

    def differing(self) -> list[tuple[bytes, bytes | None]]:
        """The keys that do not hold what is wanted, and what they hold."""
        desired, actual = self.tracker.desired, self.tracker.actual
        found = [(key, _plain(value)) for key, value in actual.items() if desired.get(key) != value]
        return [*found, *((key, None) for key in desired if key not in actual)]

    def unclaimed(self) -> list[tuple[bytes, bytes]]:
        """The keys that hold something of which nothing was ever heard here, and what."""
        actual, known = self.tracker.actual, self.tracker.desired.keys() | self._withdrawn
        return [(key, _plain(value)) for key, value in actual.items() if key not in known]

    def lose_lease(self, key: bytes) -> None:
        held = self.tracker.actual.get(key)
        if held is not None:
            self.tracker.observe(key, _LOOSE + _plain(held))

    def _known(self) -> Iterable[bytes]:
        return self.tracker.actual

    def _take(self, key: bytes, kv: KeyValue | None) -> None:
        is_copy = kv is not None and self.target.is_copy(key, kv.value)
        held = self.target.value(kv) if kv is not None and is_copy else None
        wanted = self.tracker.desired.get(key)
        if self.target.leads:
            self.tracker.drift += held != self.tracker.actual.get(key)
        self._withdrawn.discard(key)
        self.tracker.observe(key, wanted if wanted == held else held)  # equal values are one object
        if held is None:
            self._release_absent(key)

    def _release_absent(self, key: bytes) -> None:
        if key not in self.tracker.actual and key not in self.tracker.desired:
            self.target.keeper.release(key)


class Cache(Sections[Section]):
    """All sections. `take` what a watch of one of `PLACES` tells."""

    def __init__(self, sections: Sequence[Section]) -> None:
        super().__init__((section.name, section) for section in sections)
        self._by_place = {section.target.place: section for section in sections}

    def lead(self) -> None:
        """From now on what is not right is ours to put right."""
        for section in self.sections.values():
            section.target.leads = True

    def _of(self, key: bytes) -> Section | None:
        section = self._by_place.get(_place_of(key))
        return section if section is not None and section.target.covers(key) else None


def _place_of(key: bytes) -> bytes:
    parts = key.split(b"/", 4)
    depth = 4 if key.startswith(keys.CACHE) else 2
    return b"/".join(parts[:depth]) + b"/"


def _plain(value: bytes) -> bytes:
    return value.removeprefix(_LOOSE)
