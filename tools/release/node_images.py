"""`python -m tools.release.node_images`: the archives that nodes of `lab.kubernetes` have, into build/images.

They are our image of the checkout as it is, and what containerd starts first in each pod. What was made of the same
files is not made again.
"""

from __future__ import annotations

import hashlib
import shutil
import subprocess
import tempfile
from pathlib import Path
from typing import Final

from clustermesh import __version__
from tools.release.__main__ import ROOT, tracked
from tools.release.archive import Entry
from tools.release.image import build_image, write_image
from tools.release.packages import build_wheel, stage

FOLDER: Final = ROOT / "build" / "images"
_PAUSE: Final = "localhost.local/pause:1"
_MADE_OF: Final = ("agent/", "bpf/", "certs/", "charts/", "clustermesh/", "tools/release/", "pyproject.toml")


def main() -> None:
    """Entry point."""
    names = [name for name in tracked() if name.startswith(_MADE_OF)]
    digest = hashlib.sha256(b"".join(name.encode() + (ROOT / name).read_bytes() for name in names)).hexdigest()
    mark = FOLDER / ".complete"
    if mark.exists() and mark.read_text() == digest:
        return
    print("==> making the images for Kubernetes nodes (about half a minute)", flush=True)
    shutil.rmtree(FOLDER, ignore_errors=True)
    FOLDER.mkdir(parents=True)
    with tempfile.TemporaryDirectory() as folder:
        tree = Path(folder) / "clustermesh"
        stage(ROOT, tree, tracked(), 0)
        build_image(build_wheel(tree, Path(folder), 0), FOLDER, __version__, 0)
        pause = Path(folder) / "pause"
        subprocess.run(["clang", "-Os", "-static", "-o", pause, Path(__file__).with_name("pause.c")], check=True)
        write_image(FOLDER / "pause.tar", {"pause": Entry(0o755, pause)}, _PAUSE, {"Cmd": ["/pause"]}, 0)
    mark.write_text(digest)


if __name__ == "__main__":
    main()
