"""Whether the Secrets that say who is connected have room for more: Kubernetes bounds all values of one together. Pure.

What another cluster may put there is bounded too (`MOST_ENTRY`), so that one of them does not take the others' room.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from clustermesh.errors import Refused
from clustermesh.joining import names
from clustermesh.joining.links import known_peers, replaced
from clustermesh.joining.member import Member

MOST_ENTRY: Final = 16 << 10
"""Bytes of what such a Secret holds of one cluster that came by invitation; they are 2 to 4 thousand."""
_MOST_SECRET: Final = 1 << 20
_MOST: Final = _MOST_SECRET - (32 << 10)
"""Bytes up to which clusters are added: while an authority is replaced, its entries are longer."""


def find_full(reader: Member, secret: str, added: Mapping[str, Mapping[str, bytes]]) -> Refused | None:
    """Refused where `secret`, PEERS or COPIED, of `reader` has no room for what is `added` of each peer, in the place
    of what it has of that. What makes it no larger may always be there."""
    before = after = reader.copied if secret == names.COPIED else reader.peers
    for peer, files in added.items():
        after = replaced(after, peer, files)
    size = _size(after)
    if size <= max(_MOST, _size(before)):
        return None
    key, largest = max(after.items(), key=lambda item: len(item[1]))
    option = f" --context {reader.context}" if reader.context else ""
    return Refused(
        f"Secret {secret} of {reader.name} has no room for {', '.join(added)}: {size} bytes: must be at most {_MOST} "
        f"(Kubernetes takes {_MOST_SECRET}, and an authority that is replaced needs the rest); it has "
        f"{len(known_peers(before))} connected clusters, and its largest value is {key}, {len(largest)} bytes: "
        f"`clustermesh disconnect{option}` those that are no longer used"
    )


def _size(data: Mapping[str, bytes]) -> int:
    return sum(map(len, data.values()))
