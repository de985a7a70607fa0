"""`clustermesh connect`, `disconnect` and `peers`."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

import click
from msgspec.structs import replace

from clustermesh.address import parse_prefix
from clustermesh.cli import context_option, output_option
from clustermesh.cli.table import print_json, print_table
from clustermesh.errors import Invalid
from clustermesh.model import check_cluster_name
from clustermesh.standalone.context import Context, load, parse_address

if TYPE_CHECKING:
    from clustermesh.standalone.connect import Outcome
    from clustermesh.standalone.connections import Connection

_MODE = click.option(
    "--connection-mode",
    "mode",
    type=click.Choice(["unicast", "bidirectional"]),
    default="bidirectional",
    show_default=True,
    help="unicast: only the first cluster reads the other.",
)


@click.command()
@context_option
@click.option("--destination-context", "folder", type=click.Path(path_type=Path), required=True, metavar="DIR")
@_MODE
@click.option("--source-endpoint", default="", metavar="URL", help="Where the other cluster reaches this one.")
@click.option("--destination-endpoint", default="", metavar="URL", help="Where this cluster reaches the other one.")
@click.option(
    "--allow-prefix",
    "prefixes",
    multiple=True,
    metavar="CIDR",
    help="Where the other cluster's pods may be beside the private ranges; may be given several times.",
)
def connect(
    context: Path, folder: Path, mode: str, source_endpoint: str, destination_endpoint: str, prefixes: tuple[str, ...]
) -> None:
    """Let two clusters see each other's services, nodes and identities.

    Checks first that they can be in one mesh and that their certificates will work. The same command again changes
    nothing, renews credentials that are about to expire, and repairs what an interrupted one left.

    \b
    Example:
      clustermesh connect --context /srv/alpha --destination-context /srv/beta
      clustermesh connect --context /srv/alpha --destination-context /srv/beta --allow-prefix 203.0.113.0/24
    """
    from clustermesh.standalone.connect import Mode
    from clustermesh.standalone.connect import connect as connect_clusters

    source = _reached_at(load(context), source_endpoint, "source-endpoint")
    destination = _reached_at(load(folder), destination_endpoint, "destination-endpoint")
    allowed = [parse_prefix(prefix, "allow-prefix") for prefix in prefixes]
    outcome = connect_clusters(source, destination, Mode(mode), datetime.now(UTC), allowed)
    _report(outcome, f"{source.name} and {destination.name} are connected already")


@click.command()
@context_option
@click.option("--destination-context", "folder", type=click.Path(path_type=Path), metavar="DIR")
@click.option("--peer", metavar="NAME", help="Name the other cluster, where its folder is gone.")
@_MODE
def disconnect(context: Path, folder: Path | None, peer: str | None, mode: str) -> None:
    """Take two clusters apart, this side first, also when the other one is gone.

    \b
    Examples:
      clustermesh disconnect --context /srv/alpha --destination-context /srv/beta
      clustermesh disconnect --context /srv/alpha --peer beta
    """
    from clustermesh.standalone.connect import Mode, find_destination, find_peer
    from clustermesh.standalone.connect import disconnect as disconnect_clusters

    if (folder is None) == (peer is None):
        raise click.UsageError("give one of --destination-context DIR and --peer NAME")
    source = load(context)
    if folder is not None:
        name, destination = find_destination(source, folder)
    else:
        name = check_cluster_name(peer or "")
        destination = find_peer(source, name)
    if name == source.name:
        raise Invalid("peer", name, "is this cluster itself")
    outcome = disconnect_clusters(source, name, destination, Mode(mode))
    _report(outcome, f"{source.name} and {name} were not connected")


@click.command()
@context_option
@output_option
def peers(context: Path, output: str) -> None:
    """List the clusters that this one reads, and those that read it.

    \b
    Example:
      clustermesh peers --context /srv/alpha
    """
    from clustermesh.standalone.connections import list_connections

    connections = list_connections(load(context), datetime.now(UTC))
    if output == "json":
        print_json([_as_json(each) for each in connections])
    elif connections:
        head = ("CLUSTER", "ID", "READS IT", "READ BY IT", "CREDENTIALS", "ENDPOINTS", "PROBLEM")
        print_table(head, [_row(each) for each in connections])
    else:
        click.echo("no connected clusters")


def _row(of: Connection) -> tuple[object, ...]:
    until = of.expires and f"until {of.expires:%F}"
    return of.name, of.cluster_id, of.reads, of.read_by, until, of.endpoints, of.problem


def _as_json(of: Connection) -> dict[str, object]:
    return {
        "name": of.name,
        "id": of.cluster_id,
        "reads": of.reads,
        "readBy": of.read_by,
        "endpoints": of.endpoints,
        "credentialsExpire": of.expires and of.expires.isoformat(),
        "problem": of.problem,
    }


def _reached_at(context: Context, endpoint: str, field: str) -> Context:
    return replace(context, endpoint=str(parse_address(endpoint, field))) if endpoint else context


def _report(outcome: Outcome, nothing: str) -> None:
    for sentence in outcome.done or [nothing]:
        click.echo(sentence)
    for sentence in outcome.warnings:
        click.echo(f"{click.style('warning:', fg='yellow', bold=True)} {sentence}", err=True)
