"""The wheel, which carries the eBPF programs compiled and as sources, and the chart."""

from __future__ import annotations

import gzip
import io
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import Final

from tools.release.archive import read_tar, write_tar

PROGRAMS: Final = ("clustermesh.bpf.o", "downgrade.bpf.o", "evict.bpf.o")
CHART: Final = "charts/clustermesh/"
_FIRST: Final = 315532800  # 1980, where the time of a wheel's files begins


def stage(checkout: Path, tree: Path, names: Iterable[str], seconds: int) -> None:
    """A copy of the files `names` of the checkout, with eBPF programs, their sources and the chart where the packages
    look for their own."""
    for name in names:
        _copy(checkout / name, tree / name)
        if name.startswith(CHART):
            _copy(checkout / name, tree / "clustermesh" / "joining" / "chart" / name.removeprefix(CHART))
    for program in PROGRAMS:
        _copy(checkout / "build" / program, tree / "agent" / "bpf" / program)
    for source in [*(tree / "bpf").glob("*.h"), *(tree / "bpf").glob("*.c")]:
        _copy(source, tree / "agent" / "bpf" / "sources" / source.name)
    for path in tree.rglob("*"):
        os.utime(path, (seconds, seconds))


def _copy(source: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(source, target)
    target.chmod(0o755 if source.stat().st_mode & 0o100 else 0o644)


def build_wheel(tree: Path, out: Path, seconds: int) -> Path:
    """For any Linux: there is no native code in it but the kernel's."""
    environment = {**os.environ, "SOURCE_DATE_EPOCH": str(max(seconds, _FIRST)), "PYTHONHASHSEED": "0"}
    with tempfile.TemporaryDirectory() as folder:
        pip = [sys.executable, "-m", "pip", "wheel", "--quiet", "--disable-pip-version-check", "--no-cache-dir"]
        _run([*pip, "--no-deps", "--no-build-isolation", "--wheel-dir", folder, str(tree)], environment)
        (made,) = Path(folder).glob("*.whl")
        return Path(shutil.copy(made, out / made.name))


def build_chart(helm: Path, chart: Path, out: Path, version: str, seconds: int) -> Path:
    """As `helm package` makes it, which writes the time of day into it: packed again without."""
    with tempfile.TemporaryDirectory() as folder:
        versions = ["--version", version, "--app-version", version]
        _run([str(helm), "package", str(chart), *versions, "--destination", folder], os.environ.copy())
        (made,) = Path(folder).glob("*.tgz")
        entries, again = read_tar(io.BytesIO(made.read_bytes())), io.BytesIO()
        write_tar(again, entries, seconds)
        target = out / made.name
        target.write_bytes(gzip.compress(again.getvalue(), 9, mtime=seconds))
        return target


def _run(argv: list[str], environment: dict[str, str]) -> None:
    done = subprocess.run(argv, capture_output=True, text=True, env=environment, check=False)
    if done.returncode:
        sys.exit(f"'{' '.join(argv)}' failed:\n{done.stdout[-4000:]}{done.stderr[-4000:]}")
