"""docs/commands.md and docs/reference.md, made of the code; `python -m tools.reference` writes both."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Final

ROOT: Final = Path(__file__).parents[2]
COMMANDS: Final = ROOT / "docs" / "commands.md"
REFERENCE: Final = ROOT / "docs" / "reference.md"


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """In Markdown."""
    lines = [" | ".join(cell.replace("|", "\\|").replace("\n", " ") for cell in row) for row in (head, *rows)]
    lines.insert(1, " | ".join("---" for _ in head))
    return "\n".join(f"| {line} |".replace("|  |", "| |").replace("|  |", "| |") for line in lines)


def code(text: str) -> str:
    return f"`{text}`" if text else ""
