"""`clustermesh certs status` and `certs rotate`: the certificates of running clusters, by contexts or by folders."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

import click

from clustermesh.cli import FAILED, output_option
from clustermesh.cli.contexts import Which, cluster_options, destinations_option, folder, is_folder
from clustermesh.cli.entries import as_json, fault_of, row
from clustermesh.cli.table import print_found, print_table
from clustermesh.cli.values import Duration
from clustermesh.errors import Invalid, printable
from clustermesh.standalone.context import load

if TYPE_CHECKING:
    from certs.folder import Entry
    from clustermesh.joining.holders import Holder

_PODS = 180.0
"""Seconds that kubelets may take to bring a Secret to their pods."""
_PROCESSES = 15.0
"""And processes to look at their files."""


@click.command()
@cluster_options
@output_option
def status(which: Which, output: str) -> None:
    """Show every certificate of a cluster; exit code 1 if anything is unfit or expires soon.

    Those that it shows to its peers are among them.

    \b
    Examples:
      clustermesh certs status --context alpha
      clustermesh certs status --context /srv/alpha -o json
    """
    now = datetime.now(UTC)
    found, under_way = asyncio.run(_found(which, now))
    if output != "table":
        print_found([{"place": place, **as_json(entry, now)} for place, entry in found], output)
    else:
        head = ("PLACE", "NAME", "COMMON NAME", "STATE", "EXPIRES", "DAYS", "HOSTS")
        print_table(head, [(place, *row(entry, now)) for place, entry in found])
    if under_way:
        click.echo(f"its authority is being replaced: `clustermesh certs rotate --ca` goes on{under_way}", err=True)
    faults = [f"{place}: {fault}" for place, entry in found if (fault := fault_of(entry))]
    for fault in faults:
        click.echo(f"{click.style('problem:', fg='red', bold=True)} {printable(fault)}", err=True)
    if faults:
        raise SystemExit(FAILED)


@click.command()
@cluster_options
@destinations_option
@click.option("--ca", "authority", is_flag=True, help="The authority, too.")
@click.option(
    "--settle",
    type=Duration(),
    help="How long until every process has read what was written.  [default: 3m; 15s of folders]",
)
@click.option(
    "--joining",
    "joins",
    multiple=True,
    metavar="NAMES",
    help="With --ca: peers that you have no context of. The old authority is trusted until each has joined again, by "
    "`clustermesh invite create --again`.",
)
def rotate(
    which: Which, destinations: tuple[str, ...], authority: bool, settle: float | None, joins: tuple[str, ...]
) -> None:
    """Issue all that a cluster's authority signed again, with other keys, while the mesh works.

    With --ca the authority is replaced. For a while both are trusted; its etcd is started again twice, for a second or
    two, and readers come back by themselves. Its peers hold certificates that it signed: name all of them. Interrupted,
    the same command goes on.

    \b
    Examples:
      clustermesh certs rotate --context alpha
      clustermesh certs rotate --ca --context alpha --destination-context beta,gamma
      clustermesh certs rotate --ca --context alpha --destination-context beta --joining delta
      clustermesh certs rotate --ca --context /srv/alpha --destination-context /srv/beta
    """
    contexts = [which.context, *dict.fromkeys(each for text in destinations for each in text.split(",") if each)]
    if settle is None:
        settle = _PROCESSES if is_folder(which.context) else _PODS
    joining = frozenset(each for text in joins for each in text.split(",") if each)
    if joining and (not authority or is_folder(which.context)):
        raise Invalid("--joining", ",".join(sorted(joining)), "must stand beside --ca and contexts of a kubeconfig")
    asyncio.run(_rotate(which, contexts, authority, timedelta(seconds=settle), joining))


async def _rotate(
    which: Which, contexts: Sequence[str], authority: bool, settle: timedelta, joining: frozenset[str]
) -> None:
    from clustermesh.joining.rotating import rotate_authority, rotate_leaves

    async with _held(which, contexts) as holders:
        if authority:
            await rotate_authority(holders, settle, click.echo, joining)
        else:
            await rotate_leaves(holders, datetime.now(UTC), click.echo)


async def _found(which: Which, now: datetime) -> tuple[list[tuple[str, Entry]], str]:
    """Every certificate, and since when the authority is being replaced."""
    from certs.folder import Entry, inspect_files
    from certs.rotation import SINCE, rotation_of

    async with _held(which, [which.context]) as (holder,):
        files = {place: await holder.read(place) for place in holder.places}
        found = [(place, entry) for place, data in files.items() for entry in inspect_files(data, now)]
        wanted = holder.expected.items()
        found += [
            (place, Entry(name, None, "is not there", due=False))
            for place, names in wanted
            for name in names
            if f"{name}.crt" not in files[place]
        ]
        authority = files[holder.places[0]]
        since = authority.get(SINCE, b"").decode(errors="replace")
        return found, f" (since {since})" if rotation_of(authority) is not None else ""


@asynccontextmanager
async def _held(which: Which, contexts: Sequence[str]) -> AsyncIterator[list[Holder]]:
    from clustermesh.joining.connect import open_api, read_site
    from clustermesh.joining.holders import InFolder, hold_secrets

    if any(map(is_folder, contexts)):
        yield [InFolder(load(folder(each))) for each in contexts]
        return
    async with AsyncExitStack() as stack:
        apis = [await stack.enter_async_context(open_api(which.kubeconfig, each, which.namespace)) for each in contexts]
        yield [await hold_secrets(await read_site(api, each)) for api, each in zip(apis, contexts, strict=True)]
