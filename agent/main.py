"""The agent's wiring: what is made, in which order, and which loops run until it is told to stop.

    own etcd ─┐ ClusterReader ─> AgentSink ─> MeshState ─> Domains: plan ─> trackers ─> targets ─> kernel
    peers    ─┘ (one each)                                    ^ CNI

Stopping, killed or asked, undoes nothing: programs, maps, routes and WireGuard go on, and the next agent adopts them.
"""

from __future__ import annotations

import asyncio
import logging
import signal
import sys
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager, nullcontext, suppress
from typing import Final

from prometheus_client import REGISTRY

from agent import api, report
from agent.bpf.bpffs import ensure_bpffs
from agent.bpf.loader import Datapath
from agent.bpf.probe import Feature, probe
from agent.cni.methods import Pods
from agent.domains.domains import Domains
from agent.domains.tables import ThisNode, open_targets
from agent.memory import be_frugal, keep_what_is_there
from agent.metrics import StatusCollector
from agent.options import Options, parse
from agent.propagation import Propagation
from agent.registration import Registration
from agent.saving import keep_saved
from agent.sink import AgentSink
from agent.status import Status
from agent.surroundings import Surroundings
from agent.underlay import UnderlaySetup
from agent.wireguard import keys as wireguard_keys
from agent.wireguard.device import open_device
from clustermesh.errors import ClusterMeshError, Invalid, Refused, first_of, sentence
from clustermesh.health import serve_health
from clustermesh.mesh import last_good
from clustermesh.mesh.messages import Terms
from clustermesh.mesh.peer_files import PeerFile, read_peers
from clustermesh.mesh.peers import Peers, restore
from clustermesh.mesh.reader import ClusterReader
from clustermesh.mesh.state import MeshState
from clustermesh.mesh.tables import own_tables, peer_tables
from clustermesh.model import AgentRecord, ClusterConfig
from clustermesh.standalone import context as contexts
from clustermesh.standalone.context import Context
from clustermesh.store.client import EtcdClient
from clustermesh.store.tls import Tls

_PINS: Final = "clustermesh"  # the folder of the bpf filesystem

_log = logging.getLogger(__name__)


def main() -> None:
    """`clustermesh agent` and `python -m agent`. Exit codes: 0 stopped, 1 failed, 2 wrong usage or input."""
    be_frugal()
    options = parse()
    error: BaseException | None = None
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    try:
        asyncio.run(_until_stopped(options))
    except* (ClusterMeshError, OSError) as group:
        error = first_of(group)
    if error is not None:
        print(f"error: {sentence(error)}", file=sys.stderr)
        sys.exit(2 if isinstance(error, Invalid) else 1)


async def _until_stopped(options: Options) -> None:
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    agent = asyncio.create_task(run(options))
    stopped = asyncio.create_task(stop.wait())
    await asyncio.wait({agent, stopped}, return_when=asyncio.FIRST_COMPLETED)
    stopped.cancel()
    if not agent.done():
        agent.cancel()
    with suppress(asyncio.CancelledError):
        await agent


async def run(options: Options) -> None:
    """Run the agent until cancelled. Raises Refused or Unavailable where this node cannot run one at all."""
    context = contexts.load(options.context)
    with api.alone(options.run_dir, options.state_dir):
        private_key = wireguard_keys.load_or_create(options.state_dir / "wireguard.key")
        features = _check_features(options)
        with api.alone_over(options.bpffs / _PINS):
            async with _this_node(options, private_key, features) as making:
                tls = Tls(context.ca, context.certificate("local"), context.key("local"))
                async with EtcdClient([context.endpoint], tls) as etcd:
                    await _work(options, context, etcd, making)


def _check_features(options: Options) -> list[Feature]:
    """What this kernel has, found out by trying."""
    ensure_bpffs(options.bpffs)
    return check_needed(probe(options.bpffs))


def check_needed(features: list[Feature]) -> list[Feature]:
    """Refused, with what to do, where something is missing without which there is no datapath."""
    lacking = [each for each in features if each.needed and not each.present]
    if first := [each for each in lacking if each.name == "bpf"]:
        lacking = first  # without it nothing else was tried
    if lacking:
        raise Refused("; ".join(f"{each.sentence} ({each.remedy})" for each in lacking))
    return features


