"""Keeps what ClusterMeshPeers ask for, for as long as it runs: the shell around `plan` and `conditions`.

Each round reads the Secrets, writes what differs, and what became of each peer into its status: after each change, and
every 15 s, for what others change and agents report. What is not acted on is a problem of the API server, too. Where
the definition is not installed there is nothing to do.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Set
from contextlib import aclosing, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final, Never, TypeVar

from msgspec import Struct

from clustermesh.apiserver.problems import Say
from clustermesh.declared.conditions import SELDOM, SILENCE, Agents, Sight, is_due, look, status_of
from clustermesh.declared.peers import GROUP, KIND, PLURAL, VERSION, Declared, peers_of
from clustermesh.declared.plan import SECRETS, Held, Plan, Refusal, plan
from clustermesh.errors import ClusterMeshError, DecodeError, Refused, Unavailable
from clustermesh.joining import names
from clustermesh.joining.agent_pods import find_agent_pods
from clustermesh.joining.connect import change_users
from clustermesh.joining.objects import MANAGED_BY, MANAGER, Objects, Secret
from clustermesh.kube.access import Access
from clustermesh.kube.client import KubeClient
from clustermesh.kube.faults import NotServed
from clustermesh.kube.follow import Interrupted, follow
from clustermesh.mirror.agent_files import AgentAccess
from clustermesh.overview import read_mirror
from clustermesh.pace import Load
from clustermesh.standalone.users_file import remote_user, with_declared
from clustermesh.store.client import EtcdClient
from clustermesh.wire import RESOURCES, agent_report, keys

T = TypeVar("T")
PERIOD: Final = 15.0
"""Seconds between two rounds in which nothing is known to have changed."""
_GATHERING: Final = 0.2
"""Seconds in which changes come together."""
_READ, _TOLD = 200, 200
"""Secrets for `trust` that one round reads, and statuses that it writes: thousands keep nobody's change waiting."""
_UNREAD: Final = Unavailable("spec.trust.secretName: it was not read yet")
_SHOWN: Final = 20
"""Peers that are refused and named in /readyz."""
_AT_ONCE: Final = 100
"""Reports decoded before others have their turn."""
_REQUESTS: Final = Load(at_once=4, per_second=50)
_USERS: Final = Path(names.USERS)
_LOG: Final = logging.getLogger(__name__)


class Task(Struct, frozen=True):
    """Where to keep them: the ClusterMeshPeers and Secrets of `namespace`, for the cluster `own`. `agents` is how its
    agents reach its mirror's copies, None where it has no mirror."""

    access: Access
    namespace: str
    own: str
    agents: AgentAccess | None = None


async def keep_peers(task: Task, etcd: EtcdClient, say: Say, period: float = PERIOD) -> Never:
    """For ever; `etcd` is the own cluster's, where its agents say what they see, and `say` hears what is wrong. Raises
    nothing of ClusterMeshError."""
    async with KubeClient(task.access, load=_REQUESTS) as client, asyncio.TaskGroup() as tasks:
        keeper = Keeper(task, Objects(client, task.namespace), etcd, say)
        tasks.create_task(keeper.hear(client))
        tasks.create_task(keeper.run(period))
    raise AssertionError("neither ends")


