"""Whose backend is gone: what connected sockets mean against what is wanted of services. Pure."""

from __future__ import annotations

from collections.abc import Callable, Container, Iterable, Iterator, Set
from enum import StrEnum

from agent.bpf.layouts import MeantValue, pack_service_key
from clustermesh.address import Address
from clustermesh.mesh.resolve import Scope, ServiceEntry


class Reason(StrEnum):
    """What went: the service, this backend of it, or the backend's whole cluster, which was evicted."""

    SERVICE = "service"
    BACKEND = "backend"
    CLUSTER = "cluster"


def gone(
    found: Iterable[MeantValue],
    wanted: Callable[[bytes], ServiceEntry | None],
    held: Container[bytes],
    evicted: Set[int],
) -> Iterator[tuple[MeantValue, Reason | None]]:
    """Each meaning, and why its sockets have nobody to speak with any more; None where they have.

    A backend that rests is there: what terminates is left to finish. It is known by its address and port, so
    one that came back as another is itself. `wanted` is a service's entry by its key, `held` the keys that the kernel
    has: of a service that nobody has spoken of yet nothing is known. `evicted` are ids of clusters.
    """
    by_key: dict[bytes, list[MeantValue]] = {}
    for meaning in found:
        key = pack_service_key(meaning.address, meaning.port, meaning.protocol, Scope.ANY)
        by_key.setdefault(key, []).append(meaning)
    for key, meanings in by_key.items():
        entry = wanted(key)
        if entry is None:
            yield from ((meaning, None if key in held else Reason.SERVICE) for meaning in meanings)
            continue
        clusters = _clusters(entry)
        for meaning in meanings:
            of = clusters.get((meaning.backend, meaning.backend_port), set())
            why = Reason.BACKEND if not of else Reason.CLUSTER if of <= evicted else None
            yield meaning, why


def _clusters(entry: ServiceEntry) -> dict[tuple[Address, int], set[int]]:
    """The ids of those that have a backend there."""
    found: dict[tuple[Address, int], set[int]] = {}
    for group in (*entry.groups, *entry.resting):
        for alike in group.alike:
            for address in alike.addresses:
                found.setdefault((address, alike.port), set()).add(group.cluster_id)
    return found
