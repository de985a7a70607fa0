"""What the commands that look into a mesh share: where to look, and an agent that is asked if it is there."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
from click.core import ParameterSource

from clustermesh.agent_socket import DEFAULT_SOCKET, ask
from clustermesh.cli.values import Number
from clustermesh.errors import Refused, Unavailable, sentence
from clustermesh.standalone.context import CLUSTER_FILE, Context, load


def peers_option(function: Any) -> Any:
    """The option `--clustermesh-config DIR`, given to the command as a Path or None."""
    return click.option(
        "--clustermesh-config",
        type=click.Path(path_type=Path),
        metavar="DIR",
        help="The connected clusters, one file each.  [default: CONTEXT/peers]",
    )(function)


def socket_option(function: Any) -> Any:
    """The option `--socket PATH`, given to the command as a Path or None, for `ask_agent`."""
    return click.option(
        "--socket",
        type=click.Path(path_type=Path),
        metavar="PATH",
        help=f"The agent's socket, which also tells its folder.  [default: {DEFAULT_SOCKET}, where there is one]",
    )(function)


def timeout_option(what: str) -> Callable[[Any], Any]:
    """The option `--timeout SECONDS`; its help says `what` it bounds."""
    return click.option(
        "--timeout",
        type=Number(min=0.1, max=60),
        default=3.0,
        show_default=True,
        metavar="SECONDS",
        help=what,
    )


def ask_agent(path: Path | None, method: str, params: dict[str, Any] | None = None) -> Any:
    """What it says; None where none was asked for and none is there, or may be asked."""
    if path is None and not DEFAULT_SOCKET.exists():
        return None
    try:
        return ask(path or DEFAULT_SOCKET, method, params)
    except (Refused, Unavailable) as e:
        if path is not None:
            raise
        click.echo(f"{click.style('warning:', fg='yellow', bold=True)} {sentence(e)}", err=True)
        return None


def is_folder_given() -> bool:
    """Whether somebody said which folder to look into, and it is not the usual one."""
    return click.get_current_context().get_parameter_source("context") is not ParameterSource.DEFAULT


def find_cluster(context: Path, status: object, *, needed: bool) -> Context | None:
    """The cluster to look into: of the folder that was given as --context, else of the one that the agent says is its
    own in its `status` (None where none answered), else of the usual one; None where it is neither given nor `needed`
    nor there."""
    given = is_folder_given()
    told = status.get("context") if isinstance(status, dict) and not given else None
    folder = Path(told) if isinstance(told, str) and told else context
    if not (given or needed or (folder / CLUSTER_FILE).exists()):
        return None
    return load(folder)
