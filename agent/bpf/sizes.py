"""How many entries the maps take: as the operator says, or by the machine's memory. Pure.

Tables that the agent fills take memory as they are filled: their size is a limit only. Those that forget what was
not used for longest (LRU) are made whole.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from agent.bpf.libbpf import MapShape
from agent.bpf.syscalls import MapType

USUAL: Final = 65536
"""Of most maps."""
USUAL_CT: Final = 262144
LEAST: Final = 1 << 10
MOST: Final = 1 << 24
_OF_AN_ENTRY: Final = 64  # bytes beside key and value


def by_option(lb: int = USUAL, affinity: int = USUAL, reverse: int = USUAL, ct: int = USUAL_CT) -> dict[str, int]:
    """Sizes that are not the usual ones. `lb` is how many frontends there may be, with twice as many backends, `ct` how
    many directions of connections, with a quarter of that for those to no service."""
    tables = {"lb_services": lb, "lb_maglev": lb, "lb_source_ranges": lb}
    twice = dict.fromkeys(("lb_groups", "lb_slots", "lb_backends"), 2 * lb)
    single = {"lb_affinity": affinity, "lb_reverse_sk": reverse}
    changed = {name: size for name, size in (tables | single).items() if size != USUAL}
    return (
        changed | ({} if lb == USUAL else twice) | ({} if ct == USUAL_CT else {"ct": ct, "ct_direct": max(ct // 4, 1)})
    )


def by_memory(shapes: Mapping[str, MapShape], memory: int) -> dict[str, int]:
    """Sizes of the LRU maps, that take so many bytes together; they are to each other as they usually are."""
    usual = {name: shape for name, shape in shapes.items() if shape.type == MapType.LRU_HASH}
    bytes_usually = sum(each.max_entries * _bytes_of(each) for each in usual.values())
    return {name: min(max(each.max_entries * memory // bytes_usually, LEAST), MOST) for name, each in usual.items()}


def _bytes_of(shape: MapShape) -> int:
    return sum(-(-size // 8) * 8 for size in (shape.key_size, shape.value_size)) + _OF_AN_ENTRY
