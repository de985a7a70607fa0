"""Two clusters on the loopback with real etcds and processes, and two readers that write down what they hear.

    alpha: its source ─> API server ─> etcd <── way (a proxy) ──┬── near: as an agent of beta reads alpha
                                                              └── mirror ─> beta's etcd <── far: as one reads the cache

`truth` is what the source says, kept apart from everything that is tested. `until_true` waits until both readers know
that and nothing else, and then no reader may ever have been told of the end of anything that did not end.
"""

from __future__ import annotations

import asyncio
import json
import os
import random
import signal
import sys
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Final, Self

import processes
from apiserver_bed import Bed, manifests
from clock import Clock
from etcd_flags import QUICK, QUICK_MEMBER
from mesh_child import BEAT, SETTLE
from mesh_sources import Folder, Source
from mesh_truth import Raw, Recorder, Truth, key_of
from mirror_bed import Peer
from msgspec.structs import replace
from ports import free_port
from tcp_proxy import TcpProxy

from certs.folder import initialise, load_authority
from certs.issue import Pair, issue
from certs.names import Leaf
from certs.pair import write_pair
from clustermesh.address import parse
from clustermesh.errors import ClusterMeshError
from clustermesh.mesh.peers import Peers
from clustermesh.mesh.session import Session, State
from clustermesh.mesh.shared_clients import client_of
from clustermesh.mesh.tables import peer_tables
from clustermesh.model import Cluster
from clustermesh.standalone.users_file import add_user
from clustermesh.store import endpoint
from clustermesh.store.client import EtcdClient
from clustermesh.store.local import LocalEtcd
from clustermesh.store.tls import Tls
from clustermesh.wire import keys, service

PATIENCE: Final = 120.0  # two connections in a row may have to be given up by whoever is read, and by who reads
BORN: Final = datetime.now(UTC) - timedelta(days=2 * 365)
"""When the authority of alpha was made: long enough ago for a leaf of then to be good no more."""
BETA: Final = Cluster(name="beta", id=2)
_SERVICES: Final = keys.STATE + b"services/"
_ENDPOINTS: Final = keys.STATE + b"ip/"
_CHILD: Final = Path(__file__).with_name("mesh_child.py")
_ROOT: Final = Path(__file__).parents[2]
_NODE: Final = """\
apiVersion: v1
kind: Node
metadata: {name: n1}
spec: {podCIDR: 10.1.0.0/24}
status: {addresses: [{type: InternalIP, address: 192.0.2.1}]}
"""
_POD: Final = """\
apiVersion: v1
kind: Pod
metadata: {{name: {name}, namespace: shop, labels: {{app: {name}}}}}
spec: {{nodeName: n1, containers: [{{name: main, image: none}}]}}
status: {{phase: Running, podIP: {ip}, conditions: [{{type: Ready, status: "True"}}]}}
"""


