"""`clustermesh lab`: a whole mesh on this machine, for exploring."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from clustermesh.cli import output_option
from clustermesh.cli.table import print_found, print_table

if TYPE_CHECKING:
    from lab.lab import LabStatus

_FOLDER = "/run/clustermesh-lab"


def folder_option(function: Any) -> Any:
    """The option `--folder DIR`, given to the command as a Path `folder`."""
    return click.option(
        "--folder",
        type=click.Path(path_type=Path),
        envvar="CLUSTERMESH_LAB",
        default=_FOLDER,
        show_default=True,
        metavar="DIR",
        help="The lab's folder; another folder is another lab (also: CLUSTERMESH_LAB).",
    )(function)


def families_option(function: Any) -> Any:
    """The option `--ip-families`, given to the command as a list `families`."""
    return click.option(
        "--ip-families",
        "families",
        default="ipv4,ipv6",
        show_default=True,
        metavar="FAMILIES",
        callback=lambda _context, _option, value: value.split(","),
        help="Address families of pods, services and nodes: ipv4, ipv6 or both, the primary one first.",
    )(function)


def size_options(function: Any) -> Any:
    """The options that say how large a lab is: `clusters`, `nodes`, `pods`, `families` and `folder`."""
    for name, text in (
        ("pods", "Pods of the service `web` per cluster."),
        ("nodes", "Nodes per cluster, 1 to 8."),
        ("clusters", "How many clusters, up to 8."),
    ):
        function = click.option(f"--{name}", type=int, default=2, show_default=True, help=text)(function)
    return folder_option(families_option(function))


@click.group()
def command() -> None:
    """A whole mesh on this machine: clusters, nodes, pods, made of the processes that run in production.

    Each node is a set of namespaces of its own; nothing is added to this machine's network. Needs root.

    \b
    Examples:
      clustermesh lab up
      clustermesh lab up --clusters 5 --nodes 2 --pods 2
      clustermesh lab status
      clustermesh lab exec alpha-1 -- clustermesh node service list
      clustermesh lab exec alpha/client -- ip address
      clustermesh lab down
    """


@command.command()
@size_options
@click.option("--connect/--no-connect", default=True, show_default=True, help="Join the clusters.")
@output_option
def up(clusters: int, nodes: int, pods: int, connect: bool, families: list[str], folder: Path, output: str) -> None:
    """Make the lab, or finish one whose making was interrupted. One that is up stays as it is.

    \b
    Examples:
      clustermesh lab up --clusters 2 --nodes 2 --pods 3
      clustermesh lab up --ip-families ipv6,ipv4
    """
    import asyncio

    from clustermesh.cli.progress import shown_progress
    from lab import bring_up, state
    from lab.plan import make_plan

    plan = make_plan(clusters, nodes, pods, str(folder.resolve()), families)
    with state.only_one(Path(plan.folder)), shown_progress() as report:
        lab = asyncio.run(bring_up.up(plan, report, connected=connect))
    _print_status(lab.status(), output)


@command.command(short_help="Remove the lab and count what is left of it.")
@folder_option
@output_option
def down(folder: Path, output: str) -> None:
    """Remove the lab, whole or half-made, and count what is left of it: nothing. Exit code 1 if something is.

    \b
    Example:
      clustermesh lab down
    """
    from lab import preconditions, state, teardown

    preconditions.check_root()
    with state.only_one(folder.resolve()):
        left = teardown.down(folder.resolve())
    if output != "table":
        print_found({"left_behind": left}, output)
    else:
        for line in left:
            click.echo(f"left behind: {line}")
        click.echo(f"the lab is down; left behind: {len(left)}")
    sys.exit(1 if left else 0)


@command.command()
@folder_option
@output_option
def status(folder: Path, output: str) -> None:
    """Show the lab's machines, processes and pods.

    \b
    Example:
      clustermesh lab status -o json
    """
    from lab.lab import Lab

    _print_status(Lab.open(folder.resolve()).status(), output)


@command.command(
    name="exec",
    short_help="Run a command on a node or in a pod.",
    context_settings={"ignore_unknown_options": True, "allow_interspersed_args": False},
)
@click.argument("where", metavar="NODE-OR-POD")
@click.argument("argv", metavar="-- COMMAND...", nargs=-1, type=click.UNPROCESSED, required=True)
@folder_option
def execute(where: str, argv: tuple[str, ...], folder: Path) -> None:
    """Run a command on a node (alpha-1, alpha-control, internet) or in a pod (alpha/web-1).

    \b
    Examples:
      clustermesh lab exec alpha-1 -- clustermesh node backend list
      clustermesh lab exec alpha/client -- bash
    """
    from lab import preconditions
    from lab.lab import Lab

    preconditions.check_root()
    wanted = argv[1:] if argv[0] == "--" else argv
    if not wanted:
        raise click.UsageError("say what to run: clustermesh lab exec NODE-OR-POD -- COMMAND...")
    entered, environment = Lab.open(folder.resolve()).command(where, wanted)
    os.execvpe(entered[0], entered, environment | {"TERM": os.environ.get("TERM", "dumb")})


def _print_status(found: LabStatus, output: str) -> None:
    if output == "json":
        import msgspec

        click.echo(msgspec.json.encode(found).decode())
        return
    rows = [
        (m.name, " ".join(m.addresses), "up" if m.lives else "dead", _processes(m.services)) for m in found.machines
    ]
    print_table(("MACHINE", "ADDRESS", "STATE", "PROCESSES"), rows)
    click.echo()
    pods = [(f"{pod.cluster}/{pod.name}", pod.node, " ".join(pod.addresses), pod.ready) for pod in found.pods]
    print_table(("POD", "NODE", "ADDRESS", "READY"), pods)


def _processes(services: Any) -> str:
    """Names, with what is not as it should be: down, or started again."""
    again = (f" (started {each.starts} times)" if each.starts > 1 else "" for each in services)
    return ", ".join(each.name + (more if each.pid else " (down)") for each, more in zip(services, again, strict=True))
