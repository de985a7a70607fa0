"""A mirror between real etcds: the own one, and peers whose API server is played by the test."""

from __future__ import annotations

import asyncio
import random
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import processes
from ports import free_port
from processes import PATIENCE

from clustermesh.address import parse, parse_prefix
from clustermesh.errors import ClusterMeshError
from clustermesh.mirror.agent_files import AgentAccess
from clustermesh.mirror.server import Timing, run
from clustermesh.model import (
    Cluster,
    ClusterConfig,
    Endpoint,
    Identity,
    Label,
    Node,
    NodeAddress,
    Port,
    Protocol,
    Service,
)
from clustermesh.own_cluster import Settings
from clustermesh.store.client import EtcdClient
from clustermesh.store.local import LocalEtcd
from clustermesh.store.operations import KeyValue
from clustermesh.wire import RESOURCES, cluster_config, endpoint, identity, keys, node, service

QUICK = Timing(own=0.0, wait=0.5, settle=3.0)
TABLES = ("nodes", "identities", "endpoints", "services")
_CHILD = """
import asyncio, pathlib, sys
from clustermesh.own_cluster import Settings
from clustermesh.mirror.server import Timing, run
from clustermesh.model import Cluster
settings = Settings(cluster=Cluster(name="alpha", id=1), endpoints=(sys.argv[1],))
asyncio.run(run(settings, pathlib.Path(sys.argv[2]), [sys.argv[3]], Timing(own=0.0, wait=0.5, settle=3.0)))
"""


class Peer:
    """Cluster `name`, its etcd, and what its API server would write there."""

    def __init__(self, name: str, number: int, etcd: LocalEtcd, client: EtcdClient) -> None:
        self.name, self.id, self.etcd, self.client = name, number, etcd, client

    def config(self, number: int = 0) -> ClusterConfig:
        return ClusterConfig(
            id=number or self.id, synced_canaries=True, max_connected_clusters=255, service_exports_enabled=False
        )

    async def write_config(self, config: ClusterConfig) -> None:
        await self.client.put(keys.cluster_config_key(self.name), cluster_config.encode(config))

    async def publish(self, lease: int = 0) -> None:
        """One of each kind; canaries last."""
        await self.write_config(self.config())
        await self.put_node(f"{self.name}1", f"192.0.2.{self.id}", f"10.{self.id}.1.0/24", lease)
        labels = (Label(source="k8s", key="io.cilium.k8s.policy.cluster", value=self.name),)
        number = self.id << 16
        await self.client.put(keys.identity_key(number), identity.encode(Identity(id=number, labels=labels)), lease)
        await self.put_endpoint(f"10.{self.id}.1.5", lease)
        await self.put_service("web", f"10.{self.id}.1.5", lease=lease)
        for kind in TABLES:
            await self.client.put(RESOURCES[kind].canary(self.name) or b"", b"2026-01-01T00:00:00Z", lease)

    async def put_node(self, name: str, address: str, pod_cidr: str, lease: int = 0) -> None:
        addresses = (NodeAddress(type="InternalIP", ip=parse(address)),)
        made = Node(
            cluster=self.name,
            cluster_id=self.id,
            name=name,
            addresses=addresses,
            pod_cidrs=(parse_prefix(pod_cidr),),
        )
        await self.client.put(keys.node_key(self.name, name), node.encode(made), lease)

    async def put_endpoint(self, ip: str, lease: int = 0) -> None:
        made = Endpoint(ip=parse(ip), identity=self.id << 16)
        await self.client.put(keys.endpoint_key(parse(ip)), endpoint.encode(made), lease)

    async def put_service(self, name: str, *ips: str, lease: int = 0) -> bytes:
        """With a field that nobody here knows: bytes are bytes."""
        ports = {"http": Port(protocol=Protocol.TCP, port=80)}
        made = Service(
            cluster=self.name,
            cluster_id=self.id,
            namespace="shop",
            name=name,
            backends=dict.fromkeys(map(parse, ips), ports),
        )
        value = service.encode(made)[:-1] + b', "unknown": 1 }'
        await self.client.put(self.service_key(name), value, lease)
        return value

    def service_key(self, name: str) -> bytes:
        return keys.service_key(self.name, "shop", name)

    def cached(self, key: bytes) -> bytes:
        return keys.cache_key(key, self.name)

    async def beat(self) -> None:
        """For as long as it is not cancelled."""
        while True:
            with suppress(ClusterMeshError):
                await self.client.put(keys.HEARTBEAT, f"{random.random()}".encode())
            await asyncio.sleep(0.1)

    async def copy(self) -> dict[bytes, bytes]:
        """What a mirror makes of all this."""
        state = {kv.key: kv.value for kv in (await self.client.range(keys.STATE)).kvs}
        return {self.cached(key): value for key, value in state.items()}


