"""Where the readers of all clusters put what they read: the mesh state, and the clock of each change."""

from __future__ import annotations

from collections.abc import Sequence, Set
from typing import Any

from agent.propagation import Propagation
from clustermesh.mesh.state import MeshState
from clustermesh.mesh.view import KINDS


class AgentSink:
    """A `clustermesh.mesh.reader.Sink`."""

    def __init__(self, state: MeshState, propagation: Propagation) -> None:
        self.unsaved: set[str] = set()  # clusters whose last good state on disk is old
        self.unsavable: dict[str, str] = {}  # those that could not be saved, and why
        self._state, self.propagation = state, propagation
        state.on_verdict.append(self.unsaved.add)  # another cluster's change may have let a node of this one in

    def put(self, cluster: str, kind: str, name: Any, value: Any, revision: int) -> None:
        if kind == "stamps":
            for service, stamp in value.items() if revision else ():
                self.propagation.stamped((cluster, service), revision, stamp)
            return
        self._state.put(cluster, kind, name, value)
        if revision:
            own = cluster == self._state.own  # whose changes nobody stamps for us
            self.propagation.heard(cluster, kind, name, revision, stamped=not own)
        self.unsaved.add(cluster)

    def remove(self, cluster: str, kind: str, name: Any, revision: int) -> None:
        if kind == "stamps":
            return
        self._state.remove(cluster, kind, name)
        self.propagation.gone(cluster, kind, name)
        self.unsaved.add(cluster)

    def refuse(self, cluster: str, what: str, why: str) -> None:
        self._state.refuse(cluster, what, why)

    def accept(self, cluster: str, what: str) -> None:
        self._state.accept(cluster, what)

    def count_unnamed(self, cluster: str, kind: str, number: int) -> None:
        self._state.count_unnamed(cluster, kind, number)

    def listed(self, cluster: str, kind: str) -> None:
        self._state.listed(cluster, kind)

    def drain(self, cluster: str, kinds: Sequence[str] = KINDS) -> None:
        self._state.drain(cluster, kinds)
        self.propagation.forget(cluster)
        self.unsaved.add(cluster)

    def names(self, cluster: str, kind: str) -> Set[Any]:
        return set() if kind == "stamps" else self._state.names(cluster, kind)
