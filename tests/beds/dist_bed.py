"""`make dist`, run."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Final

ROOT: Final = Path(__file__).parents[2]
_SECONDS: Final = "1750000000"


def build(out: Path, *what: str, **environment: str) -> dict[str, bytes]:
    """The files of a run of `make dist`."""
    argv = [sys.executable, "-m", "tools.release", "--out", str(out), *what]
    subprocess.run(argv, cwd=ROOT, env={**os.environ, "SOURCE_DATE_EPOCH": _SECONDS, **environment}, check=True)
    return contents(out)


def contents(out: Path) -> dict[str, bytes]:
    return {str(path.relative_to(out)): path.read_bytes() for path in out.rglob("*") if path.is_file()}
