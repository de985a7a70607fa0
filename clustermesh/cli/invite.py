"""`clustermesh invite` and `join`: clusters connected where no one person has access to both."""

from __future__ import annotations

import asyncio
import re
import signal
import sys
import time
from collections.abc import Mapping
from contextlib import AbstractAsyncContextManager, suppress
from datetime import UTC, datetime
from typing import TYPE_CHECKING

import click

from clustermesh.cli import output_option
from clustermesh.cli.connect import report
from clustermesh.cli.contexts import Which, cluster_options, is_folder
from clustermesh.cli.table import print_found, print_table
from clustermesh.cli.values import Duration, Listener
from clustermesh.errors import ClusterMeshError, Invalid, Refused
from clustermesh.model import check_cluster_name
from clustermesh.standalone.context import parse_address

_HAS_PORT, _PORT = re.compile(r":[0-9]+$"), 9443
_LONGEST = 30 * 86400.0
"""Seconds that an invitation may last."""

if TYPE_CHECKING:
    from clustermesh.joining.invitations import Invitation
    from clustermesh.joining.objects import Objects
    from clustermesh.standalone.connect import Outcome


@click.group()
def invite() -> None:
    """Let a cluster join whose kubeconfig you do not have.

    \b
    Examples:
      clustermesh invite serve --context alpha --listen 0.0.0.0:9443
      clustermesh invite create --context alpha --address 203.0.113.7:9443 --to beta
      clustermesh invite list --context alpha
    """


@invite.command()
@cluster_options
@click.option(
    "--address",
    default="",
    metavar="HOST:PORT",
    help="Where newcomers reach `clustermesh invite serve`.  [default: the chart's Service, with "
    "clustermesh.invitations.enabled]",
)
@click.option("--ttl", type=Duration(), default=900.0, show_default="15m", help="How long it may be used.")
@click.option("--uses", type=click.IntRange(1, 100), default=1, show_default=True, help="How many clusters may use it.")
@click.option("--to", default="", metavar="NAME", help="The only cluster that may use it.")
@click.option("--again", is_flag=True, help="For a cluster that is connected, --to: both get new certificates.")
@output_option
def create(which: Which, address: str, ttl: float, uses: int, to: str, again: bool, output: str) -> None:
    """Print one token; whoever has it may join this cluster's mesh, once.

    \b
    Example:
      clustermesh invite create --context alpha --address 203.0.113.7:9443 --ttl 15m --to beta
    """
    if to:
        check_cluster_name(to)
    elif again:
        raise Invalid("--again", "true", "must stand beside --to NAME, the cluster that is connected")
    if not 0 < ttl <= _LONGEST:
        raise Invalid("ttl", f"{ttl:g} s", "must be more than nothing and at most 720h, like 15m")
    with_port = address if _HAS_PORT.search(address) else f"{address}:{_PORT}"
    reached = parse_address(with_port, "address") if address else None
    at = (reached.host, reached.port) if reached else None
    token, number = asyncio.run(_create(which, at, ttl, uses, to, again))
    if output != "table":
        print_found({"token": token, "id": number}, output)
    else:
        click.echo(token)


@invite.command(name="list")
@cluster_options
@output_option
def list_(which: Which, output: str) -> None:
    """List invitations, and who joined by each. The secrets are nowhere to be found.

    \b
    Example:
      clustermesh invite list --context alpha -o json
    """
    found, now = asyncio.run(_list(which)), time.time()
    if output != "table":
        print_found([_as_json(number, each, now) for number, each in found.items()], output)
    elif found:
        print_table(
            ("ID", "STATE", "EXPIRES", "USES LEFT", "TO", "JOINED"), [_row(n, e, now) for n, e in found.items()]
        )
    else:
        click.echo("no invitations")


@invite.command()
@cluster_options
@click.argument("number", metavar="ID")
@output_option
def revoke(which: Which, number: str, output: str) -> None:
    """End an invitation, and disconnect whoever joined by it.

    \b
    Example:
      clustermesh invite revoke 1f6c09ab --context alpha
    """
    outcome, failed = asyncio.run(_revoke(which, number))
    report(outcome, "nobody was disconnected" if failed else f"{number} is revoked", output)
    if failed:
        raise ExceptionGroup(f"{number} lets nobody in, and not all who joined by it are disconnected", failed)


@invite.command()
@cluster_options
@click.option(
    "--listen", type=Listener(), default=f"0.0.0.0:{_PORT}", show_default=True, help="Where to answer newcomers."
)
@click.option("--metrics", type=Listener(), default="", help="Where to tell Prometheus of it.  [default: nowhere]")
def serve(which: Which, listen: str, metrics: str) -> None:
    """Answer newcomers that have a token, until interrupted. It shows the certificate of this cluster's etcd.

    The chart does it in a pod, with clustermesh.invitations.enabled.

    \b
    Example:
      clustermesh invite serve --context alpha --listen 0.0.0.0:9443
    """
    from clustermesh.logs import set_up

    set_up("text", "clustermesh invite serve")
    asyncio.run(_serve(which, listen, metrics))


@click.command()
@cluster_options
@click.argument("token")
@output_option
def join(which: Which, token: str, output: str) -> None:
    """Join the mesh of a cluster that has invited this one; no access to that cluster is needed.

    The same again, while the invitation lasts, completes what was interrupted, and gives both new certificates. A TOKEN
    of - is read from stdin, where nobody sees it among the processes.

    \b
    Example:
      clustermesh join --context beta cmj1.eyJuIjoiYWxwaGEi
    """
    given = sys.stdin.readline() if token == "-" else token
    report(asyncio.run(_join(which, given)), "connected", output)


