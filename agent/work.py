"""The agent's wiring: what is made, in which order, and which loops run until it is told to stop.

    own etcd ─┐ ClusterReader ─> AgentState ─> Domains: plan ─> trackers ─> targets ─> kernel
    peers    ─┘ (one each)                         ^ CNI

Stopping, killed or asked, undoes nothing: programs, maps, routes and WireGuard go on, and the next agent adopts them.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Sequence
from contextlib import nullcontext, suppress
from importlib import import_module
from pathlib import Path
from typing import Final

from msgspec.structs import replace

from agent import api, report
from agent.bpf.loader import Datapath
from agent.bpf.probe import Feature
from agent.cni.methods import Pods
from agent.domains.domains import Domains
from agent.domains.services import Services
from agent.domains.tables import ThisNode, open_targets
from agent.identities import Unusual
from agent.memory import keep_what_is_there
from agent.older import last_good_v1
from agent.options import Options
from agent.outdated import Outdated
from agent.own_cluster import own_cluster
from agent.pressure import Pressure
from agent.propagation import Propagation
from agent.registration import Registration
from agent.saving import keep_saved
from agent.state import AgentState
from agent.status import Status
from agent.surroundings import Surroundings
from agent.underlay import UnderlaySetup
from agent.wireguard import keys as wireguard_keys
from agent.wireguard.device import Device, open_device
from clustermesh.mesh.messages import Terms
from clustermesh.mesh.peer_files import read_peers
from clustermesh.mesh.peers import Peers, restore
from clustermesh.mesh.reader import ClusterReader
from clustermesh.mesh.shared_clients import client_of
from clustermesh.mesh.tables import own_tables, peer_tables
from clustermesh.model import AgentRecord, ClusterConfig
from clustermesh.own_cluster import Settings
from clustermesh.store.client import EtcdClient

_KEPT_FIRST: Final = 1.0  # seconds that the own cluster is not read for, at most
_KERNEL_FIRST: Final = 1.0  # seconds without an answer over HTTP, at most

_log = logging.getLogger(__name__)


async def work(
    options: Options,
    private_key: bytes,
    features: Sequence[Feature],
    opening: asyncio.Task[Datapath],
) -> None:
    """Keep this node's kernel in step with the mesh, over the datapath that is being opened. Never returns."""
    own, folder = own_cluster(options)
    log = options.state_dir / "wireguard-go.log"
    device = await open_device(options.device, log=log, starter=options.wireguard_starter)
    async with own.client() as etcd:
        await _work(options, own, folder, etcd, lambda: _make_node(options, private_key, features, device, opening))


async def _make_node(
    options: Options,
    private_key: bytes,
    features: Sequence[Feature],
    device: Device,
    opening: asyncio.Task[Datapath],
) -> ThisNode:
    datapath = await asyncio.shield(opening)  # cancelled, it would leave a thread that nobody waits for
    underlay = UnderlaySetup(datapath, device, private_key, options.port)
    return ThisNode(datapath, device, underlay, wireguard_keys.public_key(private_key), features)


