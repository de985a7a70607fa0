"""The load-balancing maps of this node as rows, in the shape that Cilium's users know; made one at a time, as the rows
of listing.py."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import Any, Final

from agent.bpf.layouts import (
    AffinityKey,
    AffinityValue,
    BackendValue,
    Number,
    ServiceKey,
    ServiceValue,
    pack,
    unpack,
)
from agent.bpf.walk import groups_behind
from agent.domains.services import Services
from agent.listing import PROTOCOL_NAMES, Rows, in_order
from agent.targets.maps import MapTarget
from clustermesh.address import Address, text
from clustermesh.mesh.resolve import Group, Kind, Scope, ServiceFlag
from clustermesh.model import Algorithm, BackendState

KINDS: Final = {
    Kind.CLUSTER_IP: "ClusterIP",
    Kind.NODE_PORT: "NodePort",
    Kind.LOAD_BALANCER: "LoadBalancer",
    Kind.EXTERNAL_IP: "ExternalIPs",
    Kind.HOST_PORT: "HostPort",
}
_FLAGS: Final = {
    ServiceFlag.SOURCE_RANGES: "check source-range",
    ServiceFlag.EXTERNAL: "two-scopes",
    ServiceFlag.KEEP_SOURCE: "Local",
}
_NO_ADDRESS: Final = bytes.fromhex("ffffffff")  # third word of a client that is a network namespace


class LbListing:
    """`cluster_name` gives the name of a cluster by its id; `affinity` is the map that programs write."""

    def __init__(
        self, services: Services, affinity: Callable[[], MapTarget], cluster_name: Callable[[], Callable[[int], str]]
    ) -> None:
        self._services, self._affinity, self._cluster_name = services, affinity, cluster_name

    def services(self) -> Rows:
        """Every frontend with the backends that are given to new connections, those that rest, and whose they are."""
        planner, cluster = self._services.planner, self._cluster_name()
        for key in in_order(planner.programmed()):
            if key is None or (served := planner.served(key)) is None:
                yield None
                continue
            name, entry = served
            at = entry.frontend
            yield {
                "id": planner.number(key),
                "service": "/".join(name),
                "address": text(at.address),
                "port": at.port,
                "protocol": str(at.protocol),
                "type": KINDS[entry.kind],
                "scope": "external" if at.scope is Scope.EXTERNAL else "any",
                "flags": _flags(entry.flags),
                "affinity_seconds": entry.affinity_seconds,
                "algorithm": entry.algorithm.name.lower(),
                "backends": [each for group in entry.groups for each in _backends(group, cluster)],
                "resting": [each for group in entry.resting for each in _backends(group, cluster)],
            }

    def bpf_lb(self) -> Rows:
        """What the maps were last known to hold: each frontend, then its backends slot by slot."""
        tables = self._services.tables
        groups, slots, backends = (each.actual.get for each in (tables.groups, tables.slots, tables.backends))
        for key in in_order(tables.services.actual):
            if key is None or (head := tables.services.actual.get(key)) is None:
                yield None
                continue
            service, slot, shown = unpack(ServiceValue, head), 0, list[str]()
            for _, numbers in groups_behind(head, groups, slots):
                for number in numbers:
                    slot += 1
                    if (value := backends(number)) is not None:
                        shown.append(f"{_backend(value)} ({service.service_id}) ({slot})")
            at = unpack(ServiceKey, key)
            family = "0.0.0.0:0" if "." in text(at.address) else "[::]:0"
            yield {
                "service": _place(at) + ("/e" if at.scope == Scope.EXTERNAL else ""),
                "frontend": f"{family} ({service.service_id}) (0) [{_described(service)}]",
                "backends": shown,
            }

    def bpf_affinity(self) -> Rows:
        """Which client stays with which backend, as the kernel has it now."""
        places, now = dict[int, bytes](), time.monotonic_ns()
        for key, head in list(self._services.tables.services.actual.items()):
            places[unpack(ServiceValue, head).service_id] = key
            yield None
        for page in self._affinity().read():
            for key, value in page.items():
                yield self._stay(unpack(AffinityKey, key), unpack(AffinityValue, value), places, now)
            yield None

    def _stay(self, key: AffinityKey, value: AffinityValue, places: dict[int, bytes], now: int) -> dict[str, Any]:
        place = places.get(key.service_id)
        held = self._services.tables.backends.actual.get(pack(Number(value.backend_id)))
        is_netns = key.client[8:12] == _NO_ADDRESS
        return {
            "client": f"netns:{int.from_bytes(key.client[:8], 'little')}" if is_netns else text(key.client),
            "service_id": key.service_id,
            "service": "" if place is None else _place(unpack(ServiceKey, place)),
            "backend_id": value.backend_id,
            "backend": "" if held is None else _backend(held),
            "used_seconds_ago": max(0, (now - value.used_ns) // 10**9),
        }


def _backends(group: Group, cluster: Callable[[int], str]) -> Iterator[dict[str, Any]]:
    for alike in group.alike:
        for address in alike.addresses:
            yield {
                "address": text(address),
                "port": alike.port,
                "cluster": cluster(group.cluster_id),
                "state": alike.state.name.lower(),
                "weight": group.weight // max(len(group.backends), 1),
            }


def _backend(value: bytes) -> str:
    held = unpack(BackendValue, value)
    state = "" if held.state == BackendState.ACTIVE else f" [{BackendState(held.state).name.lower()}]"
    return _place(held) + state


def _place(at: Any) -> str:
    protocol = PROTOCOL_NAMES.get(at.protocol, str(at.protocol))
    shown = text(Address(at.address))
    return f"{f'[{shown}]' if ':' in shown else shown}:{at.port}/{protocol}"


def _described(service: ServiceValue) -> str:
    said = [KINDS[Kind(service.kind)], *_flags(service.flags)]
    said += ["non-routable"] * (service.kind == Kind.CLUSTER_IP) + ["maglev"] * (service.algorithm == Algorithm.MAGLEV)
    said += [f"sessionAffinity {service.affinity_seconds} s"] if service.affinity_seconds else []
    return ", ".join(said)


def _flags(flags: int) -> list[str]:
    return [name for flag, name in _FLAGS.items() if flags & flag]
