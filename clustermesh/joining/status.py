"""How a Kubernetes cluster stands in the mesh, in the shape of `cilium clustermesh status`. Only `read_status` does
I/O.

What the Kubernetes API says of the API server, then what the agents say in the cluster's own etcd, which is asked at
the address that other clusters reach it at.
"""

from __future__ import annotations

import tempfile
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence, Set
from contextlib import suppress
from pathlib import Path
from typing import Any, Final

from clustermesh.errors import ClusterMeshError, Invalid
from clustermesh.joining import names
from clustermesh.joining.agent_pods import are_ciliums, find_left_out
from clustermesh.joining.connect import Site
from clustermesh.joining.leading import misled
from clustermesh.joining.links import known_peers, unreadable_peers
from clustermesh.joining.member import Member
from clustermesh.mesh.session import State
from clustermesh.overview import limits_used, read_through
from clustermesh.standalone.users_file import readers_in
from clustermesh.store.client import EtcdClient
from clustermesh.store.tls import Tls

_PATIENCE: Final = 3.0
"""Seconds for the first answer of an etcd that may be far away."""


async def read_status(site: Site) -> dict[str, Any]:
    """Everything that `clustermesh status` prints of it; `ok` tells whether all is well. What fails is in `errors`."""
    member, left_out, ciliums = site.member, frozenset[str](), False
    with suppress(ClusterMeshError):  # who may not ask waits for all
        left_out = await find_left_out(site.objects, member.nodes)
    with suppress(ClusterMeshError):
        ciliums = await are_ciliums(site.objects)
    try:
        found = await _read_etcd(member, left_out, ciliums)
    except ClusterMeshError as e:
        reachable = f"its etcd, at {', '.join(_addresses(member)) or 'no address'}, says nothing of the nodes: {e}"
        return summarise(member, None, reachable, ciliums=ciliums)
    return summarise(member, found, ciliums=ciliums)


async def _read_etcd(member: Member, left_out: Set[str], ciliums: bool) -> dict[str, Any] | None:
    """None where there is nothing to ask: why, the rest of the status says."""
    aliases: Mapping[str, Sequence[str]] = {}
    if member.etcd is not None:
        endpoints, trusted = member.etcd.endpoints, member.local.ca
    elif member.entrance is not None and member.local.cert:
        endpoints, aliases = member.entrance.endpoints(member.name), member.entrance.aliases(member.name)
        trusted = member.trusted
    else:
        return None
    with tempfile.TemporaryDirectory(prefix="clustermesh-") as folder:  # 0700; a TLS library reads files only
        ca, cert, key = (Path(folder, each) for each in ("ca.crt", "tls.crt", "tls.key"))
        for path, data in ((ca, trusted), (cert, member.local.cert), (key, member.local.key)):
            path.touch(0o600)
            path.write_bytes(data)
        tls = Tls(ca, cert, key) if endpoints[0].startswith("https:") else None
        async with EtcdClient(endpoints, tls, timeout=_PATIENCE, aliases=aliases) as client:
            address, peers = ", ".join(_addresses(member)), known_peers(member.entries)
            return await read_through(client, member.cluster, address, peers, left_out, reporting=not ciliums)


def _addresses(member: Member) -> list[str]:
    if member.etcd is not None:
        return list(member.etcd.endpoints)
    return [] if member.entrance is None else str(member.entrance).split(", ")


def summarise(
    member: Member, overview: Mapping[str, Any] | None, unread: str = "", *, ciliums: bool = False
) -> dict[str, Any]:
    """`overview` is None where the etcd was not read: `unread` says why, unless the rest does. Where the agents are
    `ciliums`, it says nothing of them."""
    errors = [*_faults(member), *([unread] if unread else []), *(overview["errors"] if overview else ())]
    readers = _readers(member)
    peers, copied = known_peers(member.entries), dict(overview["copied"]) if overview else {}
    clusters = overview["clusters"] if overview else dict.fromkeys(sorted(peers), _UNSEEN)
    seen = {
        name: _seen(rows := each["nodes"].values())
        | {"propagation": each["propagation"]}
        | {"limits": limits_used(rows, peers[name].limits, copied.get(name)) if name in peers else {}}
        | {"read_by": readers is None or name in readers}
        for name, each in clusters.items()
    }
    nodes = overview["nodes"] if overview else {"total": 0, "ready": 0, "reporting": 0}
    return {
        "ok": not errors,
        "cluster": {"name": member.name, "id": member.cluster.id},
        "version": member.version.number if member.version else "",
        "encryption": member.encryption,
        "service": {"type": member.service},
        "etcd": {"external": member.etcd is not None},
        "access_information": _addresses(member),
        "deployment": {"ready": member.ready, "replicas": member.replicas},
        "kvstoremesh": {"enabled": member.mirrored, "copied": copied, "behind": overview["behind"] if overview else {}},
        "agents": "cilium" if ciliums else "clustermesh",
        "connectivity": _connectivity(clusters, nodes["reporting" if ciliums else "total"]),
        "nodes": nodes,
        "clusters": seen,
        "errors": errors,
    }


