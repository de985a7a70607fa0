"""A cluster's folder, a real etcd with its certificates, and API servers on it, here or in a process to be killed."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import AsyncExitStack, aclosing, asynccontextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Self

import processes
from etcd_flags import QUICK
from ports import free_port
from processes import PATIENCE

from certs.folder import initialise, load_authority
from certs.issue import issue
from certs.names import Leaf, cluster_leaves
from certs.pair import write_pair
from clustermesh.apiserver.server import Timing, run_folder
from clustermesh.errors import ClusterMeshError
from clustermesh.model import MAX_CLUSTERS
from clustermesh.standalone.context import Context, create
from clustermesh.store.auth import list_users
from clustermesh.store.client import EtcdClient
from clustermesh.store.follow import Changed, Deleted, Listed, follow
from clustermesh.store.local import LocalEtcd
from clustermesh.store.operations import KeyValue
from clustermesh.store.tls import Tls
from clustermesh.wire import keys

NO_AGENTS = Timing(records=0.0)
"""Nobody to wait for."""
_CHILD = """
import asyncio, pathlib, sys
from clustermesh.apiserver import run_folder
from clustermesh.apiserver.server import Timing
from clustermesh.standalone.context import load
asyncio.run(run_folder(load(pathlib.Path(sys.argv[1])), sys.argv[2], Timing(records=0.0)))
"""


class Bed:
    """A cluster, alpha if not said otherwise. `async with` it; everything it started has ended afterwards."""

    def __init__(self, folder: Path, name: str = "alpha", number: int = 1, most: int = MAX_CLUSTERS) -> None:
        self.context: Context = create(folder, name, number, f"https://127.0.0.1:{free_port()}", most)
        initialise(self.context.certs, cluster_leaves(name, ["127.0.0.1"]), datetime.now(UTC))
        self.http = f"127.0.0.1:{free_port()}"
        self.etcd = self.make_etcd("etcd")
        self._stack = AsyncExitStack()
        self.client = self.client_as("admin")

    async def __aenter__(self) -> Self:
        self._stack.push_async_exit(self.client)
        return self

    async def __aexit__(self, *_: object) -> None:
        try:
            await self._stack.aclose()
        finally:
            self.etcd.kill()

    def make_etcd(self, name: str) -> LocalEtcd:
        """An etcd at the cluster's endpoint with its data in the folder `name`; not started."""
        place, url = self.context.path / name, self.context.endpoint
        return LocalEtcd(place, [url], self.tls("server"), client_tls=self.tls("admin"), flags=QUICK)

    def tls(self, name: str) -> Tls:
        return Tls(self.context.ca, self.context.certificate(name), self.context.key(name))

    def client_as(self, name: str, common_name: str | None = None) -> EtcdClient:
        """A client with the certificate `name`, issued for `common_name` where that is given."""
        if common_name is not None:
            authority = load_authority(self.context.certs, datetime.now(UTC))
            write_pair(self.context.certs, name, issue(authority, Leaf(common_name), datetime.now(UTC)))
        return EtcdClient([self.context.endpoint], self.tls(name))

    def write(self, name: str, text: str) -> None:
        """A manifest, swapped in as a careful writer does."""
        path = self.context.manifests / name
        temporary = path.with_name(f".{name}")
        temporary.write_text(text)
        temporary.rename(path)

    @asynccontextmanager
    async def running(self, timing: Timing | None = None) -> AsyncIterator[None]:
        """An API server in this process, stopped as by SIGTERM."""
        async with processes.serving(run_folder(self.context, self.http, timing or NO_AGENTS)):
            yield

    @asynccontextmanager
    async def child(self) -> AsyncIterator[asyncio.subprocess.Process]:
        """An API server in a process of its own, killed at the end if it still runs."""
        argv = (sys.executable, "-c", _CHILD, self.context.path, self.http)
        async with processes.child(*argv) as self._child:
            yield self._child

    async def kill_child(self) -> None:
        """The API server that `child` started last."""
        await processes.kill(self._child)

    async def all(self) -> dict[bytes, KeyValue]:
        """All but who leads, and what that one says of itself."""
        found = {kv.key: kv for kv in (await self.client.range(b"")).kvs}
        return {key: kv for key, kv in found.items() if not key.startswith((keys.API_SERVER_LEADERS, keys.API_SERVER))}

    async def data(self) -> dict[bytes, bytes]:
        """Everything but the texts that hold a time."""
        timed = (keys.HEARTBEAT, keys.SYNCED, keys.LOCAL_SERVICES_SYNCED, keys.CHANGES)
        return {key: kv.value for key, kv in (await self.all()).items() if not key.startswith(timed)}

    async def until(self, holds: Callable[[dict[bytes, KeyValue]], object]) -> dict[bytes, KeyValue]:
        """Everything in etcd, once `holds` says so."""
        async with asyncio.timeout(PATIENCE):
            while not holds(found := await self._all_or_nothing()):
                await asyncio.sleep(0.02)
        return found

    async def until_synced(self) -> dict[bytes, KeyValue]:
        return await self.until(lambda found: keys.LOCAL_SERVICES_SYNCED in found)

    async def until_users(self, *names: str) -> None:
        """Until etcd's users are `names`."""
        async with asyncio.timeout(PATIENCE):
            while set(await list_users(self.client)) != set(names):
                await asyncio.sleep(0.02)

    async def _all_or_nothing(self) -> dict[bytes, KeyValue]:
        try:
            return await self.all()
        except ClusterMeshError:
            return {}

    @asynccontextmanager
    async def deletions(self) -> AsyncIterator[list[bytes]]:
        """The keys that a watcher of everything has seen go while the block lasted."""
        gone: list[bytes] = []
        revision, caught_up = 0, asyncio.Condition()

        async def watch() -> None:
            nonlocal revision
            async with aclosing(follow(self.client, b"")) as items:
                async for item in items:
                    if isinstance(item, Listed | Changed):
                        told = [event.key for event in item.events if isinstance(event, Deleted)]
                        gone.extend(key for key in told if not key.startswith(keys.API_SERVER_LEADERS))
                        async with caught_up:
                            revision = item.revision
                            caught_up.notify_all()

        async def until_revision(wanted: int) -> None:
            async with asyncio.timeout(PATIENCE), caught_up:
                await caught_up.wait_for(lambda: revision >= wanted)

        async with asyncio.TaskGroup() as group:
            task = group.create_task(watch())
            await until_revision(1)
            yield gone
            await until_revision(await self.client.put(b"marker", b""))
            task.cancel()


