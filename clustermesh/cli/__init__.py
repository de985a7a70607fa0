"""The command line. This file starts fast: a command's module is imported when the command is used, not before.

Every error of the project ends here, as one line on stderr that says what to do. Exit codes: 0 done, 1 failed,
2 wrong usage or input, 130 interrupted.
"""

from __future__ import annotations

import importlib
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import click

from certs.errors import CertsError
from clustermesh.errors import ClusterMeshError, Invalid, sentence
from clustermesh.errors import printable as printable

FAILED, USAGE, INTERRUPTED = 1, 2, 130
_FORESEEN: Final = (ClusterMeshError, CertsError, OSError)

# name: (module, attribute, what `clustermesh --help` says)
Commands = Mapping[str, tuple[str, str, str]]
_COMMANDS: Final[Commands] = {
    "init": ("clustermesh.cli.init", "command", "Describe a cluster in a folder and make its certificates."),
    "certs": ("clustermesh.cli.certs", "command", "Make, show, renew and issue certificates."),
    "etcd": ("clustermesh.cli.run", "etcd", "Run the cluster's etcd in the foreground."),
    "apiserver": ("clustermesh.cli.apiserver", "apiserver", "Publish the cluster to its peers."),
    "kvstoremesh": ("clustermesh.cli.kvstoremesh", "command", "Mirror peers into the cluster's etcd."),
    "agent": ("clustermesh.cli.run", "agent", "Run the agent of one node."),
    "hosts": ("clustermesh.cli.hosts", "command", "Keep a Service's addresses in a file as /etc/hosts."),
    "install": ("clustermesh.cli.install", "install", "Put the chart into a Kubernetes cluster."),
    "upgrade": ("clustermesh.cli.install", "upgrade", "Bring it to this version, or to other values."),
    "uninstall": ("clustermesh.cli.install", "uninstall", "Take it out again."),
    "enable": ("clustermesh.cli.enable", "enable", "Open a Kubernetes cluster to others."),
    "disable": ("clustermesh.cli.enable", "disable", "Close it again."),
    "config": ("clustermesh.cli.enable", "config", "Show and change the chart's values."),
    "connect": ("clustermesh.cli.connect", "connect", "Let two clusters see each other."),
    "disconnect": ("clustermesh.cli.connect", "disconnect", "Take two clusters apart, also when one is gone."),
    "invite": ("clustermesh.cli.invite", "invite", "Let a cluster join whose kubeconfig you do not have."),
    "join": ("clustermesh.cli.invite", "join", "Join by a token that somebody was given."),
    "peers": ("clustermesh.cli.connect", "peers", "List the connected clusters."),
    "status": ("clustermesh.cli.status", "command", "Show how the mesh is, and what is wrong with it."),
    "troubleshoot": ("clustermesh.cli.troubleshoot", "command", "Find out why a connected cluster is not seen."),
    "why": ("clustermesh.cli.why", "command", "Tell why a service, an address or an identity is used or not."),
    "node": ("clustermesh.cli.node", "command", "Ask the agent of this node."),
    "sysdump": ("clustermesh.cli.sysdump", "command", "Write an archive with what support needs."),
    "version": ("clustermesh.cli.version", "command", "Show which versions run, here and in a cluster."),
    "completion": ("clustermesh.cli.completion", "command", "Print a script that completes commands in a shell."),
    "lab": ("clustermesh.cli.lab", "command", "A whole mesh on this machine."),
    "demo": ("clustermesh.cli.demo", "command", "Show a service failing over between clusters."),
}
_OF_THE_LAB: Final = frozenset({"lab", "demo"})


