"""Tables on a terminal: columns as wide as they must be, nothing cut off, so that they can be piped into grep."""

from __future__ import annotations

from collections.abc import Sequence

import click

from clustermesh.cli import printable


def print_table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Print `rows` below `head`, left-aligned; the head is bold on a terminal."""
    rows = [[printable(cell) for cell in row] for row in rows]
    widths = [max(map(len, column)) for column in zip(head, *rows, strict=True)]
    click.secho(_line(head, widths), bold=True)
    for row in rows:
        click.echo(_line(row, widths))


def _line(cells: Sequence[str], widths: Sequence[int]) -> str:
    return "  ".join(cell.ljust(width) for cell, width in zip(cells, widths, strict=True)).rstrip()
