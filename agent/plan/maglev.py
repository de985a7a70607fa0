"""The table of Maglev (Eisenbud et al., NSDI 2016, 3.4): each backend takes the next free place of its own order
of all places, in turns, as often as its weight says. Pure.

The same backends make the same table on every node, in whatever order they come; one that comes or goes moves few
places of the others. A table takes a millisecond at most, of a thousand backends two.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import lru_cache
from hashlib import blake2b
from itertools import cycle, islice
from typing import Final

from agent.bpf.layouts import MAGLEV_PLACES

_HALF: Final = 8  # bytes of a hash: one for where an order begins, one for its steps


@lru_cache(16)  # a service has one table at all the addresses it is called at
def maglev(backends: Sequence[bytes], weights: Sequence[int]) -> Sequence[int]:
    """Whose each place is, by its index in `backends`, which differ. `weights`, one for each, are at least 1."""
    order = sorted(range(len(backends)), key=backends.__getitem__)
    orders = [_order(each) for each in backends]
    nexts, steps = [first for first, _ in orders], [step for _, step in orders]
    table = [-1] * MAGLEV_PLACES
    for each in islice(_turns(order, weights), MAGLEV_PLACES):
        place, step = nexts[each], steps[each]
        while table[place] >= 0:
            place = (place + step) % MAGLEV_PLACES
        table[place] = each
        nexts[each] = (place + step) % MAGLEV_PLACES
    return tuple(table)


def _order(backend: bytes) -> tuple[int, int]:
    """The first place it asks for, and how far it goes from one to the next."""
    digest = blake2b(backend, digest_size=2 * _HALF).digest()
    first, step = int.from_bytes(digest[:_HALF], "little"), int.from_bytes(digest[_HALF:], "little")
    return first % MAGLEV_PLACES, step % (MAGLEV_PLACES - 1) + 1


def _turns(order: Sequence[int], weights: Sequence[int]) -> Iterable[int]:
    """Whose turn it is, for each place. Those of a backend are evenly apart, and as many as its part of all weights."""
    if len(set(weights)) == 1:
        return cycle(order)
    whole = sum(weights)
    parts = [divmod(MAGLEV_PLACES * weights[each], whole) for each in order]
    left = MAGLEV_PLACES - sum(part for part, _ in parts)
    by_rest = sorted(range(len(order)), key=lambda rank: -parts[rank][1])
    turns = {rank: parts[rank][0] + (place < left) for place, rank in enumerate(by_rest)}
    when = sorted(((2 * number + 1) / turns[rank], rank) for rank in turns for number in range(turns[rank]))
    return [order[rank] for _, rank in when]