async def _work(
    options: Options, settings: Settings, folder: Path, etcd: EtcdClient, make_node: Callable[[], Awaitable[ThisNode]]
) -> None:
    cluster = settings.cluster
    state = AgentState(cluster.name, Propagation())
    own = ClusterReader(
        cluster.name,
        state,
        lambda: nullcontext(etcd),
        own_tables,
        _expect(cluster.id),
        Terms(max_clusters=cluster.max_clusters),
    )
    around = Surroundings(
        cluster.name,
        settings.endpoints,
        lambda: dict(peers.files) if peers.synced_once else read_peers(folder, cluster.name).peers,
        options.device,
    )
    peers = Peers(folder, cluster, state, client_of, peer_tables, options.last_good, state.authorize)
    peers.terms = replace(peers.terms, cache_ttl=options.clustermesh_cache_ttl)
    peers.on_files = around.look_again  # the etcds they name are lifelines, too
    outdated = Outdated(options.pins / "outdated")
    peers.lost |= outdated.clusters()
    await _take_over(options.last_good)
    ground = await around.read()
    state.stand_on(ground.without_peers(cluster.name))
    state.set_restoring(True)
    if (kept := await peers.kept_of(cluster.name)) is not None:
        await restore(state, cluster.name, kept)
        own.restored(kept.config)
    state.stand_on(ground)  # what stood before stands: a peer's etcd that is elsewhere now takes nothing from it
    node = await make_node()
    domains = Domains(
        options, state, node, open_targets(node.datapath, node.device, node.public_key, options.xdp_modes)
    )
    pods = Pods(options, domains.tunnels, domains.devices, domains.attached_pods)
    unusual = Unusual(state, cluster, options.node, domains.attached_pods)
    record = AgentRecord(
        node=options.node,
        wireguard_public_key=node.public_key,
        boot_id=report.boot_id(),
        reads_shared=True,
        identities=unusual(),
    )
    registration = Registration(record)
    status = Status(options, state, domains, own, peers, pods)
    status.rival = registration.rival
    pressure = Pressure(node.datapath, domains.trackers)
    status.fills = pressure.fills
    ready = asyncio.Event()

    def note_ready() -> None:
        keep_what_is_there()
        ready.set()

    async def after_kept(keep: Callable[[], Awaitable[None]]) -> None:
        await _kept_first(own, domains.attached)
        await keep()

    domains.on_ready = note_ready
    around.tell_ways(domains.devices.take_ways)
    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(around.keep(state.stand_on, ground))
        tasks.create_task(_read_own(own, peers, state, domains.attached))
        tasks.create_task(peers.run())
        tasks.create_task(domains.run(own, peers))
        tasks.create_task(pods.run())
        tasks.create_task(api.serve(options.socket, status.methods()))
        tasks.create_task(after_kept(lambda: registration.keep(etcd, domains.tunnels.prepared, status.nodes)))
        tasks.create_task(unusual.keep(registration.remember))
        tasks.create_task(report.keep_logged(lambda: [status.not_ready(), *map(str, status.problems())]))
        tasks.create_task(after_kept(lambda: report.keep_reported(etcd, options.node, status.report)))
        tasks.create_task(keep_saved(options.last_good, state, own, peers, outdated))
        tasks.create_task(_once(ready, pressure.keep))
        tasks.create_task(_serve_http(options.metrics, status, ready, domains.services))


async def _take_over(folder: Path) -> None:
    """What an agent before this one has kept in its own form."""
    try:
        taken = await asyncio.to_thread(last_good_v1.take_over, folder)
    except OSError as e:  # on a disk that cannot be written each cluster is read anew
        _log.warning("what an older version of the agent has kept in %s cannot be taken over: %s", folder, e)
    else:
        if taken:
            _log.info("taken over from an older version of the agent: what it kept of %s", ", ".join(taken))


async def _read_own(own: ClusterReader, peers: Peers, state: AgentState, attached: asyncio.Event) -> None:
    """As the peers are read: once all that was kept is restored. Nothing that is read can be in before this went on."""
    await peers.looked.wait()
    state.set_restoring(False)
    await _kept_first(own, attached)
    await own.run()


async def _kept_first(own: ClusterReader, attached: asyncio.Event) -> None:
    """What was kept of the own cluster is programmed before its etcd is spoken to: to connect and to hear all of it
    again takes as long as that."""
    if own.session.complete:
        with suppress(TimeoutError):
            async with asyncio.timeout(_KEPT_FIRST):
                await attached.wait()


async def _once(happened: asyncio.Event, keep: Callable[[], Awaitable[None]]) -> None:
    await happened.wait()
    await keep()


async def _serve_http(metrics: str, status: Status, ready: asyncio.Event, services: Services) -> None:
    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(_serve_metrics(metrics, status, ready))
        tasks.create_task(_answer_health_checks(services))


async def _answer_health_checks(services: Services) -> None:
    """Once a service asks for it, which few do."""
    asked = asyncio.Event()
    services.on_health_check = asked.set
    await asked.wait()
    from agent.health_checks import HealthChecks

    checks = HealthChecks(services.health_checks, services.unanswered)
    services.on_health_check = checks.look
    await checks.keep()


async def _serve_metrics(address: str, status: Status, ready: asyncio.Event) -> None:
    """Once all is in the kernel, unless that takes long: the libraries for it are a tenth of what an agent imports."""
    with suppress(TimeoutError):
        async with asyncio.timeout(_KERNEL_FIRST):
            await ready.wait()
    await asyncio.to_thread(import_module, "agent.metrics")  # the loop goes on
    from agent import metrics

    await metrics.serve(address, status)


def _expect(own_id: int) -> Callable[[str, ClusterConfig], None]:
    def admit(name: str, config: ClusterConfig) -> None:
        if config.id != own_id:
            _log.warning("cluster %s has id %d in etcd, and this agent was told %d", name, config.id, own_id)

    return admit
