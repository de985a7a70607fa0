"""`clustermesh completion`: what a shell has to know to complete commands, flags and contexts."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path
from typing import Any, Final

import click
from click.shell_completion import BashComplete, CompletionItem, FishComplete, ShellComplete, ZshComplete

from clustermesh.errors import ClusterMeshError

_PROGRAM: Final = "clustermesh"
_VARIABLE: Final = "_CLUSTERMESH_COMPLETE"
"""In which click's scripts say what they ask."""


class _Bash(BashComplete):
    @staticmethod
    def _check_version() -> None:
        """Which bash is first in PATH says nothing of the one that will read the script."""


_SHELLS: Final[dict[str, type[ShellComplete]]] = {"bash": _Bash, "zsh": ZshComplete, "fish": FishComplete}


@click.command()
@click.argument("shell", type=click.Choice(list(_SHELLS)))
def command(shell: str) -> None:
    """Print a script that completes commands, flags and contexts.

    \b
    Examples:
      source <(clustermesh completion bash)
      clustermesh completion zsh | sudo tee /usr/local/share/zsh/site-functions/_clustermesh
      clustermesh completion fish | source
    """
    from clustermesh.cli import main

    click.echo(_SHELLS[shell](main, {}, _PROGRAM, _VARIABLE).source())


def complete_context(ctx: click.Context, _param: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """The contexts of the kubeconfig; the shell's own folders where one is begun."""
    if incomplete.startswith(("/", ".")):
        return [CompletionItem(incomplete, type="dir")]
    before, comma, begun = incomplete.rpartition(",")
    found = _contexts(ctx.params.get("kubeconfig") or "")
    return [CompletionItem(f"{before}{comma}{name}") for name in found if name.startswith(begun)]


def _contexts(kubeconfig: str) -> list[str]:
    """Their names, of whatever can be read: who completes is never bothered with what is wrong."""
    from clustermesh.kube.kubeconfig import MOST_BYTES
    from clustermesh.yaml_file import mapping, parse_yaml, read_bytes

    names = dict[str, None]()
    for text in (kubeconfig or os.environ.get("KUBECONFIG") or "~/.kube/config").split(os.pathsep):
        with suppress(ClusterMeshError, AttributeError, TypeError):
            document: Any = mapping(parse_yaml(read_bytes(Path(text).expanduser(), MOST_BYTES), text), text)
            names |= dict.fromkeys(str(each["name"]) for each in document.get("contexts") or () if "name" in each)
    return list(names)
