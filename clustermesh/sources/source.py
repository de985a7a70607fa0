"""The port between what knows a cluster's objects and what publishes them. A folder and the Kubernetes API are it."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Mapping, Sequence, Set
from typing import Final, Protocol

from clustermesh.sources.snapshot import Change, Snapshot
from clustermesh.sources.table import Problem
from clustermesh.wire import RESOURCES

EVERYTHING: Final = frozenset(kind for kind, resource in RESOURCES.items() if resource.published)


class Source(Protocol):
    """Iterate `updates`, and read the rest between two of them."""

    @property
    def about(self) -> str:
        """Where the objects come from, and in which mode, in a few words."""

    @property
    def has_agents(self) -> bool:
        """False where the nodes run Cilium's agents, which know their own cluster from the Kubernetes API."""

    @property
    def snapshot(self) -> Snapshot:
        """What the cluster has, as far as is known."""

    @property
    def doubted(self) -> Set[str]:
        """The kinds of entries that something may speak for which could never be read since this process began: what
        was published of these, by another process, may be right."""

    @property
    def exports(self) -> bool | None:
        """Whether it exports services by the MCS API, be they none; None while that is not known."""

    @property
    def drift(self) -> Mapping[str, int]:
        """Objects that a comparison has found not as had been told, by kind. None where all is read again and again."""

    def problems(self) -> Sequence[Problem]:
        """Everything in the source that is not acted on."""

    def updates(self) -> AsyncGenerator[Change, None]:
        """First everything there is, then each change; without entries where only `problems` changed. For ever.

        What is large comes in portions, and is told when one comes that no `more` of it follows.
        """
