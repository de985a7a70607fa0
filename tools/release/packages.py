"""The wheel, which carries the eBPF programs compiled and as sources, and on its platform Helm; and the chart."""

from __future__ import annotations

import base64
import gzip
import hashlib
import io
import os
import platform
import shutil
import stat
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Iterable
from pathlib import Path
from typing import Final

from tools.release.archive import read_tar, write_tar

PROGRAMS: Final = ("clustermesh.bpf.o", "downgrade.bpf.o", "evict.bpf.o")
CHART: Final = "charts/clustermesh/"
CARRIED: Final = "clustermesh/joining/carried/"
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
    """For any platform: there is no native code in it but the kernel's."""
    environment = {**os.environ, "SOURCE_DATE_EPOCH": str(max(seconds, _FIRST)), "PYTHONHASHSEED": "0"}
    with tempfile.TemporaryDirectory() as folder:
        pip = [sys.executable, "-m", "pip", "wheel", "--quiet", "--disable-pip-version-check", "--no-cache-dir"]
        _run([*pip, "--no-deps", "--no-build-isolation", "--wheel-dir", folder, str(tree)], environment)
        (made,) = Path(folder).glob("*.whl")
        return Path(shutil.copy(made, out / made.name))


def add_helm(wheel: Path, helm: Path, out: Path) -> Path:
    """The same with Helm, for any Linux of this machine's processor: the program needs no library. Its licences, and
    those of what is in it, are beside it."""
    tags = [f"{libc}_{platform.machine()}" for libc in ("manylinux_2_17", "musllinux_1_1")]
    target = out / wheel.name.replace("-any.whl", f"-{'.'.join(tags)}.whl")
    with zipfile.ZipFile(wheel) as plain:
        infos = {each.filename: each for each in plain.infolist()}
        files = {name: (each.external_attr >> 16, plain.read(name)) for name, each in infos.items()}
    (record,) = [name for name in files if name.endswith(".dist-info/RECORD")]
    about = record.replace("RECORD", "WHEEL")
    mode, said = files[about]
    said = said.replace(b"Root-Is-Purelib: true", b"Root-Is-Purelib: false")
    files[about] = (
        mode,
        said.replace(b"Tag: py3-none-any\n", b"".join(b"Tag: py3-none-%s\n" % each.encode() for each in tags)),
    )
    files[f"{CARRIED}helm"] = stat.S_IFREG | 0o755, helm.read_bytes()
    files[f"{CARRIED}LICENCES"] = stat.S_IFREG | 0o644, helm.with_name("helm.licences").read_bytes()
    lines = [f"{name},sha256={_digest(data)},{len(data)}\n" for name, (_, data) in files.items() if name != record]
    files[record] = files.pop(record)[0], "".join([*lines, f"{record},,\n"]).encode()
    with zipfile.ZipFile(target, "w") as made:
        for name, (mode, data) in files.items():
            info = zipfile.ZipInfo(name, infos[about].date_time)
            info.external_attr = mode << 16
            made.writestr(info, data, zipfile.ZIP_DEFLATED)
    return target


def _digest(data: bytes) -> str:
    """As a RECORD has it (PEP 376, PEP 427)."""
    return base64.urlsafe_b64encode(hashlib.sha256(data).digest()).rstrip(b"=").decode()


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
