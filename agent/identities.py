"""The identities of this node's pods whose number does not follow from their labels, as another had it first.

An API server that has lost etcd and its own memory numbers the rest as before by itself; of these it learns from the
records of the agents, which keep what they know of their cluster meanwhile.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable
from typing import Final

from agent.plan.attached import AttachedPods
from clustermesh.address import Address, Prefix
from clustermesh.mesh.state import MeshState
from clustermesh.mesh.view import View
from clustermesh.model import Cluster, Identity
from clustermesh.wire.numbering import usual_number

_LOOK: Final = 5.0  # seconds between two looks, at the pods of this node only


class Unusual:
    """Call it for those of the pods that are `attached`, or were at the node when it was made."""

    def __init__(self, state: MeshState, cluster: Cluster, node: str, attached: AttachedPods) -> None:
        self._state, self._cluster, self._attached = state, cluster, attached
        self._before = addresses_on(state.views[cluster.name], node)

    def __call__(self) -> tuple[Identity, ...]:
        here = self._before.union(self._attached.addresses())
        return unusual(self._state.views[self._cluster.name], self._cluster, here)

    async def keep(self, remember: Callable[[tuple[Identity, ...]], None]) -> None:
        """Tell `remember` of them. Until cancelled."""
        while True:
            await asyncio.sleep(_LOOK)
            remember(self())


def unusual(view: View, cluster: Cluster, addresses: Iterable[Address]) -> tuple[Identity, ...]:
    """Those of the pods at `addresses`, by the `view` of their own `cluster`; by number."""
    numbers = {endpoint.identity for address in addresses if (endpoint := view.endpoints.get(address)) is not None}
    known = [view.identities[number] for number in sorted(numbers) if number in view.identities]
    return tuple(each for each in known if usual_number(each.labels, cluster) != each.id)


def addresses_on(view: View, name: str) -> set[Address]:
    """All pods of the node `name`, by what is known of the whole cluster: looks at every endpoint."""
    node = view.nodes.get(name)
    hosts = set() if node is None else {each.ip for each in node.addresses}
    return {ip for ip, each in view.endpoints.items() if not isinstance(ip, Prefix) and each.host_ip in hosts}
