"""`python -m tools.release [--out FOLDER] [wheel|any|chart|image ...]`: builds what is named, or all of it, from the
files that git tracks, as they are in the checkout. Times inside are the commit's, or SOURCE_DATE_EPOCH."""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Final, NamedTuple

from clustermesh import __version__
from tools.release.image import build_image
from tools.release.packages import add_helm, build_chart, build_wheel, stage

ROOT: Final = Path(__file__).resolve().parents[2]


class Made(NamedTuple):
    """What all is made of: the files in `tree`, and their `wheel`, which any platform takes."""

    tree: Path
    wheel: Path
    seconds: int


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
        made = Made(tree, build_wheel(tree, Path(folder), seconds), seconds)
        for name in options.what or _BUILDERS:
            file = _BUILDERS[name](made, options.out)
            print(f"{file} ({file.stat().st_size / 1e6:.1f} MB)", flush=True)


def _wheel(made: Made, out: Path) -> Path:
    return add_helm(made.wheel, _helm(), out)


def _any(made: Made, out: Path) -> Path:
    """In a folder of its own: `pip install dist/*.whl` takes one wheel."""
    folder = out / "any"
    folder.mkdir(exist_ok=True)
    return Path(shutil.copy(made.wheel, folder / made.wheel.name))


def _chart(made: Made, out: Path) -> Path:
    return build_chart(_helm(), made.tree / "charts" / "clustermesh", out, __version__, made.seconds)


def _image(made: Made, out: Path) -> Path:
    return build_image(made.wheel, out, __version__, made.seconds)


def _helm() -> Path:
    helm = ROOT / "build" / "helm"
    if not helm.with_name("helm.licences").exists():
        sys.exit("build/helm is missing, or was not built to be given away: tools/setup-kube helm does so")
    return helm


_BUILDERS: Final = {"wheel": _wheel, "any": _any, "chart": _chart, "image": _image}


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
