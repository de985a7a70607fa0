"""Backends of other clusters that left their services while their pods are there: they rest. Pure.

Who is only not ready, in maintenance or about to end leaves the service's key, as who is gone does: other clusters are
told no more. That the pod is there is known by its endpoint.

Who rested when this process began, or left while no agent ran, is in the kernel and in no service. Whose it was nobody
knows: it rests in the global services of its namespace that it could have been of.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, MutableMapping
from typing import NamedTuple

from msgspec.structs import replace

from agent.bpf.layouts import PROTOCOL_NUMBERS, BackendValue
from clustermesh.address import Address, is_ipv4
from clustermesh.mesh.resolve import Backends, Frontend, Group, ServiceEntry
from clustermesh.model import BackendState, Endpoint

Name = tuple[str, str]


class Leaver(NamedTuple):
    """Where it answers, of which cluster."""

    cluster_id: int
    port: int
    address: Address


class Leavers:
    """`pod_at` says which pod of the cluster with this id is at an address. `watched` are the services to plan again
    when another endpoint is there, or none. At most `most` rest, of all services together: any other is gone."""

    def __init__(
        self,
        pod_at: Callable[[Address, int], Endpoint | None],
        watched: MutableMapping[Address, set[Name]],
        most: int,
    ) -> None:
        self._pod_at, self._watched, self._most = pod_at, watched, most
        self._resting: dict[Name, dict[Leaver, tuple[str, str]]] = {}  # the pods they are
        self._count = 0

    def by_namespace(self, backends: Iterable[BackendValue]) -> dict[str, list[BackendValue]]:
        """Those whose pods are there."""
        found: dict[str, list[BackendValue]] = {}
        for each in backends:
            if (pod := self._pod_at(each.address, each.cluster_id)) is not None:
                found.setdefault(pod.namespace, []).append(each)
        return found

    def keep(
        self,
        name: Name,
        own_id: int,
        entries: Collection[ServiceEntry],
        had: Callable[[Frontend], ServiceEntry | None],
        strays: Collection[BackendValue] = (),
    ) -> list[ServiceEntry]:
        """`entries`, the whole of what service `name` has, with who left it since it was as it `had` them, and those of
        `strays` that may have been its own."""
        before, found = self._forget(name), dict[Leaver, tuple[str, str]]()
        kept = []
        for entry in entries:
            last = had(entry.frontend)
            gone = {} if last is None or _is_as_it_was(entry, last) else _others(last, own_id)
            for stray in strays:
                if stray.cluster_id != own_id and _may_be_of(entry, stray):
                    gone.setdefault((stray.cluster_id, stray.port), set()).add(stray.address)
            if not gone:
                kept.append(entry)
                continue
            there, nobody = _others(entry, own_id), set[Address]()
            left = [Leaver(*of, address) for of, those in gone.items() for address in those - there.get(of, nobody)]
            resting = [leaver for leaver in sorted(left) if self._rests(leaver, before, found)]
            kept.append(replace(entry, resting=(*entry.resting, *_grouped(resting))) if resting else entry)
        if found:
            self._resting[name] = found
            self._count += len(found)
            for each in found:
                self._watched.setdefault(each.address, set()).add(name)
        return kept

    def _rests(
        self, leaver: Leaver, before: dict[Leaver, tuple[str, str]], found: dict[Leaver, tuple[str, str]]
    ) -> bool:
        if leaver in found:
            return True
        pod = self._pod_at(leaver.address, leaver.cluster_id)
        if pod is None or self._count + len(found) >= self._most:
            return False
        named = pod.namespace, pod.pod_name
        if before.get(leaver, named) != named:  # another has its address by now
            return False
        found[leaver] = named
        return True

    def _forget(self, name: Name) -> dict[Leaver, tuple[str, str]]:
        before = self._resting.pop(name, {})
        self._count -= len(before)
        for address in {each.address for each in before}:
            self._watched[address].discard(name)
            if not self._watched[address]:
                del self._watched[address]
        return before


def _is_as_it_was(entry: ServiceEntry, last: ServiceEntry) -> bool:
    return last.groups == entry.groups and not last.resting


def _may_be_of(entry: ServiceEntry, stray: BackendValue) -> bool:
    """By its family and protocol, and its port, where the service has anybody to tell that by."""
    at = entry.frontend
    if (is_ipv4(at.address), PROTOCOL_NUMBERS[at.protocol]) != (is_ipv4(stray.address), stray.protocol):
        return False
    ports = {alike.port for group in (*entry.groups, *entry.resting) for alike in group.alike}
    return not ports or stray.port in ports


def _others(entry: ServiceEntry, own_id: int) -> dict[tuple[int, int], set[Address]]:
    """Its backends in other clusters, by the cluster's id and their port."""
    found: dict[tuple[int, int], set[Address]] = {}
    for group in (*entry.groups, *entry.resting):
        for alike in group.alike if group.cluster_id != own_id else ():
            found.setdefault((group.cluster_id, alike.port), set()).update(alike.addresses)
    return found


def _grouped(leavers: Iterable[Leaver]) -> tuple[Group, ...]:
    """They are in order."""
    found: dict[int, dict[int, list[Address]]] = {}
    for each in leavers:
        found.setdefault(each.cluster_id, {}).setdefault(each.port, []).append(each.address)
    return tuple(
        Group(cluster_id, 0, tuple(Backends(tuple(of), port, BackendState.TERMINATING) for port, of in ports.items()))
        for cluster_id, ports in found.items()
    )
