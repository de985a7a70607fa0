"""Runs beside each other have ports of their own, also while nobody listens there."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

BEDS = Path(__file__).parents[1] / "beds"
DRAW = "import ports; print(*(ports.free_port() for _ in range(250)), flush=True); input()"


def test_processes_beside_each_other_are_given_different_ports() -> None:
    argv = [sys.executable, "-c", DRAW]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    runs = [subprocess.Popen(argv, cwd=BEDS, text=True, **pipes) for _ in range(6)]
    try:
        drawn = [set(map(int, run.stdout.readline().split())) for run in runs]
    finally:
        for run in runs:
            run.communicate("\n", timeout=60)
    assert [len(each) for each in drawn] == [250] * len(runs)
    assert len(set().union(*drawn)) == 250 * len(runs)
