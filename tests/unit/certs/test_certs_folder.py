"""A cluster's certificates on disk: made, kept, repaired, renewed, shown."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from certs.check import facts
from certs.errors import CertsError
from certs.folder import initialise, inspect, load_authority, renew
from certs.issue import create_authority
from certs.names import cluster_leaves
from certs.pair import load_pair

NOW = datetime(2026, 6, 1, tzinfo=UTC)
DAY = timedelta(days=1)
LEAVES = cluster_leaves("alpha", ["172.20.1.1"])
NAMES = ["ca", "admin", "local", "remote", "server"]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    initialise(tmp_path / "certs", LEAVES, NOW)
    return tmp_path / "certs"


def _problems(folder: Path, now: datetime = NOW) -> dict[str, str]:
    return {e.name: e.problem for e in inspect(folder, now, LEAVES) if e.problem}


def test_nobody_else_can_read_anything(folder: Path) -> None:
    assert folder.stat().st_mode & 0o777 == 0o700
    assert {p.stat().st_mode & 0o777 for p in folder.iterdir()} == {0o600}
    assert sorted(os.listdir(folder)) == sorted(f"{n}.{e}" for n in NAMES for e in ("crt", "key"))


def test_second_run_changes_nothing(folder: Path) -> None:
    before = {p.name: p.stat().st_ino for p in folder.iterdir()}
    assert initialise(folder, LEAVES, NOW) == {}
    assert {p.name: p.stat().st_ino for p in folder.iterdir()} == before


def test_second_run_completes_whatever_a_kill_left(
    tmp_path: Path, killed_at_every_step: Callable[[Path, Callable[[], object]], Iterator[int]]
) -> None:
    folder = tmp_path / "cluster" / "certs"
    folder.parent.mkdir()
    count = 0
    for _ in killed_at_every_step(folder.parent, lambda: initialise(folder, LEAVES, NOW)):
        initialise(folder, LEAVES, NOW)
        assert _problems(folder) == {}
        assert sorted(os.listdir(folder)) == sorted(f"{n}.{e}" for n in NAMES for e in ("crt", "key"))
        assert initialise(folder, LEAVES, NOW) == {}
        count += 1
    assert count > len(NAMES) * 4


def test_another_endpoint_makes_a_new_server_certificate_and_leaves_the_rest(folder: Path) -> None:
    written = initialise(folder, cluster_leaves("alpha", ["192.0.2.7"]), NOW)
    assert list(written) == ["server"]
    assert "does not name 192.0.2.7" in written["server"]


@pytest.mark.parametrize("broken", ["server.crt", "server.key"])
def test_broken_leaf_is_shown_and_made_again(folder: Path, broken: str) -> None:
    (folder / broken).write_bytes(b"\x00 not a PEM file")
    assert list(_problems(folder)) == ["server"]
    assert list(initialise(folder, LEAVES, NOW)) == ["server"]
    assert _problems(folder) == {}


@pytest.mark.parametrize("lost", ["ca.crt", "ca.key"])
def test_half_an_authority_is_never_replaced(folder: Path, lost: str) -> None:
    (folder / lost).unlink()
    before = sorted(os.listdir(folder))
    with pytest.raises(CertsError, match=f"{lost}: No such file"):
        initialise(folder, LEAVES, NOW)
    assert sorted(os.listdir(folder)) == before


def test_replaced_authority_makes_every_leaf_a_stranger(folder: Path) -> None:
    (folder / "ca.crt").write_bytes(create_authority(NOW).certificate_pem)
    problems = _problems(folder)
    assert set(problems) == set(NAMES)
    assert "not the key of" in problems["ca"]
    assert "another authority of the same name" in problems["server"]


def test_authority_can_be_brought_in_once(tmp_path: Path) -> None:
    shared, other = create_authority(NOW), create_authority(NOW)
    initialise(tmp_path, LEAVES, NOW, authority=shared)
    assert load_authority(tmp_path, NOW).certificate == shared.certificate
    assert initialise(tmp_path, LEAVES, NOW, authority=shared) == {}
    with pytest.raises(CertsError, match="another authority already"):
        initialise(tmp_path, LEAVES, NOW, authority=other)


def test_leaf_brought_as_authority_is_refused_before_anything_is_written(tmp_path: Path, folder: Path) -> None:
    with pytest.raises(CertsError, match="not an authority"):
        initialise(tmp_path / "new", LEAVES, NOW, authority=load_pair(folder, "server"))
    assert os.listdir(tmp_path / "new") == []


def test_expiry_is_shown_before_it_hurts_and_when_it_does(folder: Path) -> None:
    due = {e.name for e in inspect(folder, NOW + 340 * DAY, LEAVES) if e.due and not e.problem}
    assert due == set(LEAVES)
    assert all("expired on 2027-06-01" in p for p in _problems(folder, NOW + 366 * DAY).values())


def test_leaves_about_to_expire_are_made_again_but_not_for_ever_under_an_old_authority(folder: Path) -> None:
    assert set(initialise(folder, LEAVES, NOW + 340 * DAY)) == set(LEAVES)
    end = load_authority(folder, NOW).certificate.not_valid_after_utc
    initialise(folder, LEAVES, end - 20 * DAY)
    assert initialise(folder, LEAVES, end - 19 * DAY) == {}


def test_renewal_keeps_names_and_key_and_adds_hosts(folder: Path) -> None:
    renew(folder, "server", NOW, cluster_leaves("alpha", ["extra.example"])["server"])
    before = load_pair(folder, "server")
    after = renew(folder, "server", NOW + 100 * DAY, LEAVES["server"])
    assert facts(after.certificate).hosts == facts(before.certificate).hosts
    assert {"extra.example", "172.20.1.1"} <= set(facts(after.certificate).hosts)
    assert after.key_pem == before.key_pem
    assert after.certificate.not_valid_after_utc - before.certificate.not_valid_after_utc == 100 * DAY
    assert renew(folder, "server", NOW, fresh_key=True).key_pem != before.key_pem


def test_unreadable_leaf_is_renewed_by_what_it_should_be_or_not_at_all(folder: Path) -> None:
    (folder / "admin.crt").write_bytes(b"")
    with pytest.raises(CertsError, match="its names are not known"):
        renew(folder, "admin", NOW)
    renew(folder, "admin", NOW, LEAVES["admin"])
    assert _problems(folder) == {}


def test_absent_folder_is_shown_as_absent_certificates(tmp_path: Path) -> None:
    entries = inspect(tmp_path / "none", NOW, LEAVES)
    assert [e.name for e in entries] == NAMES
    assert all("No such file" in e.problem for e in entries)


def test_package_costs_nothing_until_a_certificate_is_touched() -> None:
    program = "import sys, certs, certs.files, certs.names; sys.exit('cryptography' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program], timeout=60, check=False).returncode == 0
