"""`python -m tools.release [--out FOLDER] [wheel|chart|image ...]`: builds what is named, or all of it, from the files
that git tracks, as they are in the checkout. Times inside are the commit's (SOURCE_DATE_EPOCH, where it is set)."""

from __future__ import annotations

import argparse
import os
import subprocess
import tempfile
from pathlib import Path
from typing import Final

from clustermesh import __version__
from tools.release.image import build_image
from tools.release.packages import build_chart, build_wheel, stage

ROOT: Final = Path(__file__).resolve().parents[2]


def main() -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(prog="make dist")
    parser.add_argument("--out", type=Path, default=ROOT / "dist")
    parser.add_argument("what", nargs="*", choices=[[], *_BUILDERS])
    options = parser.parse_args()
    os.umask(0o022)
    options.out.mkdir(parents=True, exist_ok=True)
    seconds = int(os.environ.get("SOURCE_DATE_EPOCH") or _commit_seconds())
    with tempfile.TemporaryDirectory() as folder:
        tree = Path(folder) / "clustermesh"
        stage(ROOT, tree, tracked(), seconds)
        for name in options.what or _BUILDERS:
            made = _BUILDERS[name](tree, options.out, seconds)
            print(f"{made} ({made.stat().st_size / 1e6:.1f} MB)", flush=True)


def _chart(tree: Path, out: Path, seconds: int) -> Path:
    return build_chart(ROOT / "build" / "helm", tree / "charts" / "clustermesh", out, __version__, seconds)


def _image(tree: Path, out: Path, seconds: int) -> Path:
    with tempfile.TemporaryDirectory() as folder:
        return build_image(build_wheel(tree, Path(folder), seconds), out, __version__, seconds)


_BUILDERS: Final = {"wheel": build_wheel, "chart": _chart, "image": _image}


def tracked() -> list[str]:
    """Files of the checkout that git knows."""
    listed = _git("ls-files", "-z").split("\0")
    return [name for name in listed if name and (ROOT / name).is_file()]


def _commit_seconds() -> str:
    return _git("log", "-1", "--format=%ct")


def _git(*words: str) -> str:
    return subprocess.run(["git", "-C", str(ROOT), *words], capture_output=True, text=True, check=True).stdout


if __name__ == "__main__":
    main()