def _opened(which: Which) -> AbstractAsyncContextManager[Objects]:
    from clustermesh.joining.connect import open_api

    if is_folder(which.context):
        raise Invalid("context", which.context, "is a folder; invitations are between contexts of kubeconfigs")
    return open_api(which.kubeconfig, which.context, which.namespace)


def _state(of: Invitation, now: float) -> str:
    if of.revoked:
        return "revoked"
    if of.is_open(now):
        return "open"
    return "used up" if not of.left else "expired"


def _row(number: str, of: Invitation, now: float) -> tuple[object, ...]:
    until = datetime.fromtimestamp(of.expires, UTC)
    return number, _state(of, now), f"{until:%Y-%m-%dT%H:%M:%SZ}", of.left, of.to, list(of.joined)


def _as_json(number: str, of: Invitation, now: float) -> dict[str, object]:
    until = datetime.fromtimestamp(of.expires, UTC).isoformat()
    joined = list(of.joined)
    return {
        "id": number,
        "state": _state(of, now),
        "expires": until,
        "usesLeft": of.left,
        "to": of.to,
        "joined": joined,
    }


async def _create(
    which: Which, at: tuple[str, int] | None, ttl: float, uses: int, to: str, again: bool
) -> tuple[str, str]:
    """The token, and the number that it is listed under."""
    from clustermesh.joining import audit, invitations, names
    from clustermesh.joining.connect import read_site
    from clustermesh.joining.inviting import fingerprint
    from clustermesh.joining.links import known_peers
    from clustermesh.joining.reading import find_inviting

    async with _opened(which) as objects:
        member = (await read_site(objects, which.context)).member
        if to == member.name:
            raise Invalid("--to", to, "is the cluster that invites; name the one that is to join")
        if again and to not in known_peers(member.entries):
            raise Refused(f"{member.name} is not connected to {to}: without --again it may join")
        if at is None:
            at = await find_inviting(objects)
        pin, made, peers = fingerprint(member.server.cert, member.trusted), list[str](), known_peers(member.entries)

        def edit(data: Mapping[str, bytes]) -> Mapping[str, bytes]:
            changed, *made[:] = invitations.create(data, peers, now=time.time(), ttl=ttl, uses=uses, to=to, again=again)
            return changed

        await objects.change_secret(names.INVITATIONS, edit)
        number, secret = made
        whom = f"{uses} times" + (f", to {to}" if to else "")
        await audit.record(objects, "InvitationCreated", f"{number}, for {ttl:g} s, {whom}")
    host, port = at
    address = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
    token = invitations.Token(cluster=member.name, address=address, fingerprint=pin, id=number, secret=secret)
    return invitations.encode_token(token), number


async def _list(which: Which) -> dict[str, Invitation]:
    from clustermesh.joining import invitations, names

    async with _opened(which) as objects:
        held = await objects.secret(names.INVITATIONS)
    return {number: each for number, value in held.items() if (each := invitations.read(value)) is not None}


async def _revoke(which: Which, number: str) -> tuple[Outcome, list[ClusterMeshError]]:
    """What was done, and what was not: then the invitation stays in the list, and the same again goes on."""
    from clustermesh.joining import audit, invitations, names
    from clustermesh.joining.connect import NotConnected, disconnect, read_site
    from clustermesh.joining.links import Mode
    from clustermesh.standalone.connect import Outcome

    async with _opened(which) as objects:
        site, outcome, gone = await read_site(objects, which.context), Outcome([], []), list[invitations.Invitation]()

        def edit(data: Mapping[str, bytes]) -> Mapping[str, bytes]:
            changed, *gone[:] = invitations.revoke(data, number)
            return changed

        await objects.change_secret(names.INVITATIONS, edit)
        left, failed = list[str](), dict[str, ClusterMeshError]()
        for peer in sorted(gone[0].connected):
            try:
                each = await disconnect(site, peer, None, Mode.BIDIRECTIONAL)
            except NotConnected:
                continue
            except ClusterMeshError as e:
                failed[peer] = e
                continue
            left.append(peer)
            outcome.done.extend(each.done)
            outcome.warnings.extend(each.warnings)
        if not failed:
            await objects.change_secret(
                names.INVITATIONS, lambda data: {key: value for key, value in data.items() if key != number}
            )
        said = f"{number}; disconnected: {', '.join(left) or 'nobody'}"
        said += f"; not disconnected: {', '.join(failed)}" if failed else ""
        await audit.record(objects, "InvitationRevoked", said, warning=bool(failed))
        return outcome, [*failed.values()]


async def _serve(which: Which, listen: str, metrics: str) -> None:
    from clustermesh.joining.inviting import Server

    task = asyncio.current_task()
    assert task is not None
    asyncio.get_running_loop().add_signal_handler(
        signal.SIGTERM, task.cancel
    )  # the first process of a pod has no other
    async with _opened(which) as objects:
        with suppress(asyncio.CancelledError):
            await Server(objects, listen, metrics).run()


async def _join(which: Which, text: str) -> Outcome:
    from clustermesh.joining.connect import read_site
    from clustermesh.joining.invitations import decode_token
    from clustermesh.joining.newcomer import join as join_by

    token = decode_token(text)
    async with _opened(which) as objects:
        return await join_by(await read_site(objects, which.context), token, datetime.now(UTC))
