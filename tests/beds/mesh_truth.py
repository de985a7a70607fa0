"""What is true of alpha in the mesh bed, and what two kinds of listeners make of what they hear."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import aclosing
from typing import Any

from state_sink import StateSink

from clustermesh.address import parse
from clustermesh.mesh.view import KINDS
from clustermesh.store.client import EtcdClient
from clustermesh.store.faults import Replaced
from clustermesh.store.follow import Deleted, Interrupted, follow
from clustermesh.wire import keys

Told = tuple[str, Any]
"""A kind, and the name of an entry of it."""


class Truth:
    """What alpha has. `gone` is whatever it had and took away."""

    def __init__(self) -> None:
        self.services: dict[str, frozenset[str]] = {}
        self.pods: dict[str, str] = {}
        self.gone: set[Told] = set()

    def view(self) -> dict[str, Any]:
        """As `Recorder.view`."""
        return {
            "nodes": {"n1"},
            "services": {("shop", name): frozenset(map(parse, ips)) for name, ips in self.services.items()},
            "pods": {parse(ip): name for name, ip in self.pods.items()},
        }


class Recorder(StateSink):
    """A reader's state, and everything that was ever taken out of it."""

    def __init__(self) -> None:
        super().__init__("beta", "alpha")
        self.taken: list[Told] = []

    def remove(self, cluster: str, kind: str, name: Any, revision: int) -> None:
        if name in self.names(cluster, kind):
            self.taken.append((kind, name))
        super().remove(cluster, kind, name, revision)

    def drain(self, cluster: str, kinds: Sequence[str] = KINDS) -> None:
        self.taken += [(kind, name) for kind in kinds for name in self.names(cluster, kind)]
        super().drain(cluster, kinds)

    def comparable(self) -> dict[str, Any]:
        """What is used of the peer, as `Truth.view` has it: a pod by the label of its identity."""
        self._settle()
        found, state = self.view(), self.state
        services = {name: state.service("alpha", name) for name in found.services}
        used = {ip: each for ip in found.endpoints if (each := state.endpoint(ip)) is not None}  # type: ignore[arg-type]
        return {
            "nodes": {name for name in found.nodes if state.node("alpha", name) is not None},
            "services": {name: frozenset(each.backends) for name, each in services.items()},
            "pods": {ip: _app(found.identities.get(each.identity)) for ip, each in used.items()},
        }

    def _settle(self) -> None:
        """Decide on what waits to be decided on, as whoever plans with it does."""
        while self.state.judge():
            pass
        self.state.take_nodes()
        for entry in (*self.state.take_addresses(), *self.state.take_services()):
            self.state.rule(entry)


def key_of(kind: str, name: Any) -> bytes:
    return keys.service_key("alpha", *name) if kind == "services" else keys.endpoint_key(name)


def _app(identity: Any) -> str:
    labels = () if identity is None else identity.labels
    return next((label.value for label in labels if label.key == "app"), "?")


class Raw:
    """What a plain watcher of `prefix`, a Cilium of an older day, hears go: but for what an emptied etcd has not."""

    def __init__(self, client: EtcdClient, prefix: bytes) -> None:
        self.gone: list[bytes] = []
        self._client, self._prefix = client, prefix

    async def run(self) -> None:
        emptied = False
        async with aclosing(follow(self._client, self._prefix)) as items:
            async for item in items:
                if isinstance(item, Interrupted):
                    emptied = emptied or isinstance(item.error, Replaced)
                elif emptied:
                    emptied = False
                else:
                    self.gone += [event.key for event in item.events if isinstance(event, Deleted)]
