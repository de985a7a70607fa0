"""What `clustermesh status` prints of a Kubernetes cluster: Cilium's lines, and what they do not tell."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from typing import Any

import click

from clustermesh.cli import printable
from clustermesh.cli.contexts import Which

_SHOWN = 20  # errors; JSON has all


async def read_context(which: Which) -> dict[str, Any]:
    """Raises ClusterMeshError where the Kubernetes API says nothing of a mesh."""
    from clustermesh.joining.connect import open_api, read_site
    from clustermesh.joining.status import read_status

    async with open_api(which.kubeconfig, which.context, which.namespace) as objects:
        return await read_status(await read_site(objects, which.context))


def print_status(found: dict[str, Any], *, verbose: bool = False) -> None:
    click.secho(f"Cluster {found['cluster']['name']} (id {found['cluster']['id']})", bold=True)
    for line in (*_api_server(found), "", *_connectivity(found, verbose)):
        click.echo(printable(line))
    if found["errors"]:
        click.secho(f"\n❌ {len(found['errors'])} errors:", fg="red")
        for error in found["errors"][:_SHOWN]:
            click.secho(f"   {printable(error)}", fg="red")
        if (more := len(found["errors"]) - _SHOWN) > 0:
            click.echo(f"   and {more} more: all are in `clustermesh status -o json`")


def _api_server(found: dict[str, Any]) -> Iterator[str]:
    kind, access, deployment = found["service"]["type"], found["access_information"], found["deployment"]
    if found["etcd"]["external"]:
        yield _line(True, "etcd is external: it needs no Service")
    else:
        said = f'Service "clustermesh-apiserver" of type "{kind}" found' if kind else "No Service found"
        yield _line(bool(kind), said)
    yield _line(bool(access), f"Cluster access information is {'available:' if access else 'not available'}")
    yield from (f"  - {each}" for each in access)
    whole = deployment["ready"] == deployment["replicas"] > 0
    how_many = "" if whole else f": {deployment['ready']}/{deployment['replicas']} replicas"
    yield _line(whole, f"Deployment clustermesh-apiserver is {'ready' if whole else 'not ready'}{how_many}")
    copied = found["kvstoremesh"]["copied"]
    yield (
        f"\N{INFORMATION SOURCE}\ufe0f  KVStoreMesh is {'enabled' if found['kvstoremesh']['enabled'] else 'disabled'}"
        + (
            f", has copied {', '.join(f'{size >> 20} MiB of {name}' for name, size in sorted(copied.items()))}"
            if copied
            else ""
        )
    )
    yield f"🔒 Encryption: {found['encryption']}"


def _connectivity(found: dict[str, Any], verbose: bool) -> Iterator[str]:
    said, clusters = found["connectivity"], found["clusters"]
    total, away = said["total"], said["not_ready"]
    if not clusters:
        yield "🔌 No cluster connected"
        return
    if found["agents"] == "cilium":
        yield (
            f"\N{INFORMATION SOURCE}\ufe0f  Connected are {', '.join(clusters)}; how Cilium's agents see them is "
            "`cilium clustermesh status` to tell"
        )
        for name in clusters:
            yield from (f"  - {name}: {each}" for each in _notes(name, found))
        return
    good = total > 0 and not away
    whom = f"All {total} nodes are" if good else f"{away}/{total} nodes are not"
    yield _line(good, f"{whom} connected to all clusters {_spread(said['connected'])}")
    yield ""
    yield "🔌 Cluster Connections:"
    for name, seen in clusters.items():
        counted = said["clusters"][name]
        yield f"  - {name}: {counted['configured']}/{total} configured, {counted['connected']}/{total} connected"
        counts = ", ".join(f"{seen[kind]} {kind}" for kind in ("nodes", "services", "endpoints"))
        yield f"      {counts}" + (
            f", {seen['refused']} refused: `clustermesh node status` says why" if seen["refused"] else ""
        )
        yield from (f"      {each}" for each in _notes(name, found))
        if seen["propagation"] is not None:
            yield f"      {propagation_text(seen['propagation'])}"
        for line in limit_lines(seen["limits"]) if verbose else ():
            yield f"      {line}"
        if seen["stale_since"] is not None:
            since = datetime.fromtimestamp(seen["stale_since"], UTC)
            nodes = f"stale on {seen['states']['stale']} nodes"
            yield f"      {nodes}, since {since:%Y-%m-%dT%H:%M:%SZ}; what was known is kept"
    yield ""
    yield f"🔀 Global services of other clusters: {_spread(said['global_services'])}"


def _notes(name: str, found: dict[str, Any]) -> Iterator[str]:
    """What no agent can tell of a cluster."""
    if not found["clusters"][name]["read_by"]:
        yield f"{name} does not read this cluster: nobody there answers pods of here"
    if name in found["kvstoremesh"]["behind"]:
        yield f"KVStoreMesh has it as {found['kvstoremesh']['behind'][name]}"


def propagation_text(taken: dict[str, Any]) -> str:
    worst = f"worst {taken['worst']:g} s on {taken['worst_node']}"
    return f"propagation of its last change, over {taken['nodes']} nodes: median {taken['median']:g} s, {worst}"


def limit_lines(limits: Mapping[str, Mapping[str, int | None]]) -> Iterator[str]:
    """What a mirror uses, what nodes do, then the others."""
    from clustermesh.overview import COPIED

    told = defaultdict[str, list[str]](list)
    for name, each in limits.items():
        if each["used"] is None:
            told["more limits"].append(f"{name} {each['most']}")
        else:
            whose = "limit of the mirror, used" if name == COPIED else "limits, used by the fullest node"
            told[whose].append(f"{each['used']}/{each['most']} {name}")
    yield from (f"{whose}: {', '.join(each)}" for whose, each in sorted(told.items()))


def _spread(of: dict[str, float]) -> str:
    return f"[min:{of['min']} / avg:{of['avg']} / max:{of['max']}]"


def _line(good: bool, text: str) -> str:
    return f"{'✅' if good else '⚠️ '} {text}"