class MeshBed:
    """`async with` it: everything runs and the first truth is known. Everything has ended afterwards."""

    def __init__(
        self,
        folder: Path,
        *,
        flags: Sequence[str] = (),
        clock: Clock | None = None,
        apiserver: Mapping[str, Any] | None = None,
        members: int = 1,
        disks: Mapping[str, Path] | None = None,
        source: Source | None = None,
    ) -> None:
        self.folder, self.flags, self.clock = folder, [*QUICK, *flags], clock
        self.timing = {"records": 0.0, "heartbeat": BEAT, **(apiserver or {})}  # there are no agents
        initialise(folder / "alpha" / "certs", {}, BORN)
        self.alpha = Bed(folder / "alpha")
        self.source: Source = source or Folder(self.alpha)
        self.truth = Truth()
        self.own = LocalEtcd(folder / "beta" / "etcd", [f"http://127.0.0.1:{free_port()}"], flags=self.flags)
        self.beta = EtcdClient(self.own.endpoints, timeout=2.0)
        self.members = self._make_members(members) if members > 1 else [self.alpha.etcd]
        self.alpha.etcd.flags = self.flags
        for whose, place in (disks or {}).items():
            etcd = self.etcd_of(whose)[0]
            etcd.data_dir = place / "etcd"
            etcd.log.parent.mkdir(parents=True, exist_ok=True)
        self.processes: dict[str, asyncio.subprocess.Process] = {}
        self.readers: dict[str, Recorder] = {}
        self.peers: dict[str, Peers] = {}
        self._tasks: dict[str, asyncio.Task[None]] = {}
        self._stack = AsyncExitStack()

    async def __aenter__(self) -> Self:
        try:
            await self._begin()
        except BaseException:
            await self._stack.aclose()
            raise
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._stack.aclose()

    async def _begin(self) -> None:
        push = self._stack.push_async_exit
        push(self.alpha)
        for etcd in (*self.members, self.own):
            self._stack.callback(etcd.kill)
        push(self.beta)
        await asyncio.gather(*(etcd.start() for etcd in (*self.members, self.own)))
        ports = [endpoint.parse(etcd.endpoints[0]).port for etcd in self.members]
        self.ways = [await self._stack.enter_async_context(TcpProxy(port)) for port in ports]
        add_user(self.alpha.context.users_file, "remote-beta")
        self.alpha.client_as("beta", "remote-beta")  # issues the certificate
        self.source.apply("node", _NODE)
        self.publish("always", "10.1.0.250")
        self.run_pod("always", "10.1.0.250")
        self._write_peer("near", [f"https://127.0.0.1:{way.port}" for way in self.ways], self.alpha.tls("beta"))
        self._write_peer("far", self.own.endpoints)
        self._stack.push_async_callback(self._end_all)
        await self.start("apiserver")
        await self.start("mirror")
        for name in ("near", "far"):
            await self.read(name)
        await self.until_true()
        await self.listen()

    async def listen(self) -> None:
        """Begin to hear as plain watchers do."""
        self.raw = [Raw(self.alpha.client, keys.STATE), Raw(self.beta, keys.CACHE)]
        for number, raw in enumerate(self.raw):
            await self._run(f"raw {number}", raw.run())

    # -- the source ----------------------------------------------------------------------------------------------------

    def publish(self, name: str, *ips: str) -> None:
        """A global service of alpha."""
        self.source.apply(f"service-{name}", manifests(*ips, name=name))
        self.truth.services[name] = frozenset(ips)

    def withdraw(self, name: str) -> None:
        self.source.remove(f"service-{name}")
        del self.truth.services[name]
        self.truth.gone.add(("services", ("shop", name)))

    def run_pod(self, name: str, ip: str) -> None:
        self.source.apply(f"pod-{name}", _POD.format(name=name, ip=ip))
        self.truth.pods[name] = ip

    def end_pod(self, name: str) -> None:
        self.source.remove(f"pod-{name}")
        self.truth.gone.add(("endpoints", parse(self.truth.pods.pop(name))))

    def change(self, rng: random.Random, times: int = 5) -> None:
        """At random, but for what is always there; nothing while the source takes no change."""
        for _ in range(times if self.source.is_up else 0):
            number = rng.randrange(12)
            name = f"s{number}" if rng.random() < 0.5 else f"p{number}"
            if name in self.truth.services and rng.random() < 0.4:
                self.withdraw(name)
            elif name.startswith("s"):
                self.publish(name, *(f"10.1.0.{host}" for host in rng.sample(range(100, 200), rng.randrange(4))))
            elif name in self.truth.pods:
                self.end_pod(name)
            else:
                self.run_pod(name, f"10.1.0.{10 + number}")

    def certify(self, name: str, leaf: Leaf, when: datetime, authority: Pair | None = None) -> None:
        """Give `name` another certificate of alpha's authority, made at `when`."""
        certs = self.alpha.context.certs
        write_pair(certs, name, issue(authority or load_authority(certs, when), leaf, when))

    # -- processes and readers -----------------------------------------------------------------------------------------

    async def start(self, role: str) -> None:
        """The API server of alpha, or the mirror of beta."""
        folder = self.alpha.context.path if role == "apiserver" else self.folder / "near"
        told: dict[str, Any] = {"folder": str(folder), "http": f"127.0.0.1:{free_port()}"}
        etcds = self.members if role == "apiserver" else [self.own]
        told["endpoints"] = [each for etcd in etcds for each in etcd.endpoints]
        told |= {"timing": self.timing, **self.source.told()} if role == "apiserver" else {}
        argv = ["setpriv", "--pdeathsig", "KILL", "--", sys.executable, str(_CHILD), role, json.dumps(told)]
        environment = {
            "PATH": "/usr/sbin:/usr/bin:/sbin:/bin",
            "PYTHONPATH": str(_ROOT),
            **(self.clock.environment if self.clock else {}),
        }
        with (self.folder / f"{role}.log").open("ab") as log:
            self.processes[role] = await asyncio.create_subprocess_exec(
                *argv, cwd=_ROOT, env=environment, stdout=log, stderr=log
            )

    async def kill(self, role: str) -> None:
        await processes.kill(self.processes.pop(role))

    def signal(self, role: str, number: signal.Signals) -> None:
        self.processes[role].send_signal(number)

    async def read(self, name: str) -> None:
        """Start the reader `name` with nothing in mind."""
        sink = self.readers[name] = Recorder()
        keep = self.folder / f"{name}-kept"
        self.peers[name] = peers = Peers(
            self.folder / name, BETA, sink, client_of, peer_tables, keep, sink.state.authorize
        )
        peers.terms = replace(peers.terms, settle=SETTLE)
        await self._run(name, peers.run())

    async def _run(self, name: str, work: Any) -> None:
        """In place of what ran under that name."""
        await self._end(name)
        self._tasks[name] = asyncio.create_task(work)

    async def _end(self, name: str) -> None:
        if (task := self._tasks.pop(name, None)) is not None:
            task.cancel()
            await asyncio.wait([task])
            if not task.cancelled():
                task.result()

    async def _end_all(self) -> None:
        for role in list(self.processes):
            await self.kill(role)
        for name in list(self._tasks):
            await self._end(name)

    @property
    def way(self) -> TcpProxy:
        """That to the one member there is."""
        (way,) = self.ways
        return way

    def _make_members(self, number: int) -> list[LocalEtcd]:
        """An etcd of several, the first where alpha says that its etcd is; and a client of all for its admin."""
        peers = {f"m{each}": f"http://127.0.0.1:{free_port()}" for each in range(number)}
        together = ",".join(f"{name}={url}" for name, url in peers.items())
        made = []
        for name, url in peers.items():
            here = f"https://127.0.0.1:{free_port()}" if made else self.alpha.context.endpoint
            own = [f"--name={name}", f"--listen-peer-urls={url}", f"--initial-advertise-peer-urls={url}"]
            flags = [*QUICK_MEMBER, *own]
            flags += [f"--initial-cluster={together}", "--initial-cluster-token=members"]
            tls = self.alpha.tls
            made.append(LocalEtcd(self.folder / name, [here], tls("server"), client_tls=tls("admin"), flags=flags))
        self.alpha.client = EtcdClient([each for etcd in made for each in etcd.endpoints], self.alpha.tls("admin"))
        return made

    def _write_peer(self, folder: str, endpoints: Sequence[str], tls: Tls | None = None, name: str = "alpha") -> None:
        lines = ["endpoints:", *(f"- {each}" for each in endpoints)]
        if tls is not None:
            lines += [f"trusted-ca-file: {tls.ca}", f"cert-file: {tls.cert}", f"key-file: {tls.key}"]
        (self.folder / folder).mkdir(exist_ok=True)
        (self.folder / folder / name).write_text("\n".join(lines) + "\n")

    # -- what is known -------------------------------------------------------------------------------------------------

    def etcd_of(self, whose: str) -> tuple[LocalEtcd, EtcdClient]:
        """ "peers" for alpha's, "own" for beta's, each with a client that may do everything."""
        return {"peers": (self.alpha.etcd, self.alpha.client), "own": (self.own, self.beta)}[whose]

    def members_of(self, whose: str) -> list[LocalEtcd]:
        return self.members if whose == "peers" else [self.own]

    async def until_true(self) -> None:
        """Both readers know what is true, the copies are what they copy, and nothing was taken that was not gone."""
        await self.until_known()
        self.check_taken()

    async def until_known(self) -> None:
        """As `until_true`, whatever was taken on the way."""
        wanted = self.truth.view()
        await self.until(lambda: all(sink.comparable() == wanted for sink in self.readers.values()), self.difference)
        await self.until_copied()

    def difference(self) -> str:
        """For a person: what the readers know that is not so, or miss."""
        wanted, said = self.truth.view(), []
        for name, sink in self.readers.items():
            said.append(f"{name}: {self.session(name)}")
            found = sink.comparable()
            said += [f"  {kind}: {found[kind]} is not {wanted[kind]}" for kind in wanted if found[kind] != wanted[kind]]
        return "\n".join(said)

    def check_taken(self) -> None:
        for name, sink in self.readers.items():
            wrong = [each for each in sink.taken if each not in self.truth.gone]
            assert wrong == [], f"{name} was told that these are gone: {wrong}"

    def check_heard(self) -> None:
        """As `check_taken`, for who believes every deletion."""
        gone = {key_of(*each) for each in self.truth.gone}
        gone |= {keys.cache_key(key, "alpha") for key in gone}
        for raw in self.raw:
            assert [key for key in raw.gone if key not in gone] == []

    async def until_published(self) -> None:
        """What is true is in alpha's etcd."""
        wanted = self.truth.view()
        async with asyncio.timeout(PATIENCE):
            while await self._published() != (wanted["services"], wanted["pods"].keys()):
                await asyncio.sleep(0.02)

    async def beat(self) -> float:
        """When the API server says that it has beaten last, in seconds."""
        found = await self.alpha.client.get(keys.HEARTBEAT)
        assert found is not None
        return datetime.fromisoformat(found.value.decode()).timestamp()

    async def _published(self) -> tuple[dict[Any, frozenset[bytes]], set[Any]]:
        try:
            found = (await self.alpha.client.range(keys.STATE)).kvs
        except ClusterMeshError:
            return {}, set()
        services = [service.decode(kv.value) for kv in found if kv.key.startswith(_SERVICES)]
        pods = {keys.parse_endpoint(kv.key).place for kv in found if kv.key.startswith(_ENDPOINTS)}
        return {(each.namespace, each.name): frozenset(each.backends) for each in services}, pods

    async def until_copied(self) -> None:
        """The cache is what alpha's etcd has, byte for byte."""
        async with asyncio.timeout(PATIENCE):
            while not await self._is_copied():
                await asyncio.sleep(0.05)

    async def _is_copied(self) -> bool:
        try:
            state = (await self.alpha.client.range(keys.STATE)).kvs
            cache = (await self.beta.range(keys.CACHE)).kvs
        except ClusterMeshError:
            return False
        wanted = {keys.cache_key(kv.key, "alpha"): kv.value for kv in state}
        return wanted == {kv.key: kv.value for kv in cache if b"/v1/alpha/" in kv.key}

    async def until(self, holds: Callable[[], object], otherwise: Callable[[], str] = lambda: "") -> None:
        try:
            async with asyncio.timeout(PATIENCE):
                while not holds():
                    await asyncio.sleep(0.02)
        except TimeoutError:
            raise AssertionError(otherwise()) from None

    async def until_state(self, *states: State) -> None:
        """What both readers say of alpha is one of `states`."""
        await self.until(lambda: all(self.session(name).state in states for name in self.readers), self.difference)

    def session(self, reader: str, cluster: str = "alpha") -> Any:
        """What `reader` says of the cluster; that of one it has not heard of is Nobody's."""
        found = self.peers[reader].readers.get(cluster)
        return Session() if found is None else found.session

    async def another(self, name: str, number: int) -> Peer:
        """One more peer, whose API server the test plays; read by the mirror and by `near`."""
        etcd = LocalEtcd(self.folder / name / "etcd", [f"http://127.0.0.1:{free_port()}"], flags=QUICK)
        self._stack.callback(etcd.kill)
        await etcd.start()
        client = await self._stack.enter_async_context(EtcdClient(etcd.endpoints))
        self._write_peer("near", etcd.endpoints, name=name)
        return Peer(name, number, etcd, client)

    async def until_copied_of(self, peer: Peer) -> None:
        """The cache has what `peer` has."""
        async with asyncio.timeout(PATIENCE):
            while (
                not (await peer.copy()).items()
                <= {kv.key: kv.value for kv in (await self.beta.range(keys.CACHE)).kvs}.items()
            ):
                await asyncio.sleep(0.05)


@asynccontextmanager
async def frozen(pid: int | None) -> AsyncIterator[None]:
    """SIGSTOP until the block ends."""
    assert pid is not None
    os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGCONT)