class MirrorBed:
    """Cluster alpha with a mirror over `folder`. `async with` it."""

    def __init__(self, tmp_path: Path, make_etcd: Callable[..., LocalEtcd], make_client: Callable[..., EtcdClient]):
        self.folder = tmp_path / "peers"
        self.folder.mkdir()
        self._make_etcd, self._make_client = make_etcd, make_client
        self.etcd = make_etcd("own")
        self.client = make_client(self.etcd)
        self.http = f"127.0.0.1:{free_port()}"
        self.settings = Settings(cluster=Cluster(name="alpha", id=1), endpoints=(self.etcd.endpoints[0],))

    async def peer(self, name: str = "beta", number: int = 2, *, connected: bool = True) -> Peer:
        """Started, published, connected."""
        etcd = self._make_etcd(name)
        await etcd.start()
        peer = Peer(name, number, etcd, self._make_client(etcd))
        await peer.publish()
        if connected:
            self.connect(peer)
        return peer

    def connect(self, peer: Peer, folder: Path | None = None, at: str = "") -> None:
        """In the `folder` of another mirror, where that is given; `at` another place than where it is."""
        folder = folder or self.folder
        temporary = folder / f".{peer.name}"
        temporary.write_text(f"endpoints:\n- {at or peer.etcd.endpoints[0]}\n")
        temporary.rename(folder / peer.name)

    def disconnect(self, peer: Peer) -> None:
        (self.folder / peer.name).unlink()

    @asynccontextmanager
    async def running(self, timing: Timing = QUICK, access: AgentAccess | None = None) -> AsyncIterator[None]:
        """A mirror in this process, stopped as by SIGTERM."""
        async with processes.serving(run(self.settings, self.folder, [self.http], timing, access)):
            yield

    @asynccontextmanager
    async def child(self, folder: Path | None = None) -> AsyncIterator[asyncio.subprocess.Process]:
        argv = (sys.executable, "-c", _CHILD, self.settings.endpoints[0], folder or self.folder, self.http)
        async with processes.child(*argv) as process:
            yield process

    async def all(self) -> dict[bytes, KeyValue]:
        """All but who leads."""
        try:
            found = (await self.client.range(b"cilium/")).kvs
        except ClusterMeshError:
            return {}
        return {kv.key: kv for kv in found if not kv.key.startswith(keys.KVSTOREMESH_LOCK)}

    async def until(self, holds: Callable[[dict[bytes, KeyValue]], object]) -> dict[bytes, KeyValue]:
        async with asyncio.timeout(PATIENCE):
            while not holds(found := await self.all()):
                await asyncio.sleep(0.02)
        return found

    async def until_cached(self, peer: Peer, patience: float = PATIENCE) -> dict[bytes, KeyValue]:
        """Until everything of `peer` is there, canaries and all."""
        async with asyncio.timeout(patience):
            while True:
                wanted, found = await peer.copy(), await self.all()
                held = {key: kv.value for key, kv in found.items() if f"/v1/{peer.name}/".encode() in key}
                if held == wanted and len([k for k in found if k.startswith(keys.canary_prefix(peer.name))]) == 6:
                    return found
                await asyncio.sleep(0.02)

    async def until_page(self, path: str, text: str) -> str:
        return await processes.until_page(self.http, path, text)


@asynccontextmanager
async def beating(*peers: Peer) -> AsyncIterator[None]:
    """Their API servers live."""
    async with asyncio.TaskGroup() as tasks, AsyncExitStack() as stack:
        for peer in peers:
            task: asyncio.Task[Any] = tasks.create_task(peer.beat())
            stack.callback(task.cancel)
        yield
