"""docs/commands.md says what `--help` says."""

from __future__ import annotations

from tools.reference import DOCUMENT, document


def test_the_document_is_what_the_commands_say_of_themselves() -> None:
    assert DOCUMENT.read_text() == document(), "`python -m tools.reference` makes it anew"
