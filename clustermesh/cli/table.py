"""Tables on a terminal: columns as wide as they must be, nothing cut off, so that they can be piped into grep."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence

import click

from clustermesh.cli import printable

_WORDS = {True: "yes", False: "no", None: "-", "": "-"}


def print_table(head: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    """Print `rows` below `head`, left-aligned; the head is bold on a terminal. What is missing or empty is a "-"."""
    cells = [[_cell(each) for each in row] for row in rows]
    widths = [max(map(len, column)) for column in zip(head, *cells, strict=True)]
    click.secho(_line(head, widths), bold=True)
    for row in cells:
        click.echo(_line(row, widths))


def print_json(found: object) -> None:
    """Indented, and in ASCII, for strings may be a peer's. Python's own indents ten times as slowly."""
    import msgspec

    click.echo(msgspec.json.format(json.dumps(found), indent=2))


def print_found(found: object, output: str) -> None:
    """As JSON, or as YAML."""
    if output == "json":
        print_json(found)
        return
    from clustermesh.yaml_file import dump_yaml

    click.echo(dump_yaml(json.loads(json.dumps(found))).decode(), nl=False)


def _cell(value: object) -> str:
    if isinstance(value, list | tuple):
        value = ", ".join(map(str, value))
    return printable(str(_WORDS.get(value, value) if isinstance(value, bool | str | None) else value))


def _line(cells: Sequence[str], widths: Sequence[int]) -> str:
    return "  ".join(cell.ljust(width) for cell, width in zip(cells, widths, strict=True)).rstrip()
