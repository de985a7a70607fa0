"""The mesh state itself as what a reader tells."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from clustermesh.mesh.state import MeshState
from clustermesh.mesh.view import KINDS, View


class StateSink:
    """What the cluster `own` knows by its readers."""

    def __init__(self, own: str = "alpha", peer: str = "beta") -> None:
        self.state = MeshState(own)
        self.state.admit_peers()
        self.peer = peer

    def put(self, cluster: str, kind: str, name: Any, value: Any, revision: int) -> None:
        if kind != "stamps":
            self.state.put(cluster, kind, name, value)

    def remove(self, cluster: str, kind: str, name: Any, revision: int) -> None:
        self.state.remove(cluster, kind, name)

    def refuse(self, cluster: str, what: str, why: str) -> None:
        self.state.refuse(cluster, what, why)

    def count_unnamed(self, cluster: str, kind: str, number: int) -> None:
        self.state.count_unnamed(cluster, kind, number)

    def listed(self, cluster: str, kind: str, *, whole: bool = True) -> None:
        self.state.listed(cluster, kind, whole=whole)

    def accept(self, cluster: str, what: str) -> None:
        self.state.accept(cluster, what)

    def drain(self, cluster: str, kinds: Sequence[str] = KINDS) -> None:
        self.state.drain(cluster, kinds)

    def names(self, cluster: str, kind: str) -> set[Any]:
        return set() if kind == "stamps" else set(self.state.names(cluster, kind))

    def decide(self) -> None:
        """What an agent's domains do in turns: decide on what is dirty."""
        while self.state.judge():
            pass
        for item in (*self.state.take_addresses(), *self.state.take_services()):
            self.state.rule(item)

    def refused(self, cluster: str = "") -> dict[str, str]:
        return self.state.refusals(cluster or self.peer).named(1000)

    def view(self, cluster: str = "") -> View:
        return self.state.views.get(cluster or self.peer, View())
