"""The licences of what is given away."""

from __future__ import annotations

from pathlib import Path

import pytest

from tools.release.licences import collect


def write(root: Path, files: dict[str, str]) -> None:
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)


def packages(root: Path, *pairs: tuple[str, str]) -> list[str]:
    return [f"{root / folder}\t{module} v1\t{root / module}" for folder, module in pairs]


def test_each_text_is_there_once_with_all_whose_it_is_also_those_of_folders_within(tmp_path: Path) -> None:
    write(
        tmp_path,
        {
            "LICENSE": "of nobody here",
            "a/LICENSE": "MIT, by A\n",
            "a/NOTICE.md": "thanks",
            "a/x/y/COPYING": "forked",
            "a/z/LICENSE": "of a package that is not used",
            "a/license.go": "package a",
            "a/x/notices/file": "a folder's name is no notice",
            "b/LICENCE.txt": "  MIT, by A",
            "c/UNLICENSE": "free",
        },
    )
    used = packages(tmp_path, ("b", "b"), ("a", "a"), ("a/x/y", "a"), ("c", "c"))
    text = collect(used)
    parts = [part.strip() for part in text.split("=" * 100)]
    assert parts[1:] == ["a v1", "forked", "a v1", "thanks", "a v1\nb v1", "MIT, by A", "c v1", "free"]
    assert collect(reversed(used)) == text


def test_what_nobody_may_give_away_is_an_error(tmp_path: Path) -> None:
    write(tmp_path, {"a/LICENSE": "MIT", "b/main.go": "package main"})
    with pytest.raises(ValueError, match=r"without a licence: b v1$"):
        collect(packages(tmp_path, ("a", "a"), ("b", "b")))
