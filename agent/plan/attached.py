"""The pods attached to this node, as CNI told: known here before the API server and etcd have heard of them. Pure."""

from __future__ import annotations

from collections.abc import Callable, Collection

from msgspec import Struct

from clustermesh.address import Address


class AttachedPod(Struct, frozen=True, kw_only=True):
    """One interface of a pod of this node. `device` is the node's end of it."""

    container_id: str
    ifname: str
    addresses: tuple[Address, ...]
    device: str = ""
    namespace: str = ""
    name: str = ""


class AttachedPods:
    """Who is attached. Each of `on_change` is called when there is something to take, or `complete` is set: those that
    were attached before this agent began are known, too."""

    def __init__(self, *on_change: Callable[[], None]) -> None:
        self.on_change = list(on_change)
        self.complete = False
        self._pods: dict[tuple[str, str], AttachedPod] = {}  # by container id and name of the interface
        self._by_address: dict[Address, AttachedPod] = {}
        self._by_device: dict[str, AttachedPod] = {}
        self._dirty: set[Address] = set()
        self._dirty_devices: set[str] = set()

    def attached(self, pod: AttachedPod) -> None:
        """`pod` has its addresses now; what its interface had before it has no more."""
        key = (pod.container_id, pod.ifname)
        self.detached(*key)
        self._pods[key] = pod
        self._by_address |= dict.fromkeys(pod.addresses, pod)
        self._by_device[pod.device] = pod
        self._touch(pod)

    def detached(self, container_id: str, ifname: str) -> None:
        """The pod is gone from this node; one that never was is fine."""
        pod = self._pods.pop((container_id, ifname), None)
        if pod is None:
            return
        for address in pod.addresses:
            if self._by_address.get(address) is pod:
                del self._by_address[address]
        self._by_device.pop(pod.device, None)
        self._touch(pod)

    def note_complete(self) -> None:
        self.complete = True
        self._tell()

    def on(self, device: str) -> AttachedPod | None:
        """Whose packets come in by this device."""
        return self._by_device.get(device)

    def devices(self) -> Collection[str]:
        return self._by_device.keys()

    def at(self, address: Address) -> AttachedPod | None:
        return self._by_address.get(address)

    def addresses(self) -> Collection[Address]:
        """At which somebody is attached."""
        return self._by_address.keys()

    def take(self) -> set[Address]:
        """The addresses at which somebody came or went since the last call."""
        taken, self._dirty = self._dirty, set()
        return taken

    def take_devices(self) -> set[str]:
        """The devices by which somebody came or went since the last call."""
        taken, self._dirty_devices = self._dirty_devices, set()
        return taken

    def _touch(self, pod: AttachedPod) -> None:
        self._dirty.update(pod.addresses)
        self._dirty_devices.add(pod.device)
        self._tell()

    def _tell(self) -> None:
        for tell in self.on_change:
            tell()
