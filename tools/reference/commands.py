"""docs/commands.md: every command with its options as `--help` shows them."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from typing import Final

import click

from clustermesh.cli import chart, main

_WIDTH: Final = 100
_AGENT: Final = "clustermesh agent"  # the one that is another program
_CHART: Final = "clustermesh-apiserver"
_CNI: Final = "clustermesh-cni-install"
_HEAD: Final = """# Commands

Made by `python -m tools.reference`; a test compares it with what `--help` says.
Where to begin: [install.md](install.md).

Exit codes: 0 done, 1 failed or something is wrong, 2 wrong usage or input, 130 interrupted."""


def document() -> str:
    """The whole file."""
    sections = [*_sections(main, _context(main, "clustermesh")), *_sections(chart.main, _context(chart.main, _CHART))]
    sections.append(_section(_CNI, _help("-c", "from agent.cni.install import main; main()")))
    return "\n\n".join([_HEAD, *sections]) + "\n"


def _context(command: click.Command, name: str, parent: click.Context | None = None) -> click.Context:
    return click.Context(command, parent, name, **dict(command.context_settings) | {"terminal_width": _WIDTH})


def _sections(command: click.Command, context: click.Context) -> Iterator[str]:
    """Of it and of all below it."""
    said = _help("-m", "agent") if context.command_path == _AGENT else command.get_help(context)
    yield _section(context.command_path, said)
    if isinstance(command, click.Group):
        for name in command.list_commands(context):
            below = command.get_command(context, name)
            assert below is not None, name
            yield from _sections(below, _context(below, name, context))


def _section(name: str, said: str) -> str:
    lines = "\n".join(line.rstrip() for line in said.splitlines())
    return f"## {name}\n\n```\n{lines}\n```"


def _help(*program: str) -> str:
    """Of one that click knows nothing of."""
    env = {name: value for name, value in os.environ.items() if not name.startswith("CLUSTERMESH_")}
    argv = [sys.executable, "-P", *program, "--help"]
    return subprocess.run(
        argv, env=env | {"COLUMNS": f"{_WIDTH}"}, check=True, stdout=subprocess.PIPE, text=True
    ).stdout
