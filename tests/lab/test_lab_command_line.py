"""`clustermesh lab` and `clustermesh demo` as a person runs them: twice, interrupted, killed, run again."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from lab import cgroups, state, teardown
from lab.machine import bin_folder

SMALL = ["--clusters", "1", "--nodes", "1", "--pods", "1"]
SECONDS = 100.0


@pytest.fixture
def lab_folder() -> Iterator[Path]:
    path = Path(f"/run/clustermesh-lab-cli-{os.getpid()}")
    yield path
    assert teardown.down(path) == []


def command(folder: Path, *words: str) -> list[str]:
    split = 1 if words[0] == "demo" else 2
    return [str(bin_folder() / "clustermesh"), *words[:split], "--folder", str(folder), *words[split:]]


def run(folder: Path, *words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command(folder, *words), capture_output=True, text=True, timeout=SECONDS, check=False)


def status(folder: Path) -> dict[str, object]:
    answer: dict[str, object] = json.loads(run(folder, "lab", "status", "-o", "json").stdout)
    return answer


def killed_after(folder: Path, words: list[str], line: str, number: signal.Signals) -> tuple[int, str]:
    """Run a command until it says `line` on stderr, send it `number`; its exit code and standard output."""
    pipe = subprocess.PIPE
    # who runs the tests in the background of a shell ignores SIGINT, and so would whatever they start
    started = ["env", "--default-signal=INT", *command(folder, *words)]
    with subprocess.Popen(started, stdout=pipe, stderr=pipe, text=True) as child:
        assert child.stderr is not None
        for said in child.stderr:
            if line in said:
                child.send_signal(number)
                break
        output, _ = child.communicate(timeout=SECONDS)
        return child.returncode, output


def test_up_after_a_kill_up_twice_exec_and_down_twice(lab_folder: Path) -> None:
    code, _ = killed_after(lab_folder, ["lab", "up", *SMALL], " of 2 pods", signal.SIGKILL)
    assert code == -signal.SIGKILL
    assert "incomplete" in run(lab_folder, "lab", "status").stderr

    again = run(lab_folder, "lab", "up", *SMALL)
    assert again.returncode == 0, again.stderr
    assert "removing what an interrupted lab left behind" in again.stderr
    first = status(lab_folder)
    assert first["standing"] is True

    assert "up already" in run(lab_folder, "lab", "up", *SMALL).stderr
    assert status(lab_folder) == first  # the same processes, none started again
    other = run(lab_folder, "lab", "up", *SMALL[:2], "--nodes", "2")
    assert other.returncode == 1
    assert "lab down" in other.stderr

    assert run(lab_folder, "lab", "exec", "alpha-1", "--", "hostname").stdout == "alpha-1\n"
    assert "10.1.1." in run(lab_folder, "lab", "exec", "alpha/client", "--", "ip", "-4", "address").stdout
    assert run(lab_folder, "lab", "exec", "alpha-1", "--", "sh", "-c", "exit 7").returncode == 7
    assert "must be one of" in run(lab_folder, "lab", "exec", "nobody", "--", "true").stderr

    for _ in range(2):
        assert json.loads(run(lab_folder, "lab", "down", "-o", "json").stdout) == {"left_behind": []}
    assert not lab_folder.exists()


@pytest.mark.parametrize("place", ["/tmp", "/var/lib"])
def test_a_lab_lives_in_any_folder_and_its_machines_see_only_their_own(place: str) -> None:
    folder = Path(f"{place}/clustermesh-lab-cli-{os.getpid()}")
    up = run(folder, "lab", "up", *SMALL)
    try:
        assert up.returncode == 0, up.stderr
        seen = run(folder, "lab", "exec", "alpha-1", "--", "ls", str(folder / "nodes")).stdout
        assert seen.split() == ["alpha-1"]
    finally:
        assert run(folder, "lab", "down").returncode == 0
    assert not folder.exists()


def test_a_folder_that_is_no_lab_stays_and_so_does_the_cgroup_of_its_name(tmp_path: Path) -> None:
    bystander = cgroups.cgroup2_root() / f"bystander-{os.getpid()}"
    folder = tmp_path / bystander.name
    folder.mkdir()
    (folder / "thesis.txt").touch()
    bystander.mkdir()
    sleeper = subprocess.Popen(["sleep", "100"])
    try:
        (bystander / "cgroup.procs").write_text(str(sleeper.pid))
        for words in (["lab", "down"], ["lab", "up", *SMALL], ["demo", "--json"]):
            refused = run(folder, *words)
            assert refused.returncode == 1
            assert f"{folder} is not the folder of a lab" in refused.stderr
        assert sleeper.poll() is None
        assert (folder / "thesis.txt").exists()
    finally:
        sleeper.kill()
        sleeper.wait()
        bystander.rmdir()


def test_a_machine_that_was_killed_is_noticed_and_repaired_by_up(lab_folder: Path) -> None:
    assert run(lab_folder, "lab", "up", *SMALL).returncode == 0
    known, cgroup = state.load(lab_folder), cgroups.lab_cgroup(lab_folder) / "alpha-1"
    assert known is not None
    os.kill(known.processes["alpha-1"].pid, signal.SIGKILL)
    _wait_for_the_end_of_all_in(cgroup)
    assert "incomplete" in run(lab_folder, "lab", "status").stderr
    assert run(lab_folder, "lab", "up", *SMALL).returncode == 0
    assert status(lab_folder)["standing"] is True


def _wait_for_the_end_of_all_in(cgroup: Path) -> None:
    deadline = time.monotonic() + SECONDS
    while cgroups.processes(cgroup):
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_demo_prints_one_object_and_leaves_nothing(lab_folder: Path) -> None:
    shown = run(lab_folder, "demo", "--json")
    outcome = json.loads(shown.stdout)
    assert shown.returncode == 0, shown.stderr
    assert outcome["ok"] is True
    assert (outcome["clusters"], outcome["nodes"], outcome["failed"]) == (2, 4, 0)
    assert set(outcome["answers"]) == {"alpha", "beta"}
    assert sum(outcome["answers"].values()) == outcome["requests"]
    assert set(outcome["failover"]) == {"requests", "failed", "longest_gap_ms"}
    assert set(outcome["agent_restart"]) == {"requests", "failed"}
    assert outcome["encrypted"]["clear_on_wire"] == 0
    assert outcome["encrypted"]["wireguard_packets"] > 0
    assert 0 < outcome["propagation_ms"]["p50"] <= outcome["propagation_ms"]["p99"]
    assert outcome["left_behind"] == []


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("moment", ["making", "of 6 pods", "1. Join"])
def test_an_interrupted_demo_removes_everything(lab_folder: Path, moment: str, number: signal.Signals) -> None:
    code, output = killed_after(lab_folder, ["demo", "--json"], moment, number)
    assert code == 130
    outcome = json.loads(output)
    assert outcome["ok"] is False
    assert outcome["left_behind"] == []
    assert not lab_folder.exists()
    assert not cgroups.lab_cgroup(lab_folder).exists()


def test_a_killed_demo_leaves_no_process_and_the_next_removes_the_rest(lab_folder: Path) -> None:
    code, _ = killed_after(lab_folder, ["demo", "--json"], "of 6 pods", signal.SIGKILL)
    assert code == -signal.SIGKILL
    cgroup = cgroups.lab_cgroup(lab_folder)
    _wait_for_the_end_of_all_in(cgroup)
    assert lab_folder.exists()
    assert run(lab_folder, "lab", "down").returncode == 0
