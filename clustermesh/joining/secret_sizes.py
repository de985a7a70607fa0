"""Whether the Secrets that say who is connected have room for more: Kubernetes bounds all values of one together. Pure.

What a cluster that comes by invitation may put there is bounded too (`MOST_ENTRY`), so that it takes nobody's room.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from clustermesh.errors import Refused
from clustermesh.joining.links import entries_of, known_peers

MOST_ENTRY: Final = 16 << 10
"""Bytes of what such a Secret holds of one cluster that came by invitation; they are 2 to 4 thousand."""
_MOST: Final = 1 << 20
_MOST_ADDING: Final = _MOST - (32 << 10)
"""Bytes up to which clusters are added: entries are longer while an authority is replaced."""


class Room:
    """What is left in the Secret `secret` of the cluster `reader`, which has `data`."""

    def __init__(self, reader: str, secret: str, data: Mapping[str, bytes]) -> None:
        self._reader, self._secret, self._data, self._size = reader, secret, dict(data), sum(map(len, data.values()))

    def take(self, peer: str, files: Mapping[str, bytes]) -> Refused | None:
        """Put `files` in the place of all that it has of `peer`, or Refused where there is no room. What makes it no
        larger may always be there."""
        before = [key for key in entries_of(peer) if key in self._data]
        most, less = _MOST if before else _MOST_ADDING, sum(len(self._data[key]) for key in before)
        size = self._size - less + sum(map(len, files.values()))
        if size > max(most, self._size):
            return self._full(peer, size, most)
        for key in before:
            del self._data[key]
        self._data.update(files)
        self._size = size
        return None

    def _full(self, peer: str, size: int, most: int) -> Refused:
        why = "Kubernetes takes no more" if most == _MOST else f"of {_MOST}; an authority that is replaced takes more"
        key, largest = max(self._data.items(), key=lambda item: len(item[1]), default=("none", b""))
        return Refused(
            f"Secret {self._secret} of {self._reader} has no room for {peer}: {size} bytes: must be at most {most} "
            f"({why}); it has {len(known_peers(self._data))} connected clusters, and its largest value is {key}, "
            f"{len(largest)} bytes: disconnect those that are no longer used"
        )
