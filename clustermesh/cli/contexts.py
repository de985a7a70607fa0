"""Which cluster a command speaks of: a context of a kubeconfig, or where it begins with / or ., a folder."""

from __future__ import annotations

import functools
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import click
from msgspec import Struct

from clustermesh.standalone.context import CLUSTER_FILE, DEFAULT_FOLDER

if TYPE_CHECKING:
    from click.shell_completion import CompletionItem

NAMESPACE: Final = "kube-system"
_LABEL: Final = re.compile(r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?")


class Which(Struct, frozen=True):
    """The cluster that is meant; a `context` of "" is the kubeconfig's current one."""

    context: str
    kubeconfig: str
    namespace: str

    @property
    def shown(self) -> str:
        return self.context or "this cluster"


def cluster_options(function: Any) -> Any:
    """`--context`, `--kubeconfig` and `--namespace`, given to the command as `which`."""

    @functools.wraps(function)
    def command(*, context: str | None, kubeconfig: str, namespace: str, **rest: Any) -> Any:
        return function(which=Which(_chosen(context, kubeconfig), kubeconfig, namespace), **rest)

    for option in (_NAMESPACE, _KUBECONFIG, _CONTEXT):
        command = option(command)
    return command


def _complete(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
    from clustermesh.cli.completion import complete_context

    return complete_context(ctx, param, incomplete)


def _check_namespace(ctx: click.Context, param: click.Parameter, value: str) -> str:
    """It becomes part of paths."""
    if not _LABEL.fullmatch(value):
        raise click.BadParameter(f"{value!r} must be the name of a namespace: at most 63 of a-z, 0-9 and -", ctx, param)
    return value


_NAMESPACE: Final = click.option(
    "-n",
    "--namespace",
    callback=_check_namespace,
    default=NAMESPACE,
    show_default=True,
    metavar="NAME",
    help="Where the mesh is installed.",
)
_KUBECONFIG: Final = click.option(
    "--kubeconfig", default="", metavar="FILE", help="Where contexts are looked up, as kubectl does (also: KUBECONFIG)."
)
_CONTEXT: Final = click.option(
    "--context",
    envvar="CLUSTERMESH_CONTEXT",
    default=None,
    metavar="NAME|DIR",
    shell_complete=_complete,
    help="A context of the kubeconfig or, beginning with / or ., a cluster's folder (also: CLUSTERMESH_CONTEXT). Not "
    "given: /etc/clustermesh where that is a cluster's folder, else the kubeconfig's current context.",
)


def destinations_option(function: Any) -> Any:
    """The option `--destination-context`, given to the command as `destinations`."""
    return click.option(
        "--destination-context",
        "destinations",
        multiple=True,
        metavar="NAME|DIR",
        shell_complete=_complete,
        help="The other cluster; several are given one by one, or with commas between.",
    )(function)


def _chosen(context: str | None, kubeconfig: str) -> str:
    if context is not None:
        return context
    return str(DEFAULT_FOLDER) if not kubeconfig and (DEFAULT_FOLDER / CLUSTER_FILE).exists() else ""


def is_folder(context: str) -> bool:
    return context.startswith(("/", "."))


def folder(context: str) -> Path:
    """The folder that `context` is, or an error that says which of the two is wanted."""
    if not is_folder(context):
        raise click.UsageError(
            f"{context!r} is a context of a kubeconfig, and the other cluster a folder: both must be of one kind (a "
            "folder's path begins with / or .)"
        )
    return Path(context)
