"""The agent's side of CNI: pods attached to this node, each a veth pair, addresses, and a file that remembers both.

A pod's interface holds its addresses as a /32 and a /128 and sends everything to the router address of the family,
whose neighbour entry (as the pod's on the host) is permanent: there is no broadcast domain and no ARP. Names and MAC
addresses follow from the container id, so whatever is left of a half-made pod is found again without any memory of it.
"""

from __future__ import annotations

import asyncio
import hashlib
import os
from collections.abc import AsyncIterator, Callable, Collection, Iterable, Sequence
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any, Final

import msgspec
from msgspec import Struct

from agent.cni import veth
from agent.cni.ipam import Ipam, PodAddress, Pools
from agent.plan.attached import AttachedPod, AttachedPods
from certs.files import remove_durably, write_atomically
from clustermesh.address import family_length, is_ipv4, parse, single, text
from clustermesh.errors import ClusterMeshError, DecodeError, Invalid, Refused, Unavailable

MAX_ID: Final = 200


class EndpointRequest(Struct, frozen=True, kw_only=True):
    """Parameters of cni_add, cni_del and cni_check. `netns` is the path of the pod's network namespace."""

    container_id: str
    ifname: str
    netns: str = ""
    pod_namespace: str = ""
    pod_name: str = ""


class EndpointRecord(Struct, frozen=True, kw_only=True):
    """A pod of this node, as its file remembers it. `mtu` is in bytes.

    `ip` and `gateway` are of IPv4, and "" where the pod has none: agents of before IPv6 read this file.
    """

    container_id: str
    ifname: str
    netns: str
    pod_namespace: str
    pod_name: str
    ip: str
    gateway: str
    mac: str
    host_ifname: str
    host_mac: str
    mtu: int
    ip6: str = ""
    gateway6: str = ""

    @property
    def addresses(self) -> tuple[PodAddress, ...]:
        """Of each family that the pod has. Raises Invalid for a file that somebody wrote in."""
        pairs = ((self.ip, self.gateway), (self.ip6, self.gateway6))
        return tuple(PodAddress(parse(ip), parse(gateway)) for ip, gateway in pairs if ip)

    def result(self) -> dict[str, Any]:
        """The answer to cni_add and cni_check. The first address stands outside of `ips` too, for older plugins."""
        ips = [
            {"ip": text(ip), "prefix_length": family_length(single(ip)), "gateway": text(gateway)}
            for ip, gateway in self.addresses
        ]
        return {**ips[0], "ips": ips, "mac": self.mac, "host_ifname": self.host_ifname, "mtu": self.mtu}


def _as_fields(addresses: Iterable[PodAddress]) -> dict[str, str]:
    """The inverse of `EndpointRecord.addresses`."""
    fields = {"ip": "", "gateway": ""}
    for ip, gateway in addresses:
        family = "" if is_ipv4(ip) else "6"
        fields |= {f"ip{family}": text(ip), f"gateway{family}": text(gateway)}
    return fields


def _as_attached(record: EndpointRecord) -> AttachedPod:
    return AttachedPod(
        container_id=record.container_id,
        ifname=record.ifname,
        addresses=tuple(address.ip for address in record.addresses),
        namespace=record.pod_namespace,
        name=record.pod_name,
    )


def host_ifname(container_id: str, ifname: str) -> str:
    """The host's end of the pod's veth pair: 15 characters, the most a device name has."""
    return f"lxc{_digest(container_id, ifname).hex()[:12]}"


def mac_addresses(container_id: str, ifname: str) -> tuple[str, str]:
    """The pod's and the host's MAC: unicast, locally administered."""
    digest = _digest(container_id, ifname)
    return "02:" + digest[8:13].hex(":"), "02:" + digest[16:21].hex(":")


def _digest(container_id: str, ifname: str) -> bytes:
    return hashlib.sha256(f"{container_id}:{ifname}".encode()).digest()


