"""What the brain of a list-and-watch hears, what it commands, and what it tells its reader."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Generic, NamedTuple, TypeAlias

from msgspec import Struct

from clustermesh.errors import ClusterMeshError, DecodeError
from clustermesh.kube.resource import K, V


class Put(NamedTuple, Generic[K, V]):
    key: K
    value: V


class Gone(NamedTuple, Generic[K]):
    key: K


class Bad(NamedTuple, Generic[K]):
    """An object that cannot be read; without a key nobody knows which."""

    key: K | None
    error: DecodeError


Entry: TypeAlias = Put[K, V] | Gone[K] | Bad[K]


class Started(Struct, frozen=True):
    """Somebody wants to follow; also again, after having stopped."""


class Page(Struct, Generic[K, V], frozen=True):
    """A part of a list; `next` is where it goes on, "" at its end."""

    entries: Sequence[Entry[K, V]]
    version: str
    next: str = ""


class Opened(Struct, frozen=True):
    """The watch that was asked for is up."""


class Received(Struct, Generic[K, V], frozen=True):
    """Events of the watch, and the resourceVersion of the last; without events a bookmark."""

    entries: Sequence[Entry[K, V]]
    version: str


class Probed(Struct, frozen=True):
    """The server lives, and its resourceVersion is this."""

    version: str


class Ended(Struct, frozen=True):
    """The server ended the watch as it does from time to time."""


class Failed(Struct, frozen=True):
    """What was asked for failed, or the watch broke."""

    error: ClusterMeshError


class Due(Struct, frozen=True):
    """It is time to compare what is known with a list."""


class Compared(Struct, Generic[K, V], frozen=True):
    """A part of that list, as a Page is one of the list that a watch begins with."""

    entries: Sequence[Entry[K, V]]
    version: str
    next: str = ""


class Abandoned(Struct, frozen=True):
    """That list has come to no end."""


Event: TypeAlias = (
    Started | Page[K, V] | Opened | Received[K, V] | Probed | Ended | Failed | Due | Compared[K, V] | Abandoned
)


class List(NamedTuple):
    """Ask for at most `limit` objects, from `next` on; with newer credentials where `fresh`.

    Where `cached`, what the server remembers will do, though there may be something newer.
    """

    limit: int
    next: str = ""
    fresh: bool = False
    cached: bool = False


class Watch(NamedTuple):
    """Watch from `version` on."""

    version: str
    fresh: bool = False


class Wait(NamedTuple):
    """Do nothing for so many seconds."""

    seconds: float


class Listed(Struct, Generic[K, V], frozen=True):
    """The complete list is in. `changes` is what differs from what was known before it; None is for what is gone."""

    changes: Mapping[K, V | None]


class Changed(Struct, Generic[K, V], frozen=True):
    """What is different now. Without changes: the watch is up again after an interruption, and nothing was missed."""

    changes: Mapping[K, V | None]


class Interrupted(Struct, frozen=True):
    """Following goes on later; what was told stands, but may be out of date."""

    error: ClusterMeshError


Item: TypeAlias = Listed[K, V] | Changed[K, V] | Interrupted


class Tell(NamedTuple, Generic[K, V]):
    """Tell the reader."""

    item: Item[K, V]


Command: TypeAlias = List | Watch | Wait | Tell[K, V]