class Keeper:
    """What its two tasks share."""

    def __init__(self, task: Task, objects: Objects, etcd: EtcdClient, say: Say) -> None:
        self._task, self._objects, self._etcd, self._say = task, objects, etcd, say
        self._peers = dict[str, Declared]()
        self._written = dict[str, float]()  # when each status was, by the monotonic clock
        self._trusts = dict[str, tuple[float, Mapping[str, bytes] | ClusterMeshError]]()  # and when each was read
        self._listed, self._changed = asyncio.Event(), asyncio.Event()
        self._unheard, self._failed = "", ""
        self._refused: Mapping[str, Refusal] = {}
        self._silent = dict[str, float]()  # nodes whose agents do not report, and since when, by the monotonic clock
        self._pods, self._asked = frozenset[str](), float("-inf")  # nodes that have one, as of then

    async def hear(self, client: KubeClient) -> None:
        """Follow them."""
        async with aclosing(follow(client, peers_of(self._task.namespace))) as items:
            async for item in items:
                if isinstance(item, Interrupted):
                    self._unheard = "" if isinstance(item.error, NotServed) else str(item.error)
                    self._tell_problems()
                    continue
                for name, declared in item.changes.items():
                    if declared is None:
                        self._peers.pop(name, None)
                    else:
                        self._peers[name] = declared
                self._unheard = ""
                self._listed.set()
                self._changed.set()

    async def run(self, period: float) -> None:
        """Round after round, from the first complete list on."""
        await self._listed.wait()
        while True:
            self._changed.clear()
            try:
                await self.round()
                self._failed = ""
            except ClusterMeshError as e:
                self._failed = str(e)
            self._tell_problems()
            with suppress(TimeoutError):
                async with asyncio.timeout(period):
                    await self._changed.wait()
            await asyncio.sleep(_GATHERING)

    def _tell_problems(self) -> None:
        unheard = f"they stay as they are: {self._unheard}" if self._unheard else ""
        found = [f"{KIND}s: {sentence}" for sentence in (unheard, self._failed) if sentence]
        refused = [f"{KIND} {name}: {each.sentence}" for name, each in sorted(self._refused.items())]
        if (more := len(refused) - _SHOWN) > 0:
            refused[_SHOWN:] = [f"{KIND}s: {more} more are refused: their conditions say why"]
        self._say([*found, *refused])

    async def round(self) -> None:
        """Once. Raises ClusterMeshError; what goes wrong with one peer is in its status."""
        peers = dict(self._peers)
        held = {secret: await self._held(secret) for secret in SECRETS}
        if not peers and not any(each.ours for each in held.values()):
            self._refused = {}
            await self._admit(frozenset(), frozenset())
            return
        trust = await self._trusted({each.trust for each in peers.values()} - {""})
        found = plan(peers.values(), trust, held, self._task.own, self._task.agents, datetime.now(UTC))
        judged = {name: each for name, each in peers.items() if trust.get(each.trust) is not _UNREAD}
        self._refused = {name: each for name, each in found.refused.items() if name in judged}
        fault = await self._write(found, held)
        await self._tell(judged, found.refused, fault)
        if len(judged) < len(peers):
            self._changed.set()
        if fault is not None:
            raise fault

    async def _write(self, found: Plan, held: Mapping[str, Held]) -> ClusterMeshError | None:
        """Why not all could be written."""
        try:
            for secret, data in found.steps(held):
                _LOG.info(
                    "Secret %s has %s now", secret, ", ".join(sorted(key for key in data if "." not in key)) or "no one"
                )
                force = held[secret].takes(data)
                document = _secret(secret, data, held[secret], pinned=force)
                await self._objects.apply("secrets", document, names.DECLARED_MANAGER, force=force)
            await self._admit(found.admitted, found.kept)
        except ClusterMeshError as e:
            return e
        return None

    async def _admit(self, admitted: Iterable[str], kept: Iterable[str]) -> None:
        wanted, staying = ({remote_user(name) for name in each} for each in (admitted, kept))
        await change_users(self._objects, lambda users: with_declared(users, _USERS, wanted, staying))

    async def _held(self, secret: str) -> Held:
        found = await self._objects.read("secrets", secret, Secret)
        if found is None:
            return Held()
        meta = found.metadata
        managed_by = (meta.labels or {}).get(MANAGED_BY, "")
        return Held(found.data or {}, found.applied_by(names.DECLARED_MANAGER), meta.resource_version, managed_by)

    async def _trusted(self, wanted: Set[str]) -> dict[str, Mapping[str, bytes] | ClusterMeshError]:
        """What each Secret held when it was read last: of many those are read again that were longest not, and beside
        them as many that could not be read."""
        known = {name: self._trusts.get(name, (float("-inf"), _UNREAD)) for name in wanted}
        order = sorted(known, key=lambda name: known[name][0])
        failed = [name for name in order if isinstance(known[name][1], ClusterMeshError)]
        for name in dict.fromkeys((*order[: _READ // 2], *failed[: _READ // 2])):
            known[name] = time.monotonic(), await self._trust(name)
        self._trusts = known
        return {name: found for name, (_, found) in known.items()}

    async def _trust(self, name: str) -> Mapping[str, bytes] | ClusterMeshError:
        """What the Secret holds, or what is wrong with reading it."""
        try:
            found = await self._objects.read("secrets", name, Secret)
        except ClusterMeshError as e:
            remedy = "name it in clustermesh.declaredPeers.secrets of the chart"
            return Refused(f"spec.trust.secretName: {name}: {e}; {remedy}") if isinstance(e, Refused) else e
        return (found.data or {}) if found else Refused(f"spec.trust.secretName: {name}: there is no such Secret")

    async def _tell(
        self, peers: Mapping[str, Declared], refused: Mapping[str, Refusal], fault: ClusterMeshError | None
    ) -> None:
        sights, agents = await self._look() if peers else ({}, Agents())
        faults, left = list[ClusterMeshError](), _TOLD
        for name, declared in sorted(peers.items(), key=lambda each: self._written.get(each[0], float("-inf"))):
            refusal = refused.get(name) or (
                Refusal("NotWritten", str(fault)) if fault and not declared.paused else None
            )
            status = status_of(declared, refusal, sights.get(name), agents, time.time())
            if is_due(declared.status, status, time.monotonic() - self._written.get(name, float("-inf"))):
                if not left:
                    if not faults:
                        self._changed.set()
                    break
                left -= 1
                self._written[name] = time.monotonic()
                try:
                    await self._write_status(declared, status)
                except ClusterMeshError as e:
                    faults.append(e)
        self._written = {name: at for name, at in self._written.items() if name in peers}
        if faults:
            raise faults[0]

    async def _write_status(self, declared: Declared, status: Mapping[str, Any]) -> None:
        document = {
            "apiVersion": f"{GROUP}/{VERSION}",
            "kind": KIND,
            "metadata": {"name": declared.name},
            "status": status,
        }
        with suppress(NotServed):  # deleted meanwhile
            await self._objects.apply(PLURAL, document, names.DECLARED_MANAGER, f"apis/{GROUP}/{VERSION}", "/status")

    async def _look(self) -> tuple[dict[str, Sight], Agents]:
        """What agents of Nodes report, and which Nodes have one: it reports, or has left its record, as each does that
        begins, and its pod is there. Where there never was one (Windows, a virtual node), or is none any more (the
        DaemonSet leaves the Node out by now), nobody waits for it; and a report may outlive its Node for a while."""
        prefix = RESOURCES["nodes"].prefix(self._task.own)
        nodes = {each.name for each in _parsed(keys.parse_node, await self._etcd.keys(prefix))}
        agents = set(_parsed(keys.parse_agent, await self._etcd.keys(keys.AGENTS)))
        sights, reporting = dict[str, Sight](), set[str]()
        for number, kv in enumerate((await self._etcd.range(keys.STATUSES)).kvs):
            with suppress(DecodeError):  # `clustermesh status` says so
                if (node := keys.parse_status(kv.key)) in nodes:
                    reporting.add(node)
                    look(sights, agent_report.decode(kv.value))
            if number % _AT_ONCE == 0:
                await asyncio.sleep(0)
        silent = await self._with_pods((nodes & agents) - reporting)
        now = time.monotonic()
        self._silent = {node: self._silent.get(node, now) for node in silent}
        lost = tuple(sorted(node for node, since in self._silent.items() if now >= since + SILENCE))
        return sights, Agents(len(reporting) + len(silent), lost, (await read_mirror(self._etcd)).behind)

    async def _with_pods(self, silent: Set[str]) -> Set[str]:
        """Those of the nodes that there is a pod of the agents for; all where the API does not say, or has no such pods
        at all. It is asked once a minute at most."""
        now = time.monotonic()
        if silent and now >= self._asked + SELDOM:
            self._asked, self._pods = now, frozenset()
            with suppress(ClusterMeshError):
                self._pods = await find_agent_pods(self._objects)
        return silent & self._pods if self._pods else silent


def _parsed(parse: Callable[[bytes], T], found: Iterable[bytes]) -> Iterator[T]:
    """Without somebody's stray keys."""
    for key in found:
        with suppress(DecodeError):
            yield parse(key)


def _secret(name: str, data: Mapping[str, bytes], held: Held, *, pinned: bool) -> dict[str, Any]:
    """`pinned` has it written only where nobody has changed the Secret since it was read."""
    meta: dict[str, Any] = {"name": name}
    if held.managed_by in ("", MANAGER):  # then `clustermesh uninstall` takes it away
        meta["labels"] = {MANAGED_BY: MANAGER}
    if pinned:
        meta["resourceVersion"] = held.version
    return {"apiVersion": "v1", "kind": "Secret", "metadata": meta, "data": dict(data)}
