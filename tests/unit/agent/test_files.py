"""Files that are whole or absent."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from agent.files import remove, write_atomically


@pytest.fixture
def open_umask() -> object:
    before = os.umask(0)
    yield
    os.umask(before)


def test_file_holds_the_data_and_only_its_owner_reads_it(tmp_path: Path, open_umask: object) -> None:
    write_atomically(tmp_path / "a", b"one")
    write_atomically(tmp_path / "a", b"two")
    assert (tmp_path / "a").read_bytes() == b"two"
    assert (tmp_path / "a").stat().st_mode & 0o777 == 0o600
    assert list(tmp_path.iterdir()) == [tmp_path / "a"]


def test_mode_is_the_one_asked_for_whatever_a_dead_writer_left(tmp_path: Path) -> None:
    left = tmp_path / f".a.{os.getpid()}.tmp"
    left.write_bytes(b"a longer text than the new one")
    left.chmod(0o666)
    write_atomically(tmp_path / "a", b"new")
    assert (tmp_path / "a").read_bytes() == b"new"
    assert (tmp_path / "a").stat().st_mode & 0o777 == 0o600


def test_failed_write_leaves_what_was_there(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    with pytest.raises(OSError, match="Is a directory"):
        write_atomically(tmp_path / "a", b"data")
    assert list(tmp_path.iterdir()) == [tmp_path / "a"]


def test_removing_what_is_absent_is_success(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"x")
    for _ in range(2):
        remove(tmp_path / "a")
    remove(tmp_path / "no-folder" / "a")
    assert list(tmp_path.iterdir()) == []