async def page(bed: Bed, path: str) -> tuple[int, str]:
    return await processes.page(bed.http, path)


async def until_page(bed: Bed, path: str, text: str) -> str:
    return await processes.until_page(bed.http, path, text)


def values(found: Mapping[bytes, KeyValue], prefix: bytes) -> dict[bytes, bytes]:
    return {key: kv.value for key, kv in found.items() if key.startswith(prefix)}


def manifests(*ips: str, name: str = "cart") -> str:
    """A global service whose backends are `ips`."""
    endpoints = "".join(f"\n- addresses: [{ip}]\n  conditions: {{ready: true}}" for ip in ips) or " []"
    return f"""\
apiVersion: v1
kind: Service
metadata: {{name: {name}, namespace: shop, annotations: {{service.cilium.io/global: "true"}}}}
spec: {{clusterIP: 10.96.0.1, selector: {{app: {name}}}, ports: [{{name: http, port: 80, targetPort: 8080}}]}}
---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {{name: {name}-1, namespace: shop, labels: {{kubernetes.io/service-name: {name}}}}}
addressType: IPv4
ports: [{{name: http, port: 8080}}]
endpoints:{endpoints}
"""


def export(name: str = "cart", created: str = "2026-01-01T00:00:00Z") -> str:
    """The service `name` is for every cluster by the MCS API."""
    return f"""\
apiVersion: multicluster.x-k8s.io/v1beta1
kind: ServiceExport
metadata: {{name: {name}, namespace: shop, creationTimestamp: "{created}"}}
"""


def pods(*names: str) -> str:
    """The node n1 and pods on it, each with labels of its own."""
    node = """\
apiVersion: v1
kind: Node
metadata: {name: n1}
spec: {podCIDR: 10.1.0.0/24}
status: {addresses: [{type: InternalIP, address: 192.0.2.1}]}
"""
    documents = [
        f"""\
apiVersion: v1
kind: Pod
metadata: {{name: {name}, namespace: shop, labels: {{app: {name}}}}}
spec: {{nodeName: n1}}
status: {{phase: Running, podIP: 10.1.0.{number}, conditions: [{{type: Ready, status: "True"}}]}}
"""
        for number, name in enumerate(names, start=10)
    ]
    return "---\n".join([node, *documents])
