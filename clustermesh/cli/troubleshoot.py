"""`clustermesh troubleshoot`: everything between this cluster and its peers, step by step."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import click
from msgspec.structs import replace

from clustermesh.cli import FAILED, context_option, output_option, printable
from clustermesh.cli.looking import ask_agent, find_cluster, peers_option, socket_option, timeout_option
from clustermesh.errors import ClusterMeshError, Invalid, Refused, sentence

if TYPE_CHECKING:
    from clustermesh.standalone.context import Context
    from clustermesh.troubleshoot.checks import Row
    from clustermesh.troubleshoot.facts import AgentFacts, Facts

_MARKS: Final = {"ok": ("✅", None), "warn": ("⚠️ ", "yellow"), "fail": ("❌", "red")}


@click.command()
@click.argument("peer", required=False)
@context_option
@peers_option
@socket_option
@timeout_option("How long each step may take.")
@output_option
@click.pass_context
def command(
    ctx: click.Context,
    peer: str | None,
    context: Path,
    clustermesh_config: Path | None,
    socket: Path | None,
    timeout: float,
    output: str,
) -> None:
    """Go the way to PEER, or to every connected cluster: file, DNS, TCP, TLS, etcd, user, what its API server wrote.

    What a mirror or the agent of this node holds of it is compared, where there is one. Exits with 1 when something
    failed; each line that is not well says what to do.

    \b
    Examples:
      clustermesh troubleshoot --context /srv/alpha
      clustermesh troubleshoot beta --context /srv/alpha -o json
      clustermesh troubleshoot --clustermesh-config /var/lib/cilium/clustermesh
    """
    from clustermesh.troubleshoot.checks import check

    told_by_agent = ask_agent(socket, "status")
    status = told_by_agent if isinstance(told_by_agent, dict) else {}
    cluster = find_cluster(context, status, needed=clustermesh_config is None)
    found = asyncio.run(_find(cluster, clustermesh_config, peer, timeout))
    agent = _seen(status)
    told = {facts.name: check(replace(facts, agent=agent.get(facts.name))) for facts in found}
    if output == "json":
        click.echo(json.dumps({name: [row._asdict() for row in rows] for name, rows in told.items()}, indent=2))
    else:
        _print(told)
    if any(row.state == "fail" for rows in told.values() for row in rows):
        ctx.exit(FAILED)


async def _find(cluster: Context | None, directory: Path | None, peer: str | None, patience: float) -> list[Facts]:
    from clustermesh.mesh.peer_files import read_peers
    from clustermesh.troubleshoot.gather import gather

    own = cluster.name if cluster else ""
    folder = read_peers(directory or _folder(cluster), own)
    known = sorted(folder.peers.keys() | {problem.name for problem in folder.problems})
    if directory is not None and not known:
        raise Refused(f"{directory}: no file there names a connected cluster; give the folder that has one for each")
    if peer is not None and peer not in known:
        raise Invalid("peer", peer, f"is not connected; connected are: {', '.join(known) or 'none'}")
    names = known if peer is None else [peer]
    found, (cached, error) = await asyncio.gather(gather(folder, names, patience), _cached(cluster, names, patience))
    return [replace(facts, cached=cached.get(facts.name), cached_error=error) for facts in found]


def _folder(cluster: Context | None) -> Path:
    assert cluster is not None
    return cluster.peers


async def _cached(cluster: Context | None, names: Iterable[str], patience: float) -> tuple[dict[str, Any], str]:
    """What a mirror keeps in the own etcd, and why that cannot be told."""
    from clustermesh.store.client import EtcdClient, Tls
    from clustermesh.troubleshoot.gather import cached_counts

    if cluster is None:
        return {}, ""
    tls = Tls(cluster.ca, cluster.certificate("local"), cluster.key("local"))
    try:
        async with EtcdClient([cluster.endpoint], tls, timeout=patience) as client:
            return await cached_counts(client, cluster.name, names), ""
    except ClusterMeshError as e:
        return {}, sentence(e)


def _seen(status: Mapping[str, Any]) -> Mapping[str, AgentFacts]:
    """Each cluster as the agent of this node has it."""
    from clustermesh.troubleshoot.checks import COUNTED
    from clustermesh.troubleshoot.facts import AgentFacts

    return {
        seen["name"]: AgentFacts(
            seen["state"], seen["error"], seen["refused"], {kind: int(seen[kind]) for kind in COUNTED}
        )
        for seen in status.get("clusters", ())
    }


def _print(told: Mapping[str, list[Row]]) -> None:
    if not told:
        click.echo("no connected clusters")
    for name, rows in told.items():
        click.secho(printable(name or "the peers folder"), bold=True)
        for row in rows:
            mark, colour = _MARKS[row.state]
            click.secho(f"  {mark} {row.check}: {printable(row.says)}", fg=colour)
            if row.remedy:
                click.echo(f"       {printable(row.remedy)}")
