"""How a whole cluster stands in the mesh: what its agents report, put together. Only `read` does I/O."""

from __future__ import annotations

import asyncio
import time
from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence, Set
from typing import Any, Final, TypeVar

from msgspec import Struct

from clustermesh.errors import DecodeError, Invalid, Refused, Unavailable
from clustermesh.mesh.authority import Limits
from clustermesh.mesh.ownership import evidence, objection
from clustermesh.mesh.peer_files import spell_limits
from clustermesh.mesh.session import State
from clustermesh.model import Cluster
from clustermesh.standalone.context import Context
from clustermesh.store.client import EtcdClient
from clustermesh.store.tls import Tls
from clustermesh.wire import RESOURCES, agent_report, api_server_report, keys, mirror_report
from clustermesh.wire.agent_report import AgentReport, SeenCluster
from clustermesh.wire.api_server_report import TRIED_AGAIN, ApiServerReport
from clustermesh.wire.mirror_report import MirrorReport
from clustermesh.wire.timestamp import parse_time

T = TypeVar("T")
FIRST_ANSWER: Final = 1.25  # seconds; the client takes as long again to find out why there was none
_LATER_ANSWERS: Final = 3.0  # from an etcd that has answered
_TCP_SECONDS: Final = 1.0
COPIED: Final = "copied-bytes"
"""The limit of what a mirror copies."""
_SILENCE: Final = 75  # seconds; an API server beats every 60
_EACH: Final = 3  # nodes with the same fault, up to which each has a line
UNREADABLE: Final = AgentReport(problems=("its report in etcd cannot be read: run the same release everywhere",))

_REMEDIES: Final[Mapping[str, str]] = {
    State.CONNECTING: "is its etcd up, and can the node reach it?",
    State.SYNCING: "does its API server run?",
    State.STALE: "what was known of it is kept; is its etcd up, and can the node reach it?",
    State.EVICTED: "correct what it says, or disconnect it",
}


class ControlPlane(Struct, frozen=True, kw_only=True):
    """What is known of etcd and API server: `objection` where it is another cluster's, `alarms` are etcd's, `unacted`
    is what the API server does not act on, `source` where its objects come from, in which mode. `copied` is how many
    bytes a mirror has copied of each cluster, `behind` the state and error of those that it does not follow. No agent
    is `reporting` where they are not ours.

    `published` is whether it ever wrote, `last_beat` how many seconds ago it said last that it lives, None if unknown.
    """

    published: bool = True
    last_beat: int | None = None
    objection: str = ""
    alarms: tuple[str, ...] = ()
    unacted: tuple[str, ...] = ()
    source: str = ""
    copied: Mapping[str, int] = {}
    behind: Mapping[str, str] = {}
    reporting: bool = True

    @property
    def silent(self) -> bool:
        return self.last_beat is not None and self.last_beat > _SILENCE

    def faults(self, name: str) -> Iterator[str]:
        """One sentence each, for the cluster `name`."""
        if self.objection:
            yield self.objection
        elif not self.published:
            yield f"the API server of {name} has not published: run `clustermesh apiserver`"
        elif self.silent:
            yield (
                f"the API server of {name} has not written for {self.last_beat} s: is `clustermesh apiserver` running, "
                "and do the clocks of its machine and this one agree?"
            )
        for alarm in self.alarms:
            yield f"etcd has raised an alarm: {alarm}: see docs/failures.md, corrupt etcd"
        for problem in self.unacted:
            remedy = "" if problem.endswith(TRIED_AGAIN) else "; correct it, the rest is published"
            yield f"API server: {problem}{remedy}"


async def read(context: Context, peers: Collection[str]) -> dict[str, Any]:
    """The overview of the cluster at `context`, from its own etcd. `peers` are the clusters it is connected to.

    Raises Unavailable within some 3 s, with what to do, or Refused, where the etcd cannot be read.
    """
    tls = Tls(context.ca, context.certificate("local"), context.key("local"))
    reachable = asyncio.create_task(_listens(context.address.host, context.address.port))
    try:
        async with EtcdClient([context.endpoint], tls, timeout=FIRST_ANSWER) as client:
            return await read_through(client, context.cluster, context.endpoint, peers)
    except Unavailable as e:
        raise Unavailable(f"{e}: {_REACHED[await reachable]}") from e
    except Refused as e:
        raise Refused(
            f"{e}: `clustermesh certs show --context {context.path}` judges the certificates; the API server of a new "
            "cluster must have run once"
        ) from e
    finally:
        reachable.cancel()


