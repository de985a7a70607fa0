"""The addresses domain: who is at each address, for the ipcache. From the mesh, and from CNI for the pods here."""

from __future__ import annotations

from collections.abc import Collection

from agent.bpf.layouts import IpcacheValue, pack
from agent.domains.domain import Domain
from agent.domains.tables import Targets
from agent.plan.attached import AttachedPod, AttachedPods
from agent.plan.nodes import plan_endpoint
from clustermesh.address import Address
from clustermesh.mesh.state import MeshState
from clustermesh.model import Endpoint
from clustermesh.reconcile import Reconciler, Tracker

INIT = 5  # reserved identity: a pod whose own is not known yet


class Addresses(Domain[Address]):
    """A pod attached here is known from its CNI ADD on, before the API server and etcd have heard of it."""

    name = "addresses"

    def __init__(self, state: MeshState, targets: Targets, attached: AttachedPods) -> None:
        self.ipcache = Tracker[bytes, bytes]("ipcache", targets.ipcache)
        super().__init__(Reconciler(self.ipcache))
        self._state, self._attached = state, attached
        attached.on_change.append(self.wake)

    def take(self) -> Collection[Address]:
        return self._state.take_addresses() | self._attached.take()

    def plan(self, item: Address) -> None:
        self._state.rule(item)
        value = choose_entry(self._state.endpoint(item), self._attached.at(item))
        if value is None:
            self.ipcache.remove(item)
        else:
            self.ipcache.set(item, value)


def choose_entry(endpoint: Endpoint | None, pod: AttachedPod | None) -> bytes | None:
    """The entry of an address that etcd says is `endpoint`'s and CNI gave to `pod`, where they say something.

    What etcd says of another pod is of before: that one's address is this one's now.
    """
    if endpoint is not None and (pod is None or _is_of(endpoint, pod)):
        return plan_endpoint(endpoint)
    return None if pod is None else pack(IpcacheValue(INIT))


def _is_of(endpoint: Endpoint, pod: AttachedPod) -> bool:
    named = (endpoint.namespace, endpoint.pod_name)
    return not endpoint.pod_name or not pod.name or named == (pod.namespace, pod.name)