def _readers(member: Member) -> frozenset[str] | None:
    """The clusters that may read this one; None where it does not tell them apart, as Cilium's chart need not."""
    with suppress(Invalid):
        readers = readers_in(member.users, names.USERS)
        return readers if readers or (member.version and member.version.product == names.PRODUCTS[0]) else None
    return None


_UNSEEN: Final[Mapping[str, Any]] = {"configured": 0, "connected": 0, "nodes": {}, "propagation": None}


def _faults(member: Member) -> Iterator[str]:
    """What the Kubernetes API tells."""
    if member.entrance is None and member.etcd is None:
        yield member.hidden
    if not member.replicas:
        scale = f"`kubectl -n {member.namespace} scale deployment/{names.API_SERVER} --replicas=1`"
        yield f"no Deployment {names.API_SERVER}: `clustermesh enable`; or one of no replicas: {scale}"
    elif member.ready < member.replicas:
        said = f"{member.ready} of {member.replicas} replicas of Deployment {names.API_SERVER} are ready"
        yield f"{said}: `kubectl describe pod -l k8s-app={names.API_SERVER}`"
    if (etcd := member.etcd) is not None:
        if etcd.ca is not None and not (member.local.ca and member.local.cert and member.local.key):
            needed = "etcd-client-ca.crt, etcd-client.crt and etcd-client.key"
            yield f"no Secret {names.ETCD_CERT} with {needed}: neither the API server nor agents can read their etcd"
    elif not member.local.cert:
        yield f"no Secret {names.LOCAL_CERT}: agents cannot read their own etcd; has the certificate job run?"
    for name, error in unreadable_peers(member).items():
        yield f"Secret {names.PEERS}: {name}: {error}: correct it, or disconnect"
    if lost := ", ".join(sorted(misled(member))):
        cilium = member.version is not None and member.version.product == "cilium"
        remedy = "`clustermesh connect` once more" if cilium else "`clustermesh upgrade`"
        was = "without the mirror, or at another port" if member.mirrored else "with a mirror, which is off"
        yield f"Secrets {names.PEERS} and {names.COPIED} lead to {lost} as {was}: {remedy} has agents read it again"


def _seen(rows: Iterable[Any]) -> dict[str, Any]:
    """One cluster, as all nodes see it."""
    rows = list(rows)
    behind = [row.since for row in rows if row.state == State.STALE]
    return {
        "states": dict(sorted(Counter(row.state for row in rows).items())),
        "stale_since": min(behind, default=None),
        "refused": max((row.refused for row in rows), default=0),
        **{kind: max((getattr(row, kind) for row in rows), default=0) for kind in ("nodes", "services", "endpoints")},
        "last_error": next((row.error for row in rows if row.error), ""),
    }


def _connectivity(clusters: Mapping[str, Any], total: int) -> dict[str, Any]:
    """Cilium's part, under its names."""
    connected, services, told = Counter[str](), Counter[str](), set[str]()
    for each in clusters.values():
        for node, row in each["nodes"].items():
            told.add(node)
            connected[node] += row.state == State.FRESH
            services[node] += row.services
    return {
        "global_services": _spread([services[node] for node in told]),
        "connected": _spread([connected[node] for node in told]),
        "clusters": {name: {key: each[key] for key in ("configured", "connected")} for name, each in clusters.items()},
        "total": total,
        "not_ready": total - min((each["connected"] for each in clusters.values()), default=total),
    }


def _spread(numbers: list[int]) -> dict[str, float]:
    if not numbers:
        return {"min": 0, "avg": 0.0, "max": 0}
    return {"min": min(numbers), "avg": round(sum(numbers) / len(numbers), 1), "max": max(numbers)}
