"""`clustermesh status`: how this cluster stands in the mesh, over all of its nodes."""

from __future__ import annotations

import asyncio
import json
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import click

from clustermesh.cli import FAILED, context_option, output_option, printable
from clustermesh.cli.progress import shown_progress
from clustermesh.errors import Unavailable
from clustermesh.standalone.context import Context, load

_POLL = 1.0


@click.command()
@context_option
@click.option("--wait", is_flag=True, help="Wait until every node sees every connected cluster.")
@click.option("--wait-duration", default=60.0, show_default=True, metavar="SECONDS", help="How long --wait waits.")
@output_option
@click.pass_context
def command(ctx: click.Context, context: Path, wait: bool, wait_duration: float, output: str) -> None:
    """Show, for each connected cluster, its state on every node, since when, its counts and the last error.

    Exits with 1 when something is wrong.

    \b
    Examples:
      clustermesh status --context /srv/alpha
      clustermesh status --context /srv/alpha --wait --wait-duration 30
      clustermesh status --context /srv/alpha -o json
    """
    cluster = load(context)
    overview = _wait_until_ok(cluster, wait_duration) if wait else asyncio.run(_read(cluster))
    if output == "json":
        click.echo(json.dumps(overview, indent=2))
    else:
        _print(overview)
    if not overview["ok"]:
        ctx.exit(FAILED)


async def _read(cluster: Context) -> dict[str, Any]:
    from clustermesh.mesh.peer_files import read_peers
    from clustermesh.overview import read

    folder = read_peers(cluster.peers, cluster.name)
    try:
        overview = await read(cluster, folder.peers)
    except Unavailable as e:
        raise Unavailable(f"{e}: does `clustermesh etcd` run there, and can it be reached from here?") from e
    overview["errors"] += [f"peers folder: {problem}" for problem in folder.problems]
    return overview | {"ok": not overview["errors"]}


def _wait_until_ok(cluster: Context, duration: float) -> dict[str, Any]:
    deadline = time.monotonic() + duration
    with shown_progress() as say:
        while True:
            overview, why = None, ""
            try:
                overview = asyncio.run(_read(cluster))
                why = overview["errors"][0] if overview["errors"] else ""
            except Unavailable as e:
                why = str(e)
                if time.monotonic() > deadline:
                    raise
            if overview is not None and (overview["ok"] or time.monotonic() > deadline):
                return overview
            say(f"waiting for cluster {cluster.name}: {why}")
            time.sleep(_POLL)


def _print(overview: dict[str, Any]) -> None:
    cluster, nodes = overview["cluster"], overview["nodes"]
    click.secho(f"Cluster {cluster['name']} (id {cluster['id']})", bold=True)
    _line(
        overview["api_server"], "API server has published" if overview["api_server"] else "API server has not published"
    )
    _line(nodes["ready"] == nodes["total"], f"{nodes['ready']}/{nodes['total']} nodes ready")
    if not overview["clusters"]:
        click.echo("🔌 No cluster connected")
    for name, seen in overview["clusters"].items():
        good = seen["connected"] == nodes["total"]
        _line(
            good,
            f"{name}: {seen['configured']}/{nodes['total']} configured, {seen['connected']}/{nodes['total']} fresh",
        )
        for node, row in seen["nodes"].items():
            counts = ", ".join(f"{row[key]} {key}" for key in ("nodes", "services", "endpoints", "identities"))
            refused = f", {row['refused']} refused" if row["refused"] else ""
            since = datetime.fromtimestamp(row["since"], UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
            click.echo(f"     {node}: {row['state']} since {since}, {counts}{refused}")
            if row["error"]:
                click.echo(f"       last error: {printable(row['error'])}")
    if overview["errors"]:
        click.secho(f"❌ {len(overview['errors'])} errors:", fg="red")
        for error in overview["errors"]:
            click.echo(f"   {printable(error)}")


def _line(good: bool, text: str) -> None:
    click.echo(f"{'✅' if good else '⚠️ '} {text}")
