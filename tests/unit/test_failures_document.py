"""docs/failures.md names tests that exist, at least one for each row."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator, Set
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
TESTS = ROOT / "tests"
ROWS = [line for line in (ROOT / "docs" / "failures.md").read_text().splitlines() if line.startswith("| ")][2:]
NAMED = re.compile(r"(?P<lab>lab )?`(?P<quoted>[^`]+)`|(?P<path>tests/[\w/.]+)|(?P<transcript>\w+)\.txt")
NO_TESTS = {"make soak"}


def defined(folder: Path) -> Iterator[str]:
    """Every test and class of tests below `folder`, and every transcript by its stem."""
    for path in folder.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
                yield node.name
    yield from (path.stem for path in folder.rglob("transcripts/*.txt"))


def named(row: str) -> Iterator[tuple[str, Path]]:
    """Each test that the last cell of `row` names, and below which folder it is."""
    for found in NAMED.finditer(row.rstrip(" |").rpartition(" | ")[2]):
        name = found["quoted"] or found["path"] or found["transcript"]
        if name not in NO_TESTS:
            yield name, TESTS / "lab" if found["lab"] else TESTS


@pytest.fixture(scope="module")
def known() -> dict[Path, Set[str]]:
    return {folder: set(defined(folder)) for folder in (TESTS, TESTS / "lab")}


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row[2:50].strip())
def test_every_row_names_tests_that_exist(row: str, known: dict[Path, Set[str]]) -> None:
    names = list(named(row))
    assert names
    for name, folder in names:
        there = (ROOT / name).exists() if name.startswith("tests/") else name in known[folder]
        assert there, f"{name} is not in {folder.relative_to(ROOT)}"
