"""What is being done now: one line that changes on a terminal, plain lines elsewhere; always on stderr."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import click
from rich.console import Console


@contextmanager
def shown_progress() -> Iterator[Callable[[str], None]]:
    """A function that shows a sentence. On a terminal the last one stays in place, with a spinner, until the end."""
    console = Console(stderr=True)
    if console.is_terminal:
        with console.status("") as status:
            yield status.update
        return
    begun = time.monotonic()
    yield lambda sentence: click.echo(f"{time.monotonic() - begun:5.1f} s  {sentence}", err=True)