async def read_through(
    client: EtcdClient,
    cluster: Cluster,
    endpoint: str,
    peers: Collection[str],
    left_out: Set[str] = frozenset(),
    *,
    reporting: bool = True,
) -> dict[str, Any]:
    """The overview of `cluster`, whose own etcd, at `endpoint`, `client` leads to. Nobody expects agents on the nodes
    that are `left_out`, nor reports where none is `reporting`, as Cilium's. Raises Unavailable, Refused."""
    etcd = await client.status()
    client.timeout = _LATER_ANSWERS
    nodes = (await client.range(RESOURCES["nodes"].prefix(cluster.name))).kvs
    reports = (await client.range(keys.STATUSES)).kvs
    published = await client.get(keys.cluster_config_key(cluster.name)) is not None
    beat = await client.get(keys.HEARTBEAT)
    said = await client.get(keys.API_SERVER)
    mirrored = await read_mirror(client)
    found = await evidence(client)
    told = ApiServerReport() if said is None else decode_api_server(said.value)
    known = {name.name for kv in nodes if (name := _parsed(keys.parse_node, kv.key))}
    return summarise(
        cluster.name,
        cluster.id,
        known - left_out,
        {node: decode_report(kv.value) for kv in reports if (node := _parsed(keys.parse_status, kv.key))},
        peers,
        ControlPlane(
            published=published and beat is not None,
            last_beat=None if beat is None else age_of_beat(beat.value, time.time()),
            objection=objection(endpoint, cluster.name, found),
            alarms=etcd.errors,
            unacted=told.problems,
            source=told.source,
            copied=mirrored.copied,
            behind=mirrored.behind,
            reporting=reporting,
        ),
        left_out=len(known & left_out),
    )


_REACHED: Final[Mapping[bool | None, str]] = {
    True: "it takes connections and does not answer: it is stopped (`kill -CONT`), its disk hangs, or "
    "something else listens there",
    False: "does `clustermesh etcd` run there? What it printed last says why not (docs/failures.md: corrupt etcd)",
    None: "nothing comes back from there: is that machine up, and is the network between?",
}


async def _listens(host: str, port: int) -> bool | None:
    """Whether anything takes connections there; None where nothing is heard."""
    try:
        async with asyncio.timeout(_TCP_SECONDS):
            _, writer = await asyncio.open_connection(host, port)
    except TimeoutError:
        return None
    except OSError:
        return False
    writer.close()
    return True


def age_of_beat(value: bytes, now: float) -> int | None:
    """Seconds, by the clock of whoever wrote it; None where it holds no time."""
    try:
        return max(0, int(now) - parse_time(value.decode("ascii", "replace")))
    except Invalid:
        return None


def decode_report(value: bytes) -> AgentReport:
    """An agent's report, or what is wrong with it."""
    try:
        return agent_report.decode(value)
    except DecodeError:
        return UNREADABLE


def decode_api_server(value: bytes) -> ApiServerReport:
    """What the API server says of itself, or what is wrong with saying it."""
    try:
        return api_server_report.decode(value)
    except DecodeError:
        return ApiServerReport(("its report in etcd cannot be read: run the same release everywhere",))


async def read_mirror(client: EtcdClient) -> MirrorReport:
    """What a mirror says in its own cluster's etcd; nothing where there is none. Raises Unavailable, Refused."""
    held = await client.get(keys.MIRROR)
    return MirrorReport() if held is None else decode_mirror(held.value)


def decode_mirror(value: bytes) -> MirrorReport:
    """What a mirror says of itself; nothing where that cannot be read."""
    try:
        return mirror_report.decode(value)
    except DecodeError:
        return MirrorReport()


def limits_used(
    seen: Iterable[SeenCluster], limits: Limits, copied: int | None = None
) -> dict[str, dict[str, int | None]]:
    """What a cluster may fill: on each node, the most that any of them has of it; the bytes a mirror has `copied`. None
    where nobody says."""
    rows = list(seen)
    used: dict[str, int | None] = {name: max((getattr(row, name) for row in rows), default=0) for name in limits.keys}
    used[COPIED] = copied
    return {name: {"used": used.get(name), "most": most} for name, most in spell_limits(limits).items()}


