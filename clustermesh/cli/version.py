"""`clustermesh version`: of this command, and of what runs in clusters."""

from __future__ import annotations

import asyncio
from importlib.metadata import version as installed

import click

from clustermesh.cli import FAILED
from clustermesh.cli.contexts import Which, cluster_options, found_option, is_folder
from clustermesh.cli.table import print_found, print_table


@click.command()
@cluster_options
@click.option("--client", is_flag=True, help="Only of this command; no cluster is asked.")
@found_option
@click.pass_context
def command(ctx: click.Context, which: Which, client: bool, output: str) -> None:
    """Show the version of this command, and those of what runs in a cluster; exits with 1 when they are too far apart.

    \b
    Examples:
      clustermesh version --client
      clustermesh version --context alpha -o json
    """
    ours = installed("clustermesh")
    found: dict[str, str] = {}
    apart: list[str] = []
    if not client and not is_folder(which.context):
        found, apart = asyncio.run(_read(which, ours))
    if output == "table":
        print_table(("WHAT", "VERSION"), [("client", ours), *found.items()])
    else:
        print_found({"client": ours, "servers": found, "skew": apart}, output)
    for sentence in apart:
        click.echo(f"{click.style('problem:', fg='red', bold=True)} {sentence}", err=True)
    if apart:
        ctx.exit(FAILED)


async def _read(which: Which, ours: str) -> tuple[dict[str, str], list[str]]:
    from clustermesh.joining.connect import open_api
    from clustermesh.joining.versions import read_versions, skews

    async with open_api(which.kubeconfig, which.context, which.namespace) as objects:
        found = await read_versions(objects)
    told = list(skews(ours, {which.shown: found}))
    return {name: each.number for name, each in found.items()}, told
