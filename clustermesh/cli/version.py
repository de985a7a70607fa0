"""`clustermesh version`: of this command, of the Helm that it calls, and of what runs in clusters."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from importlib.metadata import version as installed
from typing import Final, NamedTuple

import click

from clustermesh.cli import FAILED, output_option
from clustermesh.cli.contexts import Which, cluster_options, is_folder
from clustermesh.cli.table import print_found, print_table

_PATIENCE: Final = 3.0
"""Seconds for a Helm to say its version."""


@click.command()
@cluster_options
@click.option("--client", is_flag=True, help="Only of this command; no cluster is asked.")
@output_option
@click.pass_context
def command(ctx: click.Context, which: Which, client: bool, output: str) -> None:
    """Show the version of this command, and those of what runs in a cluster; exits with 1 when they are too far apart.

    More than one minor version is. While an upgrade is under way there are pods of two versions. Beside it stands the
    Helm that `clustermesh install` calls.

    \b
    Examples:
      clustermesh version --client
      clustermesh version --context alpha -o json
    """
    from clustermesh.joining.helm_program import find_program

    ours = installed("clustermesh")
    helm = asyncio.run(find_program(patience=_PATIENCE))
    servers = list[_Server]()
    skewed = list[str]()
    if not client and not is_folder(which.context):
        servers, skewed = asyncio.run(_read(which, ours))
    if output == "table":
        own = [("client", ours, None, None), (f"helm {helm.path}".strip(), helm.version, None, None)]
        rows = [(each.name, each.version, _signed(each.apart), _counted(each.pods)) for each in servers]
        print_table(("WHAT", "VERSION", "MINORS AHEAD", "PODS"), [*own, *rows])
    else:
        helm_found = {"version": helm.version, "path": helm.path} if helm.path else None
        print_found({"client": ours, "helm": helm_found, **_as_json(servers), "skew": skewed}, output)
    for sentence in skewed:
        click.echo(f"{click.style('problem:', fg='red', bold=True)} {sentence}", err=True)
    if skewed:
        ctx.exit(FAILED)


class _Server(NamedTuple):
    """`apart` is how many minor versions it is ahead of us, `pods` how many there are by version."""

    name: str
    version: str
    apart: int | None
    pods: dict[str, int]


async def _read(which: Which, ours: str) -> tuple[list[_Server], list[str]]:
    from clustermesh.joining.connect import open_api
    from clustermesh.joining.member import Version
    from clustermesh.joining.versions import apart, read_running, read_versions, skews

    async with open_api(which.kubeconfig, which.context, which.namespace) as objects:
        found, running = await asyncio.gather(read_versions(objects), read_running(objects))
    told, us = list(skews(ours, {which.shown: found})), Version("clustermesh", ours)
    return [
        _Server(name, each.number, apart(us, each), running.get(name.partition("/")[2], {}))
        for name, each in found.items()
    ], told


def _signed(number: int | None) -> str:
    return "" if number is None else f"{number:+}" if number else "0"


def _counted(pods: dict[str, int]) -> str:
    return ", ".join(f"{count} of {number}" for number, count in sorted(pods.items()))


def _as_json(servers: Sequence[_Server]) -> dict[str, object]:
    return {
        "servers": {each.name: each.version for each in servers},
        "minorsAhead": {each.name: each.apart for each in servers},
        "pods": {each.name: each.pods for each in servers},
    }
