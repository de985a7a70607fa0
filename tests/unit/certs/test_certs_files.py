"""Atomic files: what a reader and a power cut may see."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from certs.files import private_folder, remove_durably, sweep, write_atomically


def test_file_is_readable_by_its_owner_only_whatever_the_umask(tmp_path: Path) -> None:
    before = os.umask(0)
    try:
        write_atomically(tmp_path / "a.key", b"secret")
    finally:
        os.umask(before)
    assert (tmp_path / "a.key").stat().st_mode & 0o777 == 0o600


def test_wider_mode_survives_a_narrow_umask(tmp_path: Path) -> None:
    before = os.umask(0o077)
    try:
        write_atomically(tmp_path / "cluster.yaml", b"name: alpha", 0o644)
    finally:
        os.umask(before)
    assert (tmp_path / "cluster.yaml").stat().st_mode & 0o777 == 0o644


def test_data_is_on_disk_before_the_name_and_the_name_before_the_return(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    steps: list[str] = []
    fsync, replace = os.fsync, os.replace

    def recorded_fsync(descriptor: int) -> None:
        steps.append("folder" if os.path.isdir(f"/proc/self/fd/{descriptor}") else "file")
        fsync(descriptor)

    def recorded_replace(source: str, target: str) -> None:
        steps.append("rename")
        replace(source, target)

    monkeypatch.setattr(os, "fsync", recorded_fsync)
    monkeypatch.setattr(os, "replace", recorded_replace)
    write_atomically(tmp_path / "a", b"new")
    assert steps == ["file", "rename", "folder"]


@pytest.mark.parametrize("broken", ["replace", "fsync", "fchmod"])
def test_failed_write_leaves_the_old_bytes_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, broken: str
) -> None:
    write_atomically(tmp_path / "a", b"old")

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(os, broken, full)
        with pytest.raises(OSError, match="No space left"):
            write_atomically(tmp_path / "a", b"new")
    assert (tmp_path / "a").read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["a"]


def test_link_is_replaced_and_its_target_left_alone(tmp_path: Path) -> None:
    (tmp_path / "elsewhere").write_bytes(b"theirs")
    (tmp_path / "a").symlink_to(tmp_path / "elsewhere")
    write_atomically(tmp_path / "a", b"ours")
    assert (tmp_path / "elsewhere").read_bytes() == b"theirs"
    assert not (tmp_path / "a").is_symlink()


def test_folder_that_was_open_to_all_is_closed(tmp_path: Path) -> None:
    (tmp_path / "certs").mkdir(mode=0o755)
    private_folder(tmp_path / "certs")
    assert (tmp_path / "certs").stat().st_mode & 0o777 == 0o700


def test_sweep_takes_what_killed_writers_left_and_nothing_else(tmp_path: Path) -> None:
    for name in (".x1y2.clustermesh-tmp", "beta", ".hidden", "notes.clustermesh-tmp"):
        (tmp_path / name).write_bytes(b"")
    sweep(tmp_path)
    assert sorted(os.listdir(tmp_path)) == [".hidden", "beta", "notes.clustermesh-tmp"]


def test_removing_what_is_absent_is_success(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"x")
    for _ in range(2):
        remove_durably(tmp_path / "a")
    remove_durably(tmp_path / "no-folder" / "a")
    assert list(tmp_path.iterdir()) == []
