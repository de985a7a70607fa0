"""The large tables of this node as rows, made one at a time: who tells them takes turns with everybody else.

A None among them is a step that made no row. A table may change while it is told: what is gone by then is left out,
what came since may be missing.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from functools import lru_cache
from heapq import merge
from typing import Any, TypeVar

from agent.bpf.layouts import (
    NO_ADDRESS,
    PROTOCOL_NUMBERS,
    BackendValue,
    CidrKey,
    IpcacheValue,
    Number,
    pack,
    unpack,
    unpack_numbers,
)
from agent.domains.domains import Domains
from agent.state import AgentState
from clustermesh.address import Address, Prefix, prefix_text, single, text

Rows = Iterator[dict[str, Any] | None]
T = TypeVar("T", bytes, int)

PROTOCOL_NAMES = {number: str(name) for name, number in PROTOCOL_NUMBERS.items()}
_RUN = 4096  # items sorted at once
_LABELS_KEPT = 4096  # identities whose labels are not looked for again


def in_order(items: Iterable[T]) -> Iterator[T | None]:
    """As `sorted`, in steps of a few milliseconds at most: None is one that found no item yet."""
    whole, runs = list(items), list[list[T]]()
    for at in range(0, len(whole), _RUN):
        runs.append(sorted(whole[at : at + _RUN]))
        yield None
    yield from merge(*runs)


class Listing:
    """`cluster_name` gives the name of a cluster by its id, by those that are known now."""

    def __init__(self, state: AgentState, domains: Domains, cluster_name: Callable[[], Callable[[int], str]]) -> None:
        self._state, self._domains, self._cluster_name = state, domains, cluster_name

    def refused(self) -> Rows:
        """Every entry that is not used, with its reason."""
        for cluster in list(self._state.views):
            for reason, name, why in list(self._state.refusals(cluster).listed()):
                yield {"cluster": cluster, "entry": name, "reason": str(reason), "why": why}

    def backends(self) -> Rows:
        """The backend map as it was last known to be, with how many frontends name each."""
        tables, cluster, uses = self._domains.services.tables, self._cluster_name(), Counter[int]()
        for key in list(tables.slots.actual):
            uses.update(set(unpack_numbers([tables.slots.actual.get(key, b"")])))
            yield None
        for number in in_order(unpack_numbers(tables.backends.actual)):
            if number is None or (value := tables.backends.actual.get(pack(Number(number)))) is None:
                yield None
            else:
                entry = unpack(BackendValue, value)
                protocol = PROTOCOL_NAMES.get(entry.protocol, str(entry.protocol))
                whose = {"cluster": cluster(entry.cluster_id), "frontends": uses[number]}
                yield {"id": number, **_place(entry), "protocol": protocol, **whose}

    def ipcache(self) -> Rows:
        """Who is behind each address or CIDR, with the labels of the identity where they are known."""
        addresses, cidrs = self._domains.addresses.ipcache.actual, self._domains.network.cidrs.actual
        labels = lru_cache(_LABELS_KEPT)(self._labels)
        for key in in_order(addresses):
            held = None if key is None else addresses.get(key)
            yield None if key is None or held is None else _holder(single(Address(key)), held, labels)
        for key in in_order(cidrs):  # their keys begin with the length
            held = None if key is None else cidrs.get(key)
            yield None if key is None or held is None else _holder(_prefix(key), held, labels)

    def _labels(self, identity: int) -> list[str]:
        for view in reversed(self._state.views.values()):
            if (found := view.identities.get(identity)) is not None:
                return [f"{label.source}:{label.key}={label.value}" for label in found.labels]
        return []


def _prefix(key: bytes) -> Prefix:
    length, address = unpack(CidrKey, key)
    return Prefix(address, length)


def _holder(prefix: Prefix, held: bytes, labels: Callable[[int], list[str]]) -> dict[str, Any]:
    value = unpack(IpcacheValue, held)
    return {
        "prefix": prefix_text(prefix),
        "identity": value.identity,
        "node": "" if value.tunnel_endpoint == NO_ADDRESS else text(value.tunnel_endpoint),
        "encrypted": value.key == 255,
        "labels": labels(value.identity),
    }


def _place(at: Any) -> dict[str, Any]:
    return {"address": text(at.address), "port": at.port}