def summarise(
    name: str,
    cluster_id: int,
    nodes: Collection[str],
    reports: Mapping[str, AgentReport],
    peers: Collection[str],
    control: ControlPlane,
    left_out: int = 0,
) -> dict[str, Any]:
    """Everything `clustermesh status` prints. `ok` is True when every node sees every connected cluster fresh, and
    there is one. Of those that are `left_out`, so many beside `nodes`, no agent is expected.

    An agent may outlive its Node for a while: it is shown and not counted.
    """
    known = frozenset(nodes)
    clusters: dict[str, Any] = {peer: {"configured": 0, "connected": 0, "nodes": {}} for peer in sorted(peers)}
    faults = defaultdict[str, list[str]](list)
    for node in sorted(known - reports.keys()) if control.reporting else ():
        faults["its agent does not report: start it there, its log says why it ended"].append(node)
    for node, report in sorted(reports.items()):
        for fault in _faults(report, {*clusters, name}):
            faults[fault].append(node)
        for seen in report.clusters:
            if (cluster := clusters.get(seen.name)) is not None:
                cluster["nodes"][node] = seen
                cluster["configured"] += node in known
                cluster["connected"] += node in known and seen.state == State.FRESH
    for cluster in clusters.values():
        cluster["propagation"] = _propagation(
            {node: cluster["nodes"][node] for node in known & cluster["nodes"].keys()}
        )
    told = known & reports.keys()
    errors = [
        *control.faults(name),
        *(f"the mirror has cluster {peer} as {why}{_remedy(why)}" for peer, why in _behind(control, peers)),
        *_unknown(known, left_out),
        *(line for fault, at in faults.items() for line in _told(at, fault)),
    ]
    return {
        "ok": not errors,
        "cluster": {"name": name, "id": cluster_id},
        "api_server": control.published and not control.silent,
        "last_beat": control.last_beat,
        "source": control.source,
        "copied": dict(control.copied),
        "behind": dict(_behind(control, peers)),
        "nodes": {
            "total": len(known),
            "reporting": len(told),
            "ready": sum(not reports[node].not_ready for node in told if reports[node] is not UNREADABLE),
        },
        "clusters": clusters,
        "errors": errors,
    }


def _behind(control: ControlPlane, peers: Collection[str]) -> Iterator[tuple[str, str]]:
    """Agents behind a mirror see the copies alone."""
    return ((peer, why) for peer, why in sorted(control.behind.items()) if peer in peers)


def _remedy(said: str) -> str:
    """Of a state that is told with its error."""
    remedy = _REMEDIES.get(said.partition(":")[0], "")
    return f"; {remedy}" if remedy else ""


def _unknown(known: Collection[str], left_out: int) -> Iterator[str]:
    if not known and left_out:
        yield f"the agents' DaemonSet has pods for none of {left_out} nodes: look at its nodeSelector and tolerations"
    elif not known:
        yield "no node is known: does its API server see any?"


def _propagation(nodes: Mapping[str, SeenCluster]) -> dict[str, Any] | None:
    """Seconds that a cluster's last change took to the maps of `nodes`, None where none of them has seen one. Of two in
    the middle the median is the shorter one."""
    taken = {node: seen.propagation_ms / 1000 for node, seen in nodes.items() if seen.propagation_ms}
    if not taken:
        return None
    ranked = sorted(taken, key=lambda node: (taken[node], node))
    median, worst = ranked[(len(ranked) - 1) // 2], ranked[-1]
    return {"nodes": len(taken), "median": taken[median], "worst": taken[worst], "worst_node": worst}


def _faults(report: AgentReport, expected: Collection[str]) -> Iterator[str]:
    """What one agent says is wrong; it should know the clusters `expected`."""
    if report.not_ready:
        yield f"not ready: {report.not_ready}: see `clustermesh node status` there"
    yield from report.problems
    for seen in report.clusters:
        if seen.state != State.FRESH:
            why = f": {seen.error}" if seen.error else ""
            yield f"cluster {seen.name} is {seen.state}{why}{_remedy(seen.state)}"
    for missing in set(expected) - {seen.name for seen in report.clusters}:
        yield f"does not know cluster {missing} yet: does it read the same peers folder, or Secret, by now?"


def _told(nodes: Sequence[str], fault: str) -> Iterable[str]:
    """One line each for a few nodes, one for all where many have the same."""
    if len(nodes) <= _EACH:
        return (f"node {node}: {fault}" for node in nodes)
    return (f"{len(nodes)} nodes ({', '.join(nodes[:_EACH])}, …): {fault}",)


def _parsed(parse: Callable[[bytes], T], key: bytes) -> T | None:
    """The name in a key of the own etcd, or None: somebody's stray key is no reason to show nothing."""
    try:
        return parse(key)
    except DecodeError:
        return None
