"""What was heard of a table's keys, in so few words that etcd can be asked whether it is so. Pure.

How many keys there are, and which were written since etcd was last found to have the same: where both are right now,
and all was right then, all is right now. A deletion of a key that was never heard of would make up in number for one
that was missed, and an overwrite of such a key hides that it was created: after either the number says nothing.

etcd answers as of now, and where that differs it may be of a change yet to be heard. Some time later it is asked as of
the last revision that was heard, if that is not before the answer; otherwise as of now again, and where nothing was
heard in between and it still differs, it counts.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final, NamedTuple

from clustermesh.store.follower import Deleted, Event
from clustermesh.store.operations import Digest, DigestOf

MOST_WRITTEN: Final = 10_000  # keys, some 2 MB: beyond that a new list costs hardly more than what was heard
_ABSENT: Final = 0


class _Heard(NamedTuple):
    revision: int
    number: int
    written: dict[bytes, int]


class _Unclear(NamedTuple):
    heard: int  # the last revision by then
    told: int  # that of the answer


class Tally:
    """Of the table under `prefix`. It knows nothing before the first list."""

    def __init__(self, prefix: bytes) -> None:
        self._prefix = prefix
        self._revision = self._since = self._number = 0
        self._written: dict[bytes, int] = {}  # _ABSENT for a key that has gone
        self._partial = True  # in the middle of something
        self._lost = False
        self._asked: _Heard | None = None
        self._unclear: _Unclear | None = None

    @property
    def is_lost(self) -> bool:
        """Whether nothing can be said any more, or not without more than a new list costs."""
        return self._lost or len(self._written) > MOST_WRITTEN

    @property
    def is_unclear(self) -> bool:
        """Whether etcd should soon be asked once more."""
        return self._unclear is not None

    def list(self, number: int, revision: int, *, first: bool, more: bool) -> None:
        """A list, or a part of it, has so many keys."""
        if first:
            self._number, self._written, self._asked, self._unclear, self._lost = 0, {}, None, None, False
        self._number += number
        self._partial, self._revision, self._since = more, revision, revision

    def change(self, events: Iterable[Event], revision: int, *, more: bool) -> None:
        """What the watch tells, or a part of it."""
        written, room = self._written, not self.is_lost
        for event in events:
            if isinstance(event, Deleted):
                self._number -= 1
                key, at = event.key, _ABSENT
            else:
                self._number += event.kv.version == 1
                key, at = event.kv.key, event.kv.mod_revision
            if room:
                written[key] = at
        self._partial = more
        if not more:
            self._revision = revision

    def lose(self) -> None:
        """What was heard cannot be all."""
        self._lost = True

    def ask(self) -> DigestOf | None:
        """What to ask etcd for; None where that cannot be said now."""
        if self._partial:
            return None
        self._take_back()
        if self.is_lost:  # too much was heard since an answer came
            return None
        self._asked, self._written = _Heard(self._revision, self._number, self._written), {}
        past = self._unclear is not None and self._unclear.told <= self._revision
        most = len(self._asked.written) + MOST_WRITTEN
        return DigestOf(self._prefix, self._revision if past else 0, self._since, most)

    def interrupt(self) -> None:
        """The watch was cut: what it does not tell may come later."""
        self._unclear = None

    def compare(self, digest: Digest) -> int:
        """How many keys, at least, are not as they were heard to be; 0 where that is not certain."""
        if (asked := self._asked) is None:
            return 0  # all was listed since
        if digest.revision < asked.revision:  # of a member that is late
            self._take_back()
            return 0
        wrong, unclear = _differences(asked, digest), self._unclear
        if wrong and digest.revision > asked.revision and (unclear is None or unclear.heard != asked.revision):
            self._unclear = _Unclear(asked.revision, digest.revision)
            self._take_back()
            return 0
        self._asked = self._unclear = None
        self._since = asked.revision
        return wrong

    def _take_back(self) -> None:
        """What was asked for was not answered: it is asked for again, with what was heard since."""
        if (asked := self._asked) is not None:
            self._asked, self._written = None, asked.written | self._written


def _differences(heard: _Heard, digest: Digest) -> int:
    there = {key: at for key, at in heard.written.items() if at != _ABSENT}
    written = sum(there.get(key) != digest.written.get(key) for key in there.keys() | digest.written.keys())
    return max(written, abs(heard.number - digest.number))
