"""BCC's programs for beds: compiled once, kept in a folder of theirs."""

from __future__ import annotations

import subprocess
from collections.abc import Mapping
from fcntl import LOCK_EX, flock
from pathlib import Path

import pytest

from agent.bpf import bcc


def compiled(cache: Path, constants: Mapping[str, int]) -> Path:
    """`cache`, once they are in it: it takes half a minute, and whoever else wants the same waits. What is missing is
    skipped by its name."""
    if subprocess.run(["/usr/bin/python3", "-c", "import bcc"], capture_output=True, check=False).returncode:
        pytest.skip("python3-bpfcc is missing: nothing can be compiled with BCC")
    if not any(Path("/usr/src").glob("linux-headers-*")):
        pytest.skip("linux-headers are missing (any version): BCC cannot compile")
    cache.mkdir(exist_ok=True)
    with (cache / "lock").open("w") as lock, pytest.MonkeyPatch.context() as patched:
        flock(lock, LOCK_EX)
        patched.setattr(bcc, "_TIME", 270.0)  # of the 300 s of a test: five more workers have files to work at
        bcc.compiled(bcc.find_sources(), constants, cache)
    return cache
