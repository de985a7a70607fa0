"""What is missing is said in one sentence with what to do; two commands never work on one lab at once."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from clustermesh.errors import Refused
from lab import own_folder, preconditions, processes, state
from lab.plan import make_plan
from lab.processes import Process
from lab.state import LabState


def test_without_root_nothing_else_is_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    with pytest.raises(Refused, match="needs root: run it with sudo"):
        preconditions.check()


@pytest.mark.parametrize(
    ("program", "package"), [("etcd", "etcd-server"), ("ip", "iproute2"), ("wireguard-go", "wireguard-go")]
)
def test_a_missing_program_is_named_with_its_package(
    program: str, package: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = shutil.which
    monkeypatch.setattr(shutil, "which", lambda name: None if name == program else real(name))
    monkeypatch.setattr(Path, "exists", lambda path: "wireguard" not in str(path))
    monkeypatch.setattr(subprocess, "run", lambda *_, **__: subprocess.CompletedProcess([], 0, "", ""))
    assert [said for said in preconditions.missing() if f"apt-get install {package}" in said] != []


def test_what_the_kernel_refuses_is_quoted(monkeypatch: pytest.MonkeyPatch) -> None:
    refused = subprocess.CompletedProcess([], 2, "", "Error: Unknown device type.\n")
    monkeypatch.setattr(subprocess, "run", lambda *_, **__: refused)
    said = " ".join(preconditions.missing())
    assert "veth and bridge do not work here (Error: Unknown device type.)" in said
    assert "overlay mounts do not work here" in said


def test_a_missing_datapath_leads_to_make_setup(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(preconditions, "DATAPATH", tmp_path / "absent.bpf.o")
    monkeypatch.setattr(subprocess, "run", lambda *_, **__: subprocess.CompletedProcess([], 0, "", ""))
    assert [said for said in preconditions.missing() if "absent.bpf.o" in said and "make setup" in said] != []


def test_the_datapath_is_looked_for_where_it_is_built() -> None:
    assert (preconditions.DATAPATH.parents[1] / "bpf" / "Makefile").exists()


def test_a_second_command_on_the_same_lab_is_refused_until_the_first_ends(tmp_path: Path) -> None:
    with state.only_one(tmp_path):
        with pytest.raises(Refused, match="at work"), state.only_one(tmp_path):
            pass
        with state.only_one(tmp_path / "other"):
            pass
    with state.only_one(tmp_path):
        pass


def test_a_state_comes_back_as_it_was_written(tmp_path: Path) -> None:
    known = LabState(plan=make_plan(3, 1, 1, str(tmp_path)), processes={"alpha-1": Process(pid=7, start=9)})
    own_folder.take(tmp_path)
    state.save(known)
    assert state.load(tmp_path) == known
    assert state.load(tmp_path / "absent") is None


def test_a_process_is_known_by_its_start_and_a_zombie_is_none() -> None:
    me = processes.identify(os.getpid())
    assert me is not None
    assert processes.lives(me)
    assert not processes.lives(Process(pid=me.pid, start=me.start + 1))
    with subprocess.Popen(["true"]) as child:
        os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)  # it has ended, and nobody has collected it
        assert processes.start_time(child.pid) is None
    assert processes.start_time(child.pid) is None
