"""The probe on a machine that has everything, and in the hands of somebody who may nothing."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

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
