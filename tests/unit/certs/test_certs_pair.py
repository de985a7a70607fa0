"""Certificate and key change as one, whatever interrupts."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path

import pytest

from certs.errors import CertsError
from certs.issue import Pair, create_authority, issue
from certs.names import Leaf
from certs.pair import load_pair, remove_pair, write_pair

NOW = datetime(2026, 6, 1, tzinfo=UTC)
AUTHORITY = create_authority(NOW)
States = Callable[[Path, Callable[[], object]], Iterator[int]]


def _leaf(key: Pair | None = None) -> Pair:
    return issue(AUTHORITY, Leaf("remote-alpha"), NOW, None if key is None else key.key)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "certs").mkdir()
    return tmp_path / "certs"


def test_killed_between_key_and_certificate_the_pair_is_whole_old_or_new(
    folder: Path, killed_at_every_step: States
) -> None:
    old, new = _leaf(), _leaf()
    write_pair(folder, "remote", old)
    seen = []
    for _ in killed_at_every_step(folder, lambda: write_pair(folder, "remote", new)):
        found = load_pair(folder, "remote")
        seen.append(found.certificate == new.certificate)
        assert found.certificate in (old.certificate, new.certificate)
        assert load_pair(folder, "remote").certificate == found.certificate, "the second look must agree with the first"
        assert sorted(os.listdir(folder))[-2:] == ["remote.crt", "remote.key"], "no key is left lying about"
    assert seen == sorted(seen), "once new, never old again"
    assert not seen[0]
    assert seen[-1]


def test_killed_while_laid_down_for_the_first_time_it_is_absent_or_whole(
    folder: Path, killed_at_every_step: States
) -> None:
    new = _leaf()
    for _ in killed_at_every_step(folder, lambda: write_pair(folder, "remote", new)):
        try:
            assert load_pair(folder, "remote").certificate == new.certificate
        except CertsError as e:
            assert "No such file" in str(e)  # noqa: PT017 - either outcome is right, a third one is not
        write_pair(folder, "remote", new)
        assert load_pair(folder, "remote").certificate == new.certificate


def test_killed_twice_the_pair_is_whole_one_of_all_three(folder: Path, killed_at_every_step: States) -> None:
    old, new, newest = _leaf(), _leaf(), _leaf()
    write_pair(folder, "remote", old)
    for _ in killed_at_every_step(folder, lambda: write_pair(folder, "remote", new)):
        for _ in killed_at_every_step(folder, lambda: write_pair(folder, "remote", newest)):
            found = load_pair(folder, "remote").certificate
            assert found in (old.certificate, new.certificate, newest.certificate)
        assert found == newest.certificate


def test_same_key_changes_one_file_only(folder: Path) -> None:
    old = _leaf()
    write_pair(folder, "remote", old)
    before = (folder / "remote.key").stat()
    write_pair(folder, "remote", _leaf(old))
    assert (folder / "remote.key").stat().st_ino == before.st_ino
    assert sorted(os.listdir(folder)) == ["remote.crt", "remote.key"]


def test_both_files_are_for_their_owner_only(folder: Path) -> None:
    write_pair(folder, "remote", _leaf())
    assert {p.name: p.stat().st_mode & 0o777 for p in folder.iterdir()} == {"remote.crt": 0o600, "remote.key": 0o600}


def test_key_of_another_certificate_is_told_apart(folder: Path) -> None:
    write_pair(folder, "a", _leaf())
    write_pair(folder, "b", _leaf())
    (folder / "a.key").write_bytes((folder / "b.key").read_bytes())
    with pytest.raises(CertsError, match=r"a\.key is not the key of .*a\.crt"):
        load_pair(folder, "a")


def test_removed_pair_leaves_nothing_and_again_is_fine(folder: Path, killed_at_every_step: States) -> None:
    write_pair(folder, "a", _leaf())
    for _ in killed_at_every_step(folder, lambda: remove_pair(folder, "a")):
        remove_pair(folder, "a")
        assert os.listdir(folder) == []
