"""How a whole cluster stands in the mesh: what its agents report, put together. Only `read` does I/O."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from typing import Annotated, Any, Final, TypeVar

import msgspec
from msgspec import Meta, Struct

from clustermesh.errors import DecodeError
from clustermesh.mesh.session import State
from clustermesh.standalone.context import Context
from clustermesh.store.client import EtcdClient
from clustermesh.store.tls import Tls
from clustermesh.wire import RESOURCES, keys

T = TypeVar("T")
_YEAR_9999: Final = 253402300799
_COUNTS = ("nodes", "services", "endpoints", "identities", "refused")


async def read(context: Context, peers: Collection[str]) -> dict[str, Any]:
    """The overview of the cluster at `context`, from its own etcd. `peers` are the clusters it is connected to.

    Raises Unavailable or Refused when the etcd cannot be read.
    """
    tls = Tls(context.ca, context.certificate("local"), context.key("local"))
    async with EtcdClient([context.endpoint], tls, timeout=3.0) as client:
        nodes = (await client.range(RESOURCES["nodes"].prefix(context.name))).kvs
        statuses = (await client.range(keys.STATUSES)).kvs
        published = await client.get(keys.cluster_config_key(context.name)) is not None
        heartbeat = await client.get(keys.HEARTBEAT) is not None
    return summarise(
        context.name,
        context.id,
        {name.name for kv in nodes if (name := _parsed(keys.parse_node, kv.key))},
        {node: decode_status(kv.value) for kv in statuses if (node := _parsed(keys.parse_status, kv.key))},
        peers,
        api_server=published and heartbeat,
    )


def summarise(
    name: str,
    cluster_id: int,
    nodes: Collection[str],
    statuses: Mapping[str, Mapping[str, Any]],
    peers: Collection[str],
    *,
    api_server: bool,
) -> dict[str, Any]:
    """Everything `clustermesh status` prints. `ok` is True when every node sees every connected cluster fresh."""
    clusters = {peer: _across_nodes(peer, statuses, nodes) for peer in sorted(peers)}
    errors = [] if api_server else [f"the API server of {name} has not published: run `clustermesh apiserver`"]
    errors += [f"node {node}: its agent does not report" for node in sorted(set(nodes) - set(statuses))]
    for node, status in sorted(statuses.items()):
        if not status.get("ready"):
            errors.append(f"node {node}: not ready")
        errors += [f"node {node}: {problem}" for problem in status.get("problems", ())]
    for peer, seen in (clusters | {name: _across_nodes(name, statuses, nodes)}).items():
        errors += [
            f"node {node}: cluster {peer} is {row['state']}{': ' + row['error'] if row['error'] else ''}"
            for node, row in seen["nodes"].items()
            if row["state"] != State.FRESH
        ]
        errors += [
            f"node {node}: does not know cluster {peer} yet" for node in sorted(set(statuses) - set(seen["nodes"]))
        ]
    return {
        "ok": not errors,
        "cluster": {"name": name, "id": cluster_id},
        "api_server": api_server,
        "nodes": {
            "total": len(nodes),
            "reporting": len(set(nodes) & set(statuses)),
            "ready": sum(bool(status.get("ready")) for node, status in statuses.items() if node in nodes),
        },
        "clusters": clusters,
        "errors": errors,
    }


def _across_nodes(cluster: str, statuses: Mapping[str, Mapping[str, Any]], nodes: Collection[str]) -> dict[str, Any]:
    """How every node sees `cluster`; only those of `nodes` are counted, an agent may outlive its Node for a while."""
    rows = {
        node: {key: seen[key] for key in ("id", "state", "since", "error", *_COUNTS)}
        for node, status in sorted(statuses.items())
        for seen in status.get("clusters", ())
        if seen["name"] == cluster
    }
    counted = [row for node, row in rows.items() if node in nodes]
    return {
        "configured": len(counted),
        "connected": sum(row["state"] == State.FRESH for row in counted),
        "nodes": rows,
    }


class _Cluster(Struct, frozen=True):
    """One cluster as one agent sees it: what is shown of it, whatever release the agent is of."""

    name: str
    state: str
    id: int | None = None
    since: Annotated[float, Meta(ge=0, le=_YEAR_9999)] = 0.0
    error: str = ""
    behind: dict[str, str] = {}
    nodes: int = 0
    services: int = 0
    endpoints: int = 0
    identities: int = 0
    refused: int = 0


class _Status(Struct, frozen=True):
    ready: bool = False
    problems: list[str] = []
    clusters: list[_Cluster] = []


_decoder = msgspec.json.Decoder(_Status)


def decode_status(value: bytes) -> dict[str, Any]:
    """An agent's report, or what is wrong with it. Where a cluster has no error it is said what it waits for."""
    try:
        found: dict[str, Any] = msgspec.to_builtins(_decoder.decode(value))
    except (msgspec.MsgspecError, RecursionError, UnicodeDecodeError):
        return {"problems": ["its status in etcd cannot be read"]}
    for cluster in found["clusters"]:
        cluster["error"] = cluster["error"] or "; ".join(f"{what}: {why}" for what, why in cluster["behind"].items())
    return found


def _parsed(parse: Callable[[bytes], T], key: bytes) -> T | None:
    """The name in a key of the own etcd, or None: somebody's stray key is no reason to show nothing."""
    try:
        return parse(key)
    except DecodeError:
        return None
