"""The mesh state of an agent: where the readers of all clusters put what they read, with the clock of each change."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence, Set
from typing import Any, Final

from agent.propagation import Propagation
from clustermesh.mesh.state import MeshState
from clustermesh.mesh.view import KINDS
from clustermesh.model import LocalService, Service

_WITH_BACKENDS: Final = frozenset({"services", "local_services"})


class AgentState(MeshState):
    """A `clustermesh.mesh.reader.Sink`."""

    def __init__(self, own: str, propagation: Propagation) -> None:
        super().__init__(own)
        self.propagation = propagation
        self.unsaved: set[str] = set()  # clusters whose last good state on disk is old
        self.shrunk = asyncio.Event()  # something is gone that the last good state on disk still has
        self.unsavable: dict[str, str] = {}  # those that could not be saved, and why
        self.on_verdict.append(self.unsaved.add)  # another cluster's change may have let a node of this one in

    def put(self, cluster: str, kind: str, name: Any, value: Any, revision: int = 0) -> None:
        if kind == "stamps":
            for service, stamp in value.items() if revision else ():
                self.propagation.stamped((cluster, service), revision, stamp)
            return
        if kind in _WITH_BACKENDS and self._loses_one(cluster, kind, name, value):
            self.shrunk.set()
        super().put(cluster, kind, name, value)
        if revision:  # nobody stamps the own cluster's changes for us
            self.propagation.heard(cluster, kind, name, revision, stamped=cluster != self.own)
        self.unsaved.add(cluster)

    def remove(self, cluster: str, kind: str, name: Any, revision: int = 0) -> None:
        if kind != "stamps":
            super().remove(cluster, kind, name)
            self.propagation.gone(cluster, kind, name)
            self.unsaved.add(cluster)
            self.shrunk.set()

    def drain(self, cluster: str, kinds: Sequence[str] = KINDS) -> None:
        super().drain(cluster, kinds)
        self.propagation.forget(cluster)
        self.unsaved.add(cluster)
        self.shrunk.set()

    def _loses_one(self, cluster: str, kind: str, name: Any, value: Any) -> bool:
        """Whether a backend that the service had is not in `value`."""
        view = self.views.get(cluster)
        before = None if view is None else view.table(kind).get(name)
        return before is not None and not _backends(before).keys() <= _backends(value).keys()

    def names(self, cluster: str, kind: str) -> Set[Any]:
        return set() if kind == "stamps" else super().names(cluster, kind)


def _backends(service: LocalService | Service) -> Mapping[Any, Any]:
    return service.service.backends if isinstance(service, LocalService) else service.backends
