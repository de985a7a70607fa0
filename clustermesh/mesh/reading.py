"""One table of a cluster as its reader hears it: what is taken in, what is refused, and what has vanished. Pure."""

from __future__ import annotations

from collections.abc import Callable, Set
from typing import Any, Final
from zlib import crc32

from clustermesh.errors import Invalid
from clustermesh.mesh.authority import Limits
from clustermesh.mesh.messages import Accept, Command, Follow, Put, Refuse, Remove
from clustermesh.mesh.tables import Table
from clustermesh.model import Cluster
from clustermesh.store.follower import Changed, Deleted, Listed
from clustermesh.store.follower import Put as Written
from clustermesh.store.operations import KeyValue

_SHOWN: Final = 200  # characters of a refused key: it may have a million, and goes into status


class Reading:
    """Whether the table is `followed`, was listed `whole` since, and whether something is kept of it that vanished
    without proof (`doubted`)."""

    def __init__(self, table: Table, cluster: Cluster, limits: Limits, held: Callable[[str], Set[Any]]) -> None:
        self.table = table
        self.followed = self.whole = self.doubted = False
        self._cluster, self._limits, self._held = cluster, limits, held
        self._names: set[Any] = set()  # what the list under way has, good or not: what is refused has not vanished
        self._shown: set[str] = set()  # what it has that is refused

    def start(self) -> Follow:
        self.followed, self.whole, self.doubted = True, False, False
        self.forget_list()
        return Follow(self.table.prefix)

    def forget_list(self) -> None:
        """The list under way has come to no end."""
        self._names, self._shown = set(), set()

    def take(self, item: Listed | Changed, proof: int | None) -> list[Command]:
        """What to do about `item`. That something has gone is believed where it is not older than the revision `proof`
        of a writer that is proven; where there is none (None) nothing of the kind is."""
        revision = item.revision if isinstance(item, Changed) else 0
        commands, refused = list[Command](), self._held("refused")
        for event in item.events:
            key = event.kv.key if isinstance(event, Written) else event.key
            if isinstance(event, Deleted):
                command = self._delete(key, revision, proof is not None and event.mod_revision >= proof)
            else:
                command = self._put(event.kv, revision and event.kv.mod_revision)
            if command is not None:
                commands.append(command)
            if refused and isinstance(command, Put | Remove) and (what := _shown(key)) in refused:
                commands.append(Accept(what))
        if isinstance(item, Changed):
            self.forget_list()
        elif not item.more:
            commands += self._forget_unlisted(proof is not None and item.revision >= proof)
            self.whole = True
        return commands

    def _put(self, kv: KeyValue, revision: int) -> Command:
        try:
            name = self.table.name_of(kv.key)
            self._names.add(name)
            self._check_size(len(kv.value))
            value = self.table.decode(kv.key, kv.value, self._cluster)
        except Invalid as e:
            why = str(e)
        except Exception as e:  # a bug of ours that this entry has found is this entry's problem
            why = f"internal error: {e!r}"
        else:
            return Put(self.table.kind, name, value, revision)
        self._shown.add(_shown(kv.key))
        return Refuse(_shown(kv.key), why[: 5 * _SHOWN])

    def _check_size(self, size: int) -> None:
        if size > self._limits.value_bytes:
            raise Invalid("value", f"{size} bytes", f"must be at most {self._limits.value_bytes}")

    def _delete(self, key: bytes, revision: int, believed: bool) -> Command | None:
        try:
            name = self.table.name_of(key)
        except Invalid:
            return Accept(_shown(key))
        if believed:
            return Remove(self.table.kind, name, revision)
        self.doubted = self.doubted or name in self._held(self.table.kind)
        return None

    def _forget_unlisted(self, believed: bool) -> list[Command]:
        """The list is the whole table: what is held beside it is gone, if that is `believed`."""
        kind, prefix = self.table.kind, self.table.prefix.decode()
        gone = self._held(kind) - self._names
        stale = [what for what in self._held("refused") - self._shown if what.startswith(prefix)]
        commands: list[Command] = [Accept(what) for what in stale]
        self.forget_list()
        if believed:
            commands += [Remove(kind, name, 0) for name in gone]
        elif gone:
            self.doubted = True
        return commands


def _shown(key: bytes) -> str:
    """How a refused key is called in status."""
    text = key.decode(errors="replace")
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}... ({crc32(key):08x})"
