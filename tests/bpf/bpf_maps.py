"""Maps written and read by the tuples their keys and values are; a value of several is a list of them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from agent.bpf.layouts import Number, pack, pack_factors
from agent.bpf.loader import Datapath
from agent.domains.tables import open_map


def packed(entry: Any) -> bytes:
    if isinstance(entry, bytes):
        return entry
    return b"".join(map(pack, entry)) if isinstance(entry, list) else pack(entry)


async def write(datapath: Datapath, name: str, entries: Mapping[Any, Any]) -> None:
    await open_map(datapath, name).upsert({packed(key): packed(value) for key, value in entries.items()})


async def delete(datapath: Datapath, name: str, keys: Iterable[Any]) -> None:
    await open_map(datapath, name).delete([*map(packed, keys)])


async def set_factors(datapath: Datapath, factors: Mapping[int, float]) -> None:
    await write(datapath, "lb_clusters", {Number(0): pack_factors(factors)})
