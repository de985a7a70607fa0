"""The demo on Kubernetes clusters, ended in the middle; before the others here make clusters: one run at a time."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from lab.kubernetes import ground


@contextmanager
def demo_under_way() -> Iterator[subprocess.Popen[str]]:
    """Once its nodes have processes."""
    argv = [str(Path(sys.executable).with_name("clustermesh")), "demo", "--kubernetes", "--json"]
    with subprocess.Popen(argv, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        try:
            assert process.stderr is not None
            for line in process.stderr:
                if "starting" in line:
                    break
            while not any(each.startswith("process") for each in ground.left_behind()):
                assert process.poll() is None
            yield process
        finally:
            process.kill()


def _ours() -> list[str]:
    """Processes of control planes and nodes, wherever they are."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            words = path.read_text()
        except OSError:  # ended meanwhile
            continue
        found += [words.replace("\0", " ")] if str(ground.FOLDER) in words else []
    return found


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_demo_that_is_interrupted_leaves_nothing(number: signal.Signals) -> None:
    with demo_under_way() as process:
        process.send_signal(number)
        said, _ = process.communicate(timeout=ground.PATIENCE)
    assert process.returncode not in (0, None)
    outcome = json.loads(said)
    assert (outcome["ok"], outcome["left_behind"]) == (False, [])
    assert ground.left_behind() == []
    assert _ours() == []


def test_what_a_killed_demo_leaves_is_removed_by_the_next_run() -> None:
    with demo_under_way() as process:
        process.kill()
        process.wait()
    assert ground.left_behind() != []
    with ground.only_one(), ground.standing():
        assert _ours() == []
    assert ground.left_behind() == []


def test_a_second_demo_at_the_same_time_is_refused() -> None:
    argv = [str(Path(sys.executable).with_name("clustermesh")), "demo", "--kubernetes"]
    with ground.only_one():
        done = subprocess.run(argv, capture_output=True, text=True, timeout=ground.PATIENCE, check=False)
    assert done.returncode != 0
    assert "wait until it ends" in done.stderr