class Endpoints:
    """The pods of this node. Call `restore` first; `add`, `delete` and `check` may run at the same time.

    `attached` is told who comes and goes. `problems`: the name of a file that holds no endpoint -> a sentence; its
    address cannot be protected.
    """

    def __init__(self, state_dir: Path, pools: Sequence[Ipam], attached: AttachedPods, *, mtu: int) -> None:
        self._folder = state_dir / "endpoints"
        self._pools = Pools(pools)
        self._attached, self._mtu = attached, mtu
        self.records: dict[tuple[str, str], EndpointRecord] = {}  # by (container id, ifname)
        self._turns: dict[tuple[str, str], tuple[asyncio.Lock, int]] = {}
        self.problems: dict[str, str] = {}

    async def restore(self) -> None:
        """Take in the files of an earlier run, and forget pods that a reboot took.

        Addresses that the kernel routes to a pod stay taken even where the file is lost.
        """
        self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        for path in _entries(self._folder):
            try:
                await self._restore_one(path)
            except ClusterMeshError as e:
                self.problems[path.name] = str(e)
        known = {address.ip for record in self.records.values() for address in record.addresses}
        for ip in await veth.routed_addresses() - known:
            with suppress(Invalid):  # of an earlier pod CIDR of this node
                self._pools.reserve(ip)

    async def _restore_one(self, path: Path) -> None:
        record = _decode(path)
        if not os.path.exists(record.netns) and not await veth.is_attached(record.host_ifname):  # noqa: ASYNC240  # a stat
            remove_durably(path)
            return
        for address in record.addresses:
            self._pools.reserve(address.ip)
        self.records[record.container_id, record.ifname] = record
        self._attached.attached(_as_attached(record))

    async def add(self, request: EndpointRequest) -> EndpointRecord:
        """Attach the pod; for a pod attached already, its record. Raises Refused, Unavailable or Invalid.

        The file is written before the kernel is touched: an address in use is never forgotten, whenever the agent dies.
        """
        _check(request)
        key = (request.container_id, request.ifname)
        async with self._turn(key):
            known = self.records.get(key)
            if known is not None and known.netns == request.netns and not await veth.find_fault(known):
                return known
            record = self._make_record(request, known)
            self.records[key] = record
            try:
                await self._on_disk(key, lambda path: write_atomically(path, msgspec.json.encode(record)))
                await veth.detach(record.host_ifname)
                await veth.attach(record)
            except ClusterMeshError:
                await self._forget(key, record.host_ifname)
                raise
            self._attached.attached(_as_attached(record))
            return record

    def _make_record(self, request: EndpointRequest, known: EndpointRecord | None) -> EndpointRecord:
        mac, host_mac = mac_addresses(request.container_id, request.ifname)
        addresses = self._pools.allocate(() if known is None else (address.ip for address in known.addresses))
        return EndpointRecord(
            **msgspec.structs.asdict(request),
            **_as_fields(addresses),
            mac=mac,
            host_ifname=host_ifname(request.container_id, request.ifname),
            host_mac=host_mac,
            mtu=self._mtu,
        )

    async def delete(self, request: EndpointRequest) -> None:
        """Detach the pod and free its address. A pod nobody knows is cleaned up by its device's name."""
        _check(request)
        key = (request.container_id, request.ifname)
        async with self._turn(key):
            await self._forget(key, host_ifname(*key))

    async def _forget(self, key: tuple[str, str], device: str) -> None:
        await veth.detach(device)  # first: while this fails the address stays taken
        await self._on_disk(key, remove_durably)
        record = self.records.pop(key, None)
        if record is not None:
            self._pools.release(record.addresses)
        self._attached.detached(*key)

    async def _on_disk(self, key: tuple[str, str], work: Callable[[Path], None]) -> None:
        path = self._folder / f"{key[0]}:{key[1]}.json"
        try:
            await asyncio.to_thread(work, path)
        except OSError as e:
            raise Unavailable(f"endpoint file {path}: {e.strerror or e}") from e

    async def keep_only(self, valid: Collection[tuple[str, str]]) -> None:
        """Detach every pod that is not named by (container id, ifname) in `valid`."""
        for container_id, ifname in self.records.keys() - set(valid):
            await self.delete(EndpointRequest(container_id=container_id, ifname=ifname))

    async def check(self, request: EndpointRequest) -> EndpointRecord:
        """The pod's record, if kernel and record agree; else Refused, which says what is missing."""
        _check(request)
        record = self.records.get((request.container_id, request.ifname))
        if record is None:
            raise Refused(f"container {request.container_id} has no {request.ifname} here")
        fault = await veth.find_fault(record)
        if fault:
            raise Refused(f"container {request.container_id}: {fault}")
        return record

    async def drain(self, queue: Path) -> int:
        """Carry out the deletions left in folder `queue` while no agent listened; returns how many. What fails stays.

        Call it once the socket listens: the plugin writes a deletion down, then tries the socket once more.
        """
        done = 0
        for path in _entries(queue):
            try:
                await self.delete(_decode_deletion(path))
                path.unlink(missing_ok=True)
            except (ClusterMeshError, OSError) as e:
                self.problems[path.name] = str(e)
                continue
            self.problems.pop(path.name, None)
            done += 1
        return done

    @asynccontextmanager
    async def _turn(self, key: tuple[str, str]) -> AsyncIterator[None]:
        """One at a time for each pod. The lock goes with its last user, or every pod that ever was would leave one."""
        lock, users = self._turns.get(key) or (asyncio.Lock(), 0)
        self._turns[key] = (lock, users + 1)
        try:
            async with lock:
                yield
        finally:
            lock, users = self._turns.pop(key)
            if users > 1:
                self._turns[key] = (lock, users - 1)


def _entries(folder: Path) -> list[Path]:
    """Files of `folder`, without those that were never finished."""
    return sorted(folder.glob("[!.]*.json"))


def _check(request: EndpointRequest) -> None:
    """The two names become a file name."""
    for field, value in (("container_id", request.container_id), ("ifname", request.ifname)):
        if not value or len(value) > MAX_ID or "/" in value or value.startswith(".") or not value.isprintable():
            raise Invalid(field, value, "must be a name that can be part of a file name")


def _decode(path: Path) -> EndpointRecord:
    try:
        return msgspec.json.decode(path.read_bytes(), type=EndpointRecord)
    except (OSError, msgspec.DecodeError) as e:
        raise DecodeError("endpoint file", str(path), str(e)) from e


def _decode_deletion(path: Path) -> EndpointRequest:
    try:
        request = msgspec.json.decode(path.read_bytes(), type=EndpointRequest)
        _check(request)
    except (OSError, msgspec.DecodeError, Invalid) as e:
        raise DecodeError("queued deletion", str(path), str(e)) from e
    return request
