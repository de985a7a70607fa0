"""A lab touches nothing but what a lab made: no other folder, no other cgroup."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from clustermesh.errors import Refused
from lab import cgroups, own_folder, state, teardown
from lab.plan import make_plan
from lab.state import LabState


@pytest.fixture(autouse=True)
def no_cgroup2(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cgroup tree that is a plain folder, with somebody's cgroup of the name that the lab's folder has."""
    root = tmp_path / "cgroup"
    (root / "precious").mkdir(parents=True)
    monkeypatch.setattr(cgroups, "cgroup2_root", lambda: root)
    return root


@pytest.fixture
def precious(tmp_path: Path) -> Path:
    folder = tmp_path / "precious"
    folder.mkdir()
    (folder / "thesis.txt").write_text("ten years")
    return folder


@pytest.mark.parametrize("decoy", ["state.json", ".clustermesh-lab"])
def test_a_folder_that_is_no_lab_is_never_removed(precious: Path, no_cgroup2: Path, decoy: str) -> None:
    (precious / decoy).write_text("{}")
    with pytest.raises(Refused, match=f"{precious} is not the folder of a lab: only .*--folder"):
        teardown.down(precious)
    assert (precious / "thesis.txt").read_text() == "ten years"
    assert (no_cgroup2 / "precious").exists()


def test_a_folder_that_is_no_lab_is_never_made_one(precious: Path) -> None:
    with pytest.raises(Refused, match="is not the folder of a lab"):
        own_folder.take(precious)
    assert [path.name for path in precious.iterdir()] == ["thesis.txt"]


def test_a_copy_of_a_lab_and_a_lab_that_was_moved_are_not_removed(tmp_path: Path) -> None:
    own_folder.take(tmp_path / "lab")
    state.save(LabState(plan=make_plan(folder=str(tmp_path / "lab"))))
    shutil.copytree(tmp_path / "lab", tmp_path / "copy")
    with pytest.raises(Refused):
        teardown.down(tmp_path / "copy")
    assert state.load(tmp_path / "copy") is None


def test_an_empty_folder_is_taken_and_what_was_taken_is_removed(tmp_path: Path) -> None:
    folder = tmp_path / "lab"
    for _ in range(2):
        folder.mkdir(exist_ok=True)
        assert teardown.down(folder) == []
        assert folder.exists()
        own_folder.take(folder)
        (folder / "nodes").mkdir()
        (folder / "link").symlink_to(tmp_path)
        assert teardown.down(folder) == []
        assert not folder.exists()
    assert teardown.down(folder) == []


def test_no_two_labs_and_nothing_else_share_a_name(tmp_path: Path) -> None:
    one, other = tmp_path / "one" / "lab", tmp_path / "other" / "lab"
    names = {own_folder.identity(folder) for folder in (one, other, Path("/system.slice"))}
    assert len(names) == 3
    assert all(name.startswith("clustermesh-lab-") for name in names)
    other.parent.symlink_to(one.parent)
    assert own_folder.identity(other) == own_folder.identity(one)


def test_a_long_path_is_locked_like_any_other(tmp_path: Path) -> None:
    long = tmp_path / ("x" * 200)
    with state.only_one(long):
        with pytest.raises(Refused, match="at work"), state.only_one(long):
            pass
        with state.only_one(long.with_name("y" * 200)):
            pass
