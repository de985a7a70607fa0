"""`clustermesh status`: how this cluster stands in the mesh, over all of its nodes."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Coroutine, Iterator, Mapping
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import click

from clustermesh.cli import FAILED, output_option, printable
from clustermesh.cli.contexts import Which, cluster_options, folder, is_folder
from clustermesh.cli.progress import shown_progress
from clustermesh.cli.table import print_found
from clustermesh.cli.values import Patience
from clustermesh.errors import Unavailable
from clustermesh.standalone.context import Context, load

if TYPE_CHECKING:
    from clustermesh.wire.agent_report import SeenCluster

_Reading = Coroutine[Any, Any, dict[str, Any]]
_POLL = 1.0
_LEAST = 5.0  # seconds for one look, however little is left of the time to wait
_SHOWN = 10  # nodes of one cluster, and errors, that are printed; JSON has all


@click.command()
@cluster_options
@click.option("--wait", is_flag=True, help="Wait until every node sees every connected cluster.")
@click.option(
    "--wait-duration",
    type=Patience(),
    default=60.0,
    show_default="60s",
    metavar="DURATION",
    help="How long --wait waits: seconds, or as 15m.",
)
@click.option("-v", "--verbose", is_flag=True, help="Show what each cluster may fill here, and how much it does.")
@output_option
@click.pass_context
def command(ctx: click.Context, which: Which, wait: bool, wait_duration: float, verbose: bool, output: str) -> None:
    """Show, for each connected cluster, its state on every node, since when, its counts and the last error.

    Exits with 1 when something is wrong.

    \b
    Examples:
      clustermesh status --context alpha --wait --wait-duration 5m
      clustermesh status --context /srv/alpha
      clustermesh status --context /srv/alpha --wait --wait-duration 30
      clustermesh status --context alpha --verbose
      clustermesh status --context /srv/alpha -o json
    """
    name, read, show = (_folder if is_folder(which.context) else _context)(which, verbose)
    overview = _wait_until_ok(name, read, wait_duration) if wait else asyncio.run(read())
    if output == "table":
        show(overview)
    else:
        import msgspec

        print_found(msgspec.to_builtins(overview), output)
    if not overview["ok"]:
        ctx.exit(FAILED)


_Shown = tuple[str, Callable[[], _Reading], Callable[[dict[str, Any]], None]]


def _folder(which: Which, verbose: bool) -> _Shown:
    cluster = load(folder(which.context))
    return cluster.name, lambda: _read(cluster), lambda overview: _print(overview, verbose)


def _context(which: Which, verbose: bool) -> _Shown:
    from clustermesh.cli.context_status import print_status, read_context

    return which.shown, lambda: read_context(which), lambda found: print_status(found, verbose=verbose)


async def _read(cluster: Context) -> dict[str, Any]:
    from clustermesh.mesh.peer_files import read_peers
    from clustermesh.overview import limits_used, read

    folder = read_peers(cluster.peers, cluster.name)
    overview = await read(cluster, folder.peers)
    for name, seen in overview["clusters"].items():
        known, copied = folder.peers.get(name), overview["copied"].get(name)
        seen["limits"] = {} if known is None else limits_used(seen["nodes"].values(), known.limits, copied)
    overview["errors"] += [f"peers folder: {problem}: correct it, or disconnect" for problem in folder.problems]
    return overview | {"ok": not overview["errors"]}


def _wait_until_ok(name: str, read: Callable[[], _Reading], duration: float) -> dict[str, Any]:
    deadline = time.monotonic() + duration

    async def look() -> dict[str, Any]:
        patience = max(_LEAST, deadline - time.monotonic())
        try:
            async with asyncio.timeout(patience):
                return await read()
        except TimeoutError as e:
            raise Unavailable(f"{name}: no answer within {patience:.0f} s") from e

    with shown_progress() as say:
        while True:
            overview, why = None, ""
            try:
                overview = asyncio.run(look())
                why = overview["errors"][0] if overview["errors"] else ""
            except Unavailable as e:
                why = str(e)
                if time.monotonic() > deadline:
                    raise
            if overview is not None and (overview["ok"] or time.monotonic() > deadline):
                return overview
            say(f"waiting for cluster {name}: {why}")
            time.sleep(_POLL)


def _print(overview: dict[str, Any], verbose: bool) -> None:
    from clustermesh.cli.context_status import limit_lines, propagation_text

    cluster, nodes = overview["cluster"], overview["nodes"]
    click.secho(f"Cluster {cluster['name']} (id {cluster['id']})", bold=True)
    beat = overview["last_beat"]
    said = "has not published" if beat is None else f"has published, last beat {beat} s ago"
    source = f" ({printable(overview['source'])})" if overview["source"] else ""
    _line(overview["api_server"], f"API server {said}{source}")
    _line(nodes["ready"] == nodes["total"] > 0, f"{nodes['ready']}/{nodes['total']} nodes ready")
    if not overview["clusters"]:
        click.echo("🔌 No cluster connected")
    for name, seen in overview["clusters"].items():
        good = seen["connected"] == nodes["total"] > 0
        _line(
            good,
            f"{name}: {seen['configured']}/{nodes['total']} configured, {seen['connected']}/{nodes['total']} fresh",
        )
        if seen["propagation"] is not None:
            click.echo(f"     {printable(propagation_text(seen['propagation']))}")
        for line in _rows(seen["nodes"]):
            click.echo(line)
        for line in limit_lines(seen["limits"]) if verbose else ():
            click.echo(f"     {line}")
    if overview["errors"]:
        click.secho(f"❌ {len(overview['errors'])} errors:", fg="red")
        for error in overview["errors"][: 2 * _SHOWN]:
            click.secho(f"   {printable(error)}", fg="red")
        if (more := len(overview["errors"]) - 2 * _SHOWN) > 0:
            click.echo(f"   and {more} more: all are in `clustermesh status -o json`")


def _rows(nodes: Mapping[str, SeenCluster]) -> Iterator[str]:
    """Every node where they are few; else those that have lost the cluster, up to a few, and the others as one."""
    shown = nodes if len(nodes) <= _SHOWN else {node: row for node, row in nodes.items() if row.state != "fresh"}
    for node in list(shown)[:_SHOWN]:
        row = shown[node]
        since = datetime.fromtimestamp(row.since, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
        yield f"     {node}: {row.state} since {since}, {_counts(row)}"
        if row.error:
            yield f"       last error: {printable(row.error)}"
    if rest := len(nodes) - min(len(shown), _SHOWN):
        yield f"     {rest} more nodes, {len(nodes) - len(shown) if shown is not nodes else 0} of them fresh"


def _counts(row: SeenCluster) -> str:
    counts = ", ".join(f"{getattr(row, key)} {key}" for key in ("nodes", "services", "endpoints", "identities"))
    return counts + (f", {row.refused} refused" if row.refused else "")


def _line(good: bool, text: str) -> None:
    click.echo(f"{'✅' if good else '⚠️ '} {text}")
