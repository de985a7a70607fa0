"""docs/commands.md says what `--help` says."""

from __future__ import annotations

import subprocess
import sys

from tools.reference import DOCUMENT


def test_the_document_is_what_the_commands_say_of_themselves() -> None:
    """In a process of its own: click keeps the help option of a command as it was first asked for."""
    argv = [sys.executable, "-c", "from tools.reference import document; print(document(), end='')"]
    found = subprocess.run(argv, cwd=DOCUMENT.parents[1], check=True, stdout=subprocess.PIPE, text=True).stdout
    assert DOCUMENT.read_text() == found, "`python -m tools.reference` makes it anew"
