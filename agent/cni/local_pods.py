"""The agent's side of CNI: pods attached to this node, each a veth pair, addresses, and a file that remembers both.

A pod's interface holds its addresses as a /32 and a /128 and sends everything to the router address of the family,
whose neighbour entry (as the pod's on the host) is permanent: there is no broadcast domain and no ARP.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Callable, Collection, Sequence
from contextlib import asynccontextmanager, suppress
from pathlib import Path

import msgspec

from agent.cni import veth
from agent.cni.endpoint import (
    EndpointRecord,
    EndpointRequest,
    as_attached,
    check_request,
    decode,
    decode_deletion,
    host_ifname,
    make_record,
)
from agent.cni.ipam import Ipam, Pools
from agent.plan.attached import AttachedPods
from certs.files import remove_durably, write_atomically
from clustermesh.address import Address
from clustermesh.errors import ClusterMeshError, Invalid, Refused, Unavailable


class Endpoints:
    """The pods of this node. Call `restore` first; `add`, `delete` and `check` may run at the same time.

    `attached` is told who comes and goes. `problems`: the name of a file that holds no endpoint -> a sentence; its
    address cannot be protected. `unwritable` says why nothing can be written there, "" where it can. `ownerless` are
    addresses that are routed to a pod here and in no file.
    """

    def __init__(self, state_dir: Path, pools: Sequence[Ipam], attached: AttachedPods, *, mtu: int) -> None:
        self._folder = state_dir / "endpoints"
        self._pools = Pools(pools)
        self._attached, self._mtu = attached, mtu
        self.records: dict[tuple[str, str], EndpointRecord] = {}  # by (container id, ifname)
        self._turns: dict[tuple[str, str], tuple[asyncio.Lock, int]] = {}
        self.problems: dict[str, str] = {}
        self.unwritable = ""
        self.ownerless: set[Address] = set()

    async def restore(self) -> None:
        """Take in the files of an earlier run, and forget pods that a reboot took.

        Addresses that the kernel routes to a pod stay taken even where the file is lost.
        """
        self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        for path in _entries(self._folder):
            try:
                await self._restore_one(path)
            except (ClusterMeshError, OSError) as e:
                self.problems[path.name] = str(e)
        known = {address.ip for record in self.records.values() for address in record.addresses}
        self.ownerless = await veth.routed_addresses() - known
        for ip in self.ownerless:
            with suppress(Invalid):  # of an earlier pod CIDR of this node
                self._pools.reserve(ip)
        self._attached.note_complete()
        await self.look_at_disk()

    async def _restore_one(self, path: Path) -> None:
        record = decode(path)
        if not os.path.exists(record.netns) and not await veth.is_attached(record.host_ifname):  # noqa: ASYNC240  # a stat
            remove_durably(path)
            return
        for address in record.addresses:
            self._pools.reserve(address.ip)
        self.records[record.container_id, record.ifname] = record
        self._attached.attached(as_attached(record))

    async def add(self, request: EndpointRequest) -> EndpointRecord:
        """Attach the pod; for a pod attached already, its record. Raises Refused, Unavailable or Invalid.

        The file is written before the kernel is touched: an address in use is never forgotten, whenever the agent dies.
        """
        check_request(request)
        key = (request.container_id, request.ifname)
        async with self._turn(key):
            known = self.records.get(key)
            if known is not None and known.netns == request.netns and not await veth.find_fault(known):
                return known
            held = () if known is None else (address.ip for address in known.addresses)
            record = make_record(request, self._pools.allocate(held), self._mtu)
            self.records[key] = record
            try:
                await self._on_disk(key, lambda path: write_atomically(path, msgspec.json.encode(record)))
                await veth.detach(record.host_ifname)
                await veth.attach(record)
            except ClusterMeshError:
                await self._forget(key, record.host_ifname)
                raise
            self._attached.attached(as_attached(record))
            return record

    async def delete(self, request: EndpointRequest) -> None:
        """Detach the pod and free its address. A pod nobody knows is cleaned up by its device's name."""
        check_request(request)
        key = (request.container_id, request.ifname)
        async with self._turn(key):
            await self._forget(key, host_ifname(*key))

    async def _forget(self, key: tuple[str, str], device: str) -> None:
        await veth.detach(device)  # first: while this fails the address stays taken
        await self._on_disk(key, remove_durably)
        record = self.records.pop(key, None)
        if record is not None:
            self._pools.release(address.ip for address in record.addresses)
        self._attached.detached(*key)

    async def _on_disk(self, key: tuple[str, str], work: Callable[[Path], None]) -> None:
        path = self._folder / f"{key[0]}:{key[1]}.json"
        try:
            await asyncio.to_thread(work, path)
        except OSError as e:
            self.unwritable = f"{self._folder}: {e.strerror or e}"
            raise Unavailable(f"endpoint file {path}: {e.strerror or e}") from e

    async def look_at_disk(self) -> None:
        """Whether pods can be written down: before the first one cannot."""
        try:
            await asyncio.to_thread(_try_to_write, self._folder / ".trial")
        except OSError as e:
            self.unwritable = f"{self._folder}: {e.strerror or e}"
        else:
            self.unwritable = ""

    async def release_ownerless(self) -> None:
        """The addresses of those that are gone by now: no file tells when."""
        if self.ownerless and (gone := self.ownerless - await veth.routed_addresses()):
            self.ownerless -= gone
            self._pools.release(gone)

    async def keep_only(self, valid: Collection[tuple[str, str]]) -> None:
        """Detach every pod that is not named by (container id, ifname) in `valid`."""
        for container_id, ifname in self.records.keys() - set(valid):
            await self.delete(EndpointRequest(container_id=container_id, ifname=ifname))

    async def check(self, request: EndpointRequest) -> EndpointRecord:
        """The pod's record, if kernel and record agree; else Refused, which says what is missing."""
        check_request(request)
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
                await self.delete(decode_deletion(path))
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


def _try_to_write(path: Path) -> None:
    """Raises OSError."""
    write_atomically(path, b"trial")
    remove_durably(path)
