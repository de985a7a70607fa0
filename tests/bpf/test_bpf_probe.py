"""The probe on a machine that has everything, and in the hands of somebody who may nothing."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from agent.bpf import features
from agent.bpf.features import State, acceleration, supports
from agent.bpf.links import Hook, Mechanism, Outcome
from agent.bpf.probe import Feature, probe

pytestmark = pytest.mark.root


def test_what_the_other_tests_use_is_there(bpffs: Path) -> None:
    features = {each.name: each for each in probe(bpffs)}
    assert [name for name, each in features.items() if each.needed and not each.present] == []
    assert [name for name, each in features.items() if not each.needed] == ["set_retval", "tcx"]
    assert all(each.sentence and bool(each.remedy) != each.present for each in features.values())


def test_a_missing_bpf_filesystem_is_named_with_its_mount_command(bpffs: Path, tmp_path: Path) -> None:
    (feature,) = [each for each in probe(tmp_path) if each.name == "bpffs"]
    assert feature == Feature(
        "bpffs",
        False,
        True,
        f"no bpf filesystem is mounted at {tmp_path}",
        f"mount -t bpf bpf {tmp_path}",
    )


def test_without_privileges_the_probe_answers_and_says_what_is_lacking(bpffs: Path) -> None:
    code = (
        "from agent.bpf.probe import probe\nfor each in probe(): print(each.name, each.present, each.remedy, sep='|')"
    )
    done = subprocess.run(
        ["setpriv", "--bounding-set=-all", "--inh-caps=-all", sys.executable, "-c", code],
        capture_output=True, text=True, timeout=30, check=True,
    )  # fmt: skip
    rows = dict(line.split("|", 1) for line in done.stdout.splitlines())
    for name in ("bpf", "maps", "sock_addr", "cgroup links", "tcx"):
        assert rows[name].startswith("False|run as root, or with CAP_BPF"), rows
    assert rows["libbpf"].startswith("True")


def test_all_there_is_a_second_way_for_is_native_here(bpffs: Path) -> None:
    assert [each for each in supports(probe(bpffs)) if each.state is not State.NATIVE or each.why] == []


def test_what_a_kernel_has_not_is_told_with_its_reason(bpffs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A helper, a type of the kernel and a kind of map that no kernel has."""
    monkeypatch.setattr(features, "_REDIRECT_PEER", 9999)
    monkeypatch.setattr(features, "_FUNC", 99)
    monkeypatch.setattr(features, "_PAGE", 3)
    found = {each.name: (each.state, each.why) for each in supports([]) if each.state is not State.NATIVE}
    assert found.keys() == {"redirect_peer", "socket destroy", "ring buffer"}
    assert found["redirect_peer"] == (State.OFF, "Invalid argument: invalid func unknown#9999")
    assert found["socket destroy"] == (State.DEGRADED, "the kernel has no bpf_iter_tcp")
    assert found["ring buffer"] == (State.OFF, "Invalid argument")


def test_who_is_the_first_process_of_a_container_sees_no_others_sockets(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "getpid", lambda: 1)
    found = supports([])[-1]
    assert (found.name, found.state) == ("pidfd_getfd", State.DEGRADED)
    assert "no process but the agent's own is seen" in found.why


def test_a_kernel_that_loads_a_program_of_frames_may_accelerate(bpffs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    attached = Hook("xdp_outside", "eth0", Outcome.ATTACHED, Mechanism.XDP, 1)
    assert acceleration("native", [attached], {}).state is State.NATIVE
    monkeypatch.setattr(features, "_FIB_LOOKUP", 9999)
    assert acceleration("native", [attached], {})[1::2] == (State.OFF, "Invalid argument: invalid func unknown#9999")


def test_without_privileges_nothing_is_native_and_the_reason_is_named(bpffs: Path) -> None:
    code = "from agent.bpf.features import supports\nfor each in supports([]): print(each.state, each.why, sep='|')"
    done = subprocess.run(
        ["setpriv", "--bounding-set=-all", "--inh-caps=-all", sys.executable, "-c", code],
        capture_output=True, text=True, timeout=30, check=True,
    )  # fmt: skip
    said = done.stdout.splitlines()
    assert said.pop() == f"{State.DEGRADED}|without CAP_DAC_READ_SEARCH and CAP_SYS_PTRACE"
    assert set(said) <= {f"{state}|Operation not permitted" for state in (State.DEGRADED, State.OFF)}