@asynccontextmanager
async def _this_node(
    options: Options, private_key: bytes, features: Sequence[Feature]
) -> AsyncIterator[asyncio.Task[ThisNode]]:
    """Being made: while the kernel verifies the programs, what was kept is restored. Let go of after the block."""
    making = asyncio.create_task(_make_node(options, private_key, features))
    try:
        yield making
    finally:
        with suppress(Exception):  # it failed: the block knows, or ended before that mattered
            (await making).datapath.close()


async def _make_node(options: Options, private_key: bytes, features: Sequence[Feature]) -> ThisNode:
    device = await open_device(options.device, log=options.state_dir / "wireguard-go.log")
    public_key = wireguard_keys.public_key(private_key)
    datapath = await asyncio.to_thread(Datapath.open, None, options.bpffs / _PINS)
    underlay = UnderlaySetup(datapath, device, private_key, options.port)
    return ThisNode(datapath, device, underlay, public_key, features)


async def _work(options: Options, context: Context, etcd: EtcdClient, making: asyncio.Task[ThisNode]) -> None:
    state, propagation = MeshState(context.name), Propagation()
    sink = AgentSink(state, propagation)
    own = ClusterReader(
        context.name,
        sink,
        lambda: nullcontext(etcd),
        own_tables,
        _expect(context),
        Terms(max_clusters=context.cluster.max_clusters),
    )
    around = Surroundings(
        context.name,
        context.endpoint,
        lambda: dict(peers.files) if peers.synced_once else read_peers(context.peers, context.name).peers,
        options.device,
    )
    peers = Peers(context.peers, context.cluster, sink, _connect_peer, peer_tables, options.last_good, state.authorize)
    peers.on_files = around.look_again  # the etcds they name are lifelines, too
    ground = await around.read()
    state.stand_on(ground.without_peers(context.name))
    state.restoring = True
    if (kept := last_good.load(options.last_good, context.name)) is not None:
        await restore(sink, context.name, kept)
        own.restored(kept.config)
    state.stand_on(ground)  # what stood before stands: a peer's etcd that is elsewhere now takes nothing from it
    node = await asyncio.shield(making)  # cancelled, it would leave a thread that nobody waits for
    domains = Domains(options, state, propagation, node, open_targets(node.datapath, node.device, node.public_key))
    pods = Pods(options, domains.tunnels, domains.attached_pods)
    record = AgentRecord(node=options.node, wireguard_public_key=node.public_key, boot_id=report.boot_id())
    registration = Registration(record)
    status = Status(options, state, domains, own, peers, sink, pods)
    status.rival = registration.rival
    REGISTRY.register(StatusCollector(status))
    domains.on_ready = keep_what_is_there
    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(around.keep(state.stand_on, ground))
        tasks.create_task(_read_own(own, peers, state))
        tasks.create_task(peers.run())
        tasks.create_task(domains.run(own, peers))
        tasks.create_task(pods.run())
        tasks.create_task(api.serve(options.socket, status.methods()))
        tasks.create_task(registration.keep(etcd, domains.tunnels.prepared, status.nodes))
        tasks.create_task(report.keep_logged(lambda: [status.not_ready(), *map(str, status.problems())]))
        tasks.create_task(report.keep_reported(etcd, options.node, status.report))
        tasks.create_task(keep_saved(options.last_good, sink, state, own, peers))
        tasks.create_task(serve_health(options.metrics, REGISTRY, status.readiness))


async def _read_own(own: ClusterReader, peers: Peers, state: MeshState) -> None:
    """As the peers are read: once all that was kept is restored. Nothing that is read can be in before this went on."""
    await peers.looked.wait()
    state.restoring = False
    await own.run()


def _connect_peer(file: PeerFile) -> EtcdClient:
    tls = None if file.ca is None or file.cert is None or file.key is None else Tls(file.ca, file.cert, file.key)
    aliases = {host: addresses[0] for host, addresses in file.host_aliases.items() if addresses}
    return EtcdClient(file.endpoints, tls, aliases=aliases)


def _expect(context: Context) -> Callable[[str, ClusterConfig], None]:
    def admit(name: str, config: ClusterConfig) -> None:
        if config.id != context.id:
            _log.warning("cluster %s has id %d in etcd and %d in %s", name, config.id, context.id, context.path)

    return admit
