"""Services -> entries of the load-balancing maps: numbers for backends, slots for frontends. Pure but for its trackers.

A backend keeps its number as long as any frontend uses it; numbers found in the kernel at start are taken over, so a
restart changes no entry. A number is not used again until all others were, so that a lookup under way never meets
another service's backend.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from agent.bpf.layouts import PROTOCOL_NUMBERS, BackendKey, ServiceKey, ServiceValue, ipv4
from agent.bpf.layouts import Backend as BackendEntry
from clustermesh.mesh.merge import Backend, Frontend
from clustermesh.reconcile import Tracker


class _Where(NamedTuple):
    """What tells one backend from another in the map."""

    address: int
    port: int
    protocol: int


class ServicePlanner:
    """Keeps the desired entries of lb4_services and lb4_backends in step with the merged services."""

    def __init__(
        self, services: Tracker[ServiceKey, ServiceValue], backends: Tracker[BackendKey, BackendEntry]
    ) -> None:
        self._services, self._backends = services, backends
        self._numbers: dict[_Where, int] = {}
        self._users: dict[_Where, int] = {}  # how many slots name it
        self._next = 1
        self._claims: dict[Frontend, dict[tuple[str, str], tuple[Backend, ...]]] = {}
        self._frontends: dict[tuple[str, str], set[Frontend]] = {}
        self._programmed: dict[Frontend, tuple[Backend, ...]] = {}

    def adopt(self) -> None:
        """Take over the backend numbers the kernel holds (the trackers must have been audited)."""
        for key, entry in self._backends.actual.items():
            self._numbers[_Where(entry.address, entry.port, entry.protocol)] = key.id
            self._next = max(self._next, key.id + 1)

    def update(self, name: tuple[str, str], merged: Mapping[Frontend, tuple[Backend, ...]]) -> None:
        """Make `merged` the whole of what service `name` has. An empty mapping removes the service."""
        wanted = {frontend: backends for frontend, backends in merged.items() if _has_entry(frontend)}
        for frontend in self._frontends.get(name, set()) - wanted.keys():
            del self._claims[frontend][name]
            self._program(frontend)
        for frontend, backends in wanted.items():
            self._claims.setdefault(frontend, {})[name] = backends
            self._program(frontend)
        if wanted:
            self._frontends[name] = set(wanted)
        else:
            self._frontends.pop(name, None)

    def conflicts(self) -> dict[Frontend, list[tuple[str, str]]]:
        """Frontends that more than one service claims; the first name in order is served."""
        return {frontend: sorted(names) for frontend, names in self._claims.items() if len(names) > 1}

    @property
    def frontends(self) -> Mapping[tuple[str, str], set[Frontend]]:
        """The frontends each service claims."""
        return self._frontends

    @property
    def programmed(self) -> Mapping[Frontend, tuple[Backend, ...]]:
        """What each frontend is wanted to have."""
        return self._programmed

    def _program(self, frontend: Frontend) -> None:
        names = self._claims[frontend]
        wanted = names[min(names)] if names else None
        if not names:
            del self._claims[frontend]
        held = self._programmed.get(frontend)
        if wanted == held:
            return
        if wanted is None:
            self._programmed.pop(frontend)
        else:
            self._programmed[frontend] = wanted
        numbers = [self._acquire(backend) for backend in wanted or ()]
        self._write(frontend, numbers if wanted is not None else None, len(held or ()))
        for backend in held or ():
            self._release(backend)

    def _write(self, frontend: Frontend, numbers: list[int] | None, held: int) -> None:
        """Slots first, then slot 0, which says how many there are; None removes the frontend."""
        address, port, protocol = ipv4(frontend.address), frontend.port, PROTOCOL_NUMBERS[frontend.protocol]
        count = len(numbers or ())
        for slot, number in enumerate(numbers or (), start=1):
            self._services.set(ServiceKey(address, port, slot, protocol), ServiceValue(number, 0, 0))
        master = ServiceKey(address, port, 0, protocol)
        if numbers is None:
            self._services.remove(master)
        else:
            self._services.set(master, ServiceValue(0, count, 0))
        for slot in range(count + 1, held + 1):
            self._services.remove(ServiceKey(address, port, slot, protocol))

    def _acquire(self, backend: Backend) -> int:
        where = _where(backend)
        number = self._numbers.get(where)
        if number is None:
            number = self._numbers[where] = self._new_number()
        if not self._users.get(where):
            entry = BackendEntry(where.address, where.port, where.protocol, 0, backend.cluster_id)
            self._backends.set(BackendKey(number), entry)
        self._users[where] = self._users.get(where, 0) + 1
        return number

    def _release(self, backend: Backend) -> None:
        where = _where(backend)
        self._users[where] -= 1
        if not self._users[where]:
            del self._users[where]
            self._backends.remove(BackendKey(self._numbers.pop(where)))

    def _new_number(self) -> int:
        number = self._next
        while BackendKey(number) in self._backends.desired or BackendKey(number) in self._backends.actual:
            number = number % 0xFFFFFFFF + 1
        self._next = number % 0xFFFFFFFF + 1
        return number


def _has_entry(frontend: Frontend) -> bool:
    """The maps hold IPv4 and the protocols that have ports."""
    return ":" not in frontend.address and frontend.protocol in PROTOCOL_NUMBERS


def _where(backend: Backend) -> _Where:
    return _Where(ipv4(backend.address), backend.port, PROTOCOL_NUMBERS[backend.protocol])
