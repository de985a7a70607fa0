"""A file that may be another one is noticed without being read, however it was exchanged."""

from __future__ import annotations

from pathlib import Path

import pytest

from clustermesh.mesh.file_marks import FileMarks


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two files as a Secret volume has them: links that lead through a folder which is swapped."""
    for version in ("one", "two"):
        (tmp_path / version).mkdir()
        for name in ("a", "b"):
            (tmp_path / version / name).write_text("same size")
    (tmp_path / "..data").symlink_to("one")
    for name in ("a", "b"):
        (tmp_path / name).symlink_to(f"..data/{name}")
    return tmp_path


@pytest.fixture
def marks(folder: Path, monkeypatch: pytest.MonkeyPatch) -> FileMarks:
    monkeypatch.setattr("time.time_ns", lambda: 1 << 62)  # long after whatever was written here
    noted = FileMarks()
    noted.note([folder / "a", folder / "b", folder / "absent"])
    return noted


def changed(marks: FileMarks) -> bool:
    """Once around."""
    return any(marks.changed() for _ in range(20))


def test_nothing_noted_counts_as_changed() -> None:
    assert FileMarks().changed()


def test_files_that_stay_are_as_they_were(marks: FileMarks) -> None:
    assert not changed(marks)


def test_a_swapped_volume_is_noticed_though_no_link_in_the_folder_is_another(marks: FileMarks, folder: Path) -> None:
    (folder / "..new").symlink_to("two")
    (folder / "..new").rename(folder / "..data")
    assert changed(marks)


def test_a_file_that_is_written_in_place_or_comes_or_goes_is_noticed(marks: FileMarks, folder: Path) -> None:
    (folder / "one" / "a").write_text("same_size")
    assert changed(marks)
    for happen in ((folder / "absent").touch, (folder / "one" / "b").unlink):
        marks.note([folder / "a", folder / "b", folder / "absent"])
        assert not changed(marks)
        happen()
        assert changed(marks)


def test_what_is_always_looked_at_is_noticed_at_once(marks: FileMarks, folder: Path) -> None:
    assert not marks.changed(folder / "a")
    (folder / "one" / "a").write_text("another")
    assert marks.changed(folder / "a")


def test_a_file_written_just_now_is_not_trusted_to_look_another_when_it_is(folder: Path) -> None:
    """Its next version may come within one tick of the clock that dates it."""
    marks = FileMarks()
    (folder / "one" / "a").write_text("fresh")
    marks.note([folder / "a"])
    assert marks.changed()