class CommandLine(click.Group):
    """A group whose commands are found in a table and imported when used."""

    table = _COMMANDS

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Every name, in the order in which one needs them."""
        return list(self.table)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """The command itself; imports its module."""
        if cmd_name not in self.table:
            return None
        module, attribute, _ = self.table[cmd_name]
        try:
            if cmd_name in _OF_THE_LAB:
                importlib.import_module("lab.plan")  # the package that an image of a control plane leaves out
            command = getattr(importlib.import_module(module), attribute)
        except ModuleNotFoundError as e:
            what = f"`clustermesh {cmd_name}` is not installed here: no module {e.name}"
            remedy = ": `pip install 'clustermesh[lab]'`" if cmd_name in _OF_THE_LAB else ""
            raise click.ClickException(what + remedy) from e
        assert isinstance(command, click.Command)
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """The list in `--help`, from the table alone."""
        with formatter.section("Commands"):
            formatter.write_dl([(name, says) for name, (_, _, says) in self.table.items()])

    def invoke(self, ctx: click.Context) -> Any:
        """Run the command, and turn whatever can be foreseen into one line and an exit code."""
        try:
            return super().invoke(ctx)
        except BrokenPipeError:
            raise  # click ends quietly when `| head` has seen enough
        except KeyboardInterrupt:
            click.echo("interrupted", err=True)
            ctx.exit(INTERRUPTED)
        except BaseExceptionGroup as group:
            errors = list(_leaves(group))
            if any(isinstance(e, KeyboardInterrupt) for e in errors):
                ctx.exit(INTERRUPTED)
            if not all(isinstance(e, _FORESEEN) for e in errors):
                raise
            raise _failure(errors) from group
        except _FORESEEN as e:
            raise _failure([e]) from e


class Failure(click.ClickException):
    """Foreseen errors on their way to the terminal, one line each."""

    exit_code = FAILED

    def __init__(self, errors: Sequence[BaseException]) -> None:
        self.sentences = [_with_remedy(sentence(e)) for e in errors]
        super().__init__("; ".join(self.sentences))

    def show(self, file: Any = None) -> None:
        """Print to stderr."""
        colour = False if os.environ.get("NO_COLOR") else None  # None: where stderr is a terminal
        for line in self.sentences:
            click.echo(f"{click.style('error:', fg='red', bold=True)} {line}", file=file, err=True, color=colour)


class WrongInput(Failure):
    """All of it is the fault of what was given."""

    exit_code = USAGE


def _with_remedy(said: str) -> str:
    return f"{said}: run this as root" if said.endswith("Permission denied") and os.geteuid() else said


def _failure(errors: Sequence[BaseException]) -> Failure:
    return WrongInput(errors) if all(isinstance(e, Invalid) for e in errors) else Failure(errors)


def _leaves(group: BaseExceptionGroup[BaseException]) -> Iterator[BaseException]:
    for error in group.exceptions:
        if isinstance(error, BaseExceptionGroup):
            yield from _leaves(error)
        else:
            yield error


def context_option(function: Any) -> Any:
    """The option `--context DIR`, given to the command as a Path `context`."""
    return click.option(
        "--context",
        type=click.Path(path_type=Path),
        envvar="CLUSTERMESH_CONTEXT",
        default="/etc/clustermesh",
        show_default=True,
        metavar="DIR",
        help="The cluster's folder (also: CLUSTERMESH_CONTEXT).",
    )(function)


def output_option(function: Any) -> Any:
    """The option `-o table|json|yaml`, given to the command as `output`."""
    kinds = click.Choice(["table", "json", "yaml"])
    return click.option("-o", "--output", type=kinds, default="table", show_default=True, help="How to print.")(
        function
    )


@click.group(cls=CommandLine, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(package_name="clustermesh")
@click.pass_context
def main(ctx: click.Context) -> None:
    """Join clusters: global services, identities and encrypted tunnels, in Cilium's wire format.

    \b
    A cluster without Kubernetes is a folder:
      clustermesh init /srv/alpha --name alpha --id 1 --endpoint https://10.0.0.1:2379
      clustermesh etcd --context /srv/alpha
      clustermesh apiserver --context /srv/alpha
      clustermesh connect --context /srv/alpha --destination-context /srv/beta

    \b
    One with Kubernetes is a context of a kubeconfig:
      clustermesh connect --context alpha --destination-context beta

    Exit codes: 0 done, 1 failed or something is wrong, 2 wrong usage or input, 130 interrupted.
    """
    if os.environ.get("NO_COLOR"):
        ctx.color = False
