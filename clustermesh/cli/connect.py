"""`clustermesh connect`, `disconnect` and `peers`."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import click
from msgspec.structs import replace

from clustermesh.address import parse_prefix
from clustermesh.cli import output_option
from clustermesh.cli.contexts import Which, cluster_options, destinations_option, folder, is_folder
from clustermesh.cli.table import print_found, print_table
from clustermesh.errors import Invalid
from clustermesh.model import check_cluster_name
from clustermesh.standalone.context import Context, load, parse_address

if TYPE_CHECKING:
    from clustermesh.joining.member import Entrance
    from clustermesh.standalone.connect import Outcome
    from clustermesh.standalone.connections import Connection

_MODE = click.option(
    "--mode",
    "--connection-mode",
    "mode",
    type=click.Choice(["unicast", "bidirectional", "mesh"]),
    default="bidirectional",
    show_default=True,
    help="unicast: only the first cluster reads the others. mesh: the others each other, too.",
)


@click.command()
@cluster_options
@destinations_option
@_MODE
@click.option("--source-endpoint", default="", metavar="HOST:PORT", help="Where other clusters reach this one.")
@click.option(
    "--destination-endpoint", default="", metavar="HOST:PORT", help="Where this cluster reaches the other one."
)
@click.option(
    "--allow-prefix",
    "prefixes",
    multiple=True,
    metavar="CIDR",
    help="Where the other cluster's pods may be beside the private ranges; may be given several times.",
)
@click.option(
    "--allow-unreachable", "unreached", is_flag=True, help="Also where this machine does not reach the clusters' etcds."
)
@output_option
def connect(which: Which, destinations: tuple[str, ...], mode: str, output: str, **flags: Any) -> None:
    """Let clusters see each other's services, nodes and identities.

    Checks first that they can be in one mesh and will reach and trust each other, and says all that is wrong. The same
    command again changes nothing, renews credentials that are about to expire, and repairs what an interrupted one
    left.

    \b
    Examples:
      clustermesh connect --context alpha --destination-context beta
      clustermesh connect --context alpha --destination-context beta,gamma --mode mesh
      clustermesh connect --context alpha --destination-context beta --destination-endpoint 192.0.2.7:32379
      clustermesh connect --context alpha --destination-context beta --allow-prefix 203.0.113.0/24
      clustermesh connect --context /srv/alpha --destination-context /srv/beta
    """
    from clustermesh.standalone.connect import Mode
    from clustermesh.standalone.connect import connect as connect_folders

    source, others = which.context, _several(destinations)
    if not others:
        raise click.UsageError("give the other cluster: --destination-context NAME")
    if flags["destination_endpoint"] and len(others) > 1:
        raise click.UsageError("--destination-endpoint is of one cluster: connect the others by commands of their own")
    allowed = tuple(parse_prefix(prefix, "allow-prefix") for prefix in flags["prefixes"])
    if not any(map(is_folder, (source, *others))):
        from clustermesh.cli.joining import connect_contexts

        entrances = {"source": _entrance(flags["source_endpoint"], "source-endpoint")}
        entrances["destination"] = _entrance(flags["destination_endpoint"], "destination-endpoint")
        done = connect_contexts(which, others, mode, entrances, allowed, flags["unreached"])
        report(
            asyncio.run(done),
            f"nothing to do: {', '.join(others)} and {which.shown} are connected already",
            output,
        )
        return
    if flags["unreached"]:
        raise click.UsageError(
            "--allow-unreachable is for contexts of kubeconfigs: whether folders reach each other is not looked at"
        )
    if mode == "mesh" or len(others) > 1:
        raise click.UsageError("folders are connected two at a time, unicast or bidirectional")
    ours = _reached_at(load(folder(source)), flags["source_endpoint"], "source-endpoint")
    theirs = _reached_at(load(folder(others[0])), flags["destination_endpoint"], "destination-endpoint")
    outcome = connect_folders(ours, theirs, Mode(mode), datetime.now(UTC), allowed)
    report(outcome, f"{ours.name} and {theirs.name} are connected already", output)


@click.command()
@cluster_options
@destinations_option
@click.option("--peer", metavar="NAME", help="Name the other cluster, where its API or folder is gone.")
@_MODE
@output_option
def disconnect(which: Which, destinations: tuple[str, ...], peer: str | None, mode: str, output: str) -> None:
    """Take clusters apart, this side first, also when the other one is gone.

    \b
    Examples:
      clustermesh disconnect --context alpha --destination-context beta
      clustermesh disconnect --context alpha --peer beta
      clustermesh disconnect --context /srv/alpha --destination-context /srv/beta
    """
    from clustermesh.standalone.connect import Mode, find_destination, find_peer
    from clustermesh.standalone.connect import disconnect as disconnect_folders

    source, others = which.context, _several(destinations)
    if bool(others) == (peer is not None):
        raise click.UsageError("give one of --destination-context and --peer NAME")
    if peer is not None:
        check_cluster_name(peer)
    if not any(map(is_folder, (source, *others))):
        from clustermesh.cli.joining import disconnect_contexts

        done = disconnect_contexts(which, others, peer, mode)
        report(asyncio.run(done), f"{which.shown} and {', '.join(others)} were not connected", output)
        return
    if mode == "mesh" or len(others) > 1:
        raise click.UsageError("folders are taken apart two at a time, unicast or bidirectional")
    ours = load(folder(source))
    name, theirs = find_destination(ours, folder(others[0])) if others else (peer or "", find_peer(ours, peer or ""))
    if name == ours.name:
        raise Invalid("peer", name, "is this cluster itself")
    report(disconnect_folders(ours, name, theirs, Mode(mode)), f"{ours.name} and {name} were not connected", output)


@click.command()
@cluster_options
@output_option
def peers(which: Which, output: str) -> None:
    """List the clusters that this one reads, and those that read it.

    \b
    Examples:
      clustermesh peers --context alpha
      clustermesh peers --context /srv/alpha
    """
    source = which.context
    if is_folder(source):
        from clustermesh.standalone.connections import list_connections

        connections = list_connections(load(folder(source)), datetime.now(UTC))
    else:
        from clustermesh.cli.joining import peers_of_context

        connections = asyncio.run(peers_of_context(which))
    if output != "table":
        print_found([_as_json(each) for each in connections], output)
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
        "endpoints": list(of.endpoints),
        "credentialsExpire": of.expires and of.expires.isoformat(),
        "problem": of.problem,
    }


def _several(given: Sequence[str]) -> list[str]:
    return list(dict.fromkeys(each for text in given for each in text.split(",") if each))


def _entrance(endpoint: str, field: str) -> Entrance | None:
    from clustermesh.joining.member import Entrance

    if not endpoint:
        return None
    address = parse_address(endpoint, field)
    return Entrance((address.host,), address.port)


def _reached_at(context: Context, endpoint: str, field: str) -> Context:
    return replace(context, endpoint=str(parse_address(endpoint, field))) if endpoint else context


def report(outcome: Outcome, nothing: str, output: str) -> None:
    """Print what was done, or `nothing`."""
    if output != "table":
        warnings = list(dict.fromkeys(outcome.warnings))
        print_found({"changed": bool(outcome.done), "done": outcome.done, "warnings": warnings}, output)
        return
    for sentence in outcome.done or [nothing]:
        click.echo(sentence)
    for sentence in dict.fromkeys(outcome.warnings):
        click.echo(f"{click.style('warning:', fg='yellow', bold=True)} {sentence}", err=True)
