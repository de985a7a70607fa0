"""How a whole cluster stands in the mesh: what its agents report, put together. Only `read` does I/O."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

import msgspec

from clustermesh.context import Context
from clustermesh.mesh.session import State
from clustermesh.store.client import EtcdClient
from clustermesh.store.tls import Tls
from clustermesh.wire import RESOURCES, keys

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
        {keys.parse_node(kv.key).name for kv in nodes},
        {keys.parse_status(kv.key): _decode(kv.value) for kv in statuses},
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
    clusters = {peer: _across_nodes(peer, statuses) for peer in sorted(peers)}
    errors = [] if api_server else [f"the API server of {name} has not published: run `clustermesh apiserver`"]
    errors += [f"node {node}: its agent does not report" for node in sorted(set(nodes) - set(statuses))]
    for node, status in sorted(statuses.items()):
        if not status.get("ready"):
            errors.append(f"node {node}: not ready")
        errors += [f"node {node}: {problem}" for problem in status.get("problems", ())]
    for peer, seen in clusters.items():
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
            "ready": sum(bool(status.get("ready")) for status in statuses.values()),
        },
        "clusters": clusters,
        "errors": errors,
    }


def _across_nodes(peer: str, statuses: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    rows = {
        node: {key: cluster.get(key) for key in ("id", "state", "since", "error", *_COUNTS)}
        for node, status in sorted(statuses.items())
        for cluster in status.get("clusters", ())
        if cluster.get("name") == peer
    }
    return {
        "configured": len(rows),
        "connected": sum(row["state"] == State.FRESH for row in rows.values()),
        "nodes": rows,
    }


def _decode(value: bytes) -> dict[str, Any]:
    try:
        return msgspec.json.decode(value, type=dict[str, Any])
    except (msgspec.MsgspecError, RecursionError, UnicodeDecodeError):
        return {"problems": ["its status in etcd cannot be read"]}
