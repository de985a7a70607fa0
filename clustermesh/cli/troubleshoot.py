"""`clustermesh troubleshoot`: everything between this cluster and its peers, step by step."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import click
from msgspec.structs import replace

from clustermesh.cli import FAILED, context_option, output_option, printable
from clustermesh.cli.looking import (
    ask_agent,
    find_cluster,
    is_folder_given,
    peers_option,
    socket_option,
    timeout_option,
)
from clustermesh.cli.own_cluster import kvstore_option, name_option
from clustermesh.cli.table import print_found
from clustermesh.errors import ClusterMeshError, Invalid, Refused, sentence
from clustermesh.standalone.context import CHART_PEERS

if TYPE_CHECKING:
    from clustermesh.standalone.context import Context
    from clustermesh.store.client import EtcdClient
    from clustermesh.troubleshoot.checks import Row
    from clustermesh.troubleshoot.facts import AgentFacts, Facts

_MARKS: Final = {"ok": ("✅", None), "warn": ("⚠️ ", "yellow"), "fail": ("❌", "red")}


@click.command()
@click.argument("peer", required=False)
@context_option
@peers_option
@name_option
@kvstore_option
@socket_option
@timeout_option("How long each step may take.")
@output_option
@click.pass_context
def command(
    ctx: click.Context,
    /,
    peer: str | None,
    context: Path,
    clustermesh_config: Path | None,
    socket: Path | None,
    output: str,
    **flags: Any,
) -> None:
    """Go the way to PEER, or to every connected cluster: file, DNS, TCP, TLS, etcd, user, what its API server wrote.

    What a mirror or the agent of this node holds of it is compared, where there is one. Exits with 1 when something
    failed; each line that is not well says what to do.

    \b
    Examples:
      kubectl -n kube-system exec ds/clustermesh-agent -c agent -- clustermesh troubleshoot beta
      clustermesh troubleshoot --context /srv/alpha
      clustermesh troubleshoot beta --context /srv/alpha -o json
      clustermesh troubleshoot --clustermesh-config /var/lib/cilium/clustermesh
      clustermesh troubleshoot --cluster-name alpha --kvstore-opt etcd.config=/var/lib/cilium/etcd-config.yaml
    """
    from clustermesh.troubleshoot.checks import check

    told_by_agent = ask_agent(socket, "status")
    status = told_by_agent if isinstance(told_by_agent, dict) else {}
    if flags["kvstore_opt"] and flags["cluster_name"] is None:
        raise Invalid("--kvstore-opt", flags["kvstore_opt"][0], "needs --cluster-name beside it")
    if flags["cluster_name"] is not None:
        own = _of_flags(flags["cluster_name"], flags["kvstore_opt"])
    elif is_folder_given() or "kvstore_opt" not in status or status["context"]:
        own = _of_folder(find_cluster(context, status, needed=clustermesh_config is None))
    else:  # an agent of the chart
        own = _of_flags(status["cluster"]["name"], status["kvstore_opt"], status["clustermesh_config"])
    found = asyncio.run(_find(own, clustermesh_config or own.peers, peer, flags["timeout"]))
    agent = _seen(status)
    told = {facts.name: check(replace(facts, agent=agent.get(facts.name))) for facts in found}
    if output != "table":
        print_found({name: [row._asdict() for row in rows] for name, rows in told.items()}, output)
    else:
        _print(told)
    if any(row.state == "fail" for rows in told.values() for row in rows):
        ctx.exit(FAILED)


class _Own(NamedTuple):
    """The own cluster, its name "" where nobody says; `client` is of its etcd, with so much patience."""

    name: str
    peers: Path
    client: Callable[[float], EtcdClient] | None


def _of_folder(cluster: Context | None) -> _Own:
    from clustermesh.store.client import EtcdClient, Tls

    if cluster is None:
        return _Own("", CHART_PEERS, None)
    tls = Tls(cluster.ca, cluster.certificate("local"), cluster.key("local"))
    return _Own(cluster.name, cluster.peers, lambda patience: EtcdClient([cluster.endpoint], tls, timeout=patience))


def _of_flags(name: str, options: Iterable[str], peers: str | None = None) -> _Own:
    """As the servers of Cilium's chart are told; the id is of no importance here."""
    from clustermesh.own_cluster import of_flags

    return _Own(name, Path(peers) if peers else CHART_PEERS, of_flags(name, 1, options).client)


async def _find(own: _Own, directory: Path, peer: str | None, patience: float) -> list[Facts]:
    from clustermesh.mesh.peer_files import read_peers
    from clustermesh.troubleshoot.gather import gather

    folder = read_peers(directory, own.name)
    known = sorted(folder.peers.keys() | {problem.name for problem in folder.problems})
    if directory != own.peers and not known:
        raise Refused(f"{directory}: no file there names a connected cluster; give the folder that has one for each")
    if peer is not None and peer not in known:
        raise Invalid("peer", peer, f"is not connected; connected are: {', '.join(known) or 'none'}")
    names = known if peer is None else [peer]
    found, copies = await asyncio.gather(gather(folder, names, patience), _cached(own, names, patience))
    cached, behind, error = copies
    return [
        replace(each, cached=cached.get(each.name), behind=behind.get(each.name, ""), cached_error=error)
        for each in found
    ]


async def _cached(own: _Own, names: Iterable[str], patience: float) -> tuple[Mapping[str, Any], Mapping[str, str], str]:
    """What a mirror keeps in the own etcd, and what it says of clusters that it does not follow; why that cannot be
    told."""
    from clustermesh.overview import read_mirror
    from clustermesh.troubleshoot.gather import cached_counts

    if own.client is None:
        return {}, {}, ""
    try:
        async with own.client(patience) as client:
            behind = (await read_mirror(client)).behind
            return await cached_counts(client, own.name, names), behind, ""
    except ClusterMeshError as e:
        return {}, {}, sentence(e)


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
