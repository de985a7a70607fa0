"""The chart and its image as they were in an earlier commit, built from git: an upgrade comes from them and goes back.

Of the image only what is ours is the earlier one's, in a layer over the image of this checkout, which nodes have: of
what is not ours both have the same.
"""

from __future__ import annotations

import json
import os
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any, Final

from clustermesh.errors import Unavailable
from lab.kubernetes.cluster import Cluster
from lab.kubernetes.workloads import IMAGE
from tools.release.archive import Entry
from tools.release.image import MODULES, Base, compiled, installed, write_image
from tools.release.packages import build_wheel, stage

COMMIT: Final = os.environ.get("NODES_OLDER_COMMIT", "HEAD~1")
"""The previous one; or any since 94a7fae, the first whose upgrade leaves WireGuard alone, and so costs no request."""
TAG: Final = "older"
_ROOT: Final = Path(__file__).parents[2]
_WHITEOUT: Final = ".wh..wh..opq"  # OCI: nothing of the layers below is in this folder


def check_out(tree: Path) -> None:
    """The earlier files, with their programs compiled. Unavailable where git does not have them."""
    git = ["git", "-C", str(_ROOT)]
    if subprocess.run([*git, "cat-file", "-e", f"{COMMIT}^{{commit}}"], capture_output=True, check=False).returncode:
        raise Unavailable(f"commit {COMMIT} is not in this clone's history: git fetch --unshallow")
    archive = subprocess.run([*git, "archive", COMMIT], capture_output=True, check=True)
    tree.mkdir()
    subprocess.run(["tar", "-x", "-C", str(tree)], input=archive.stdout, check=True)
    subprocess.run(["make", "-s", "-C", str(tree / "bpf")], check=True, timeout=120)


def give(cluster: Cluster, tree: Path) -> None:
    """The nodes of the cluster the image of the files in `tree`, as IMAGE with the tag TAG."""
    with tempfile.TemporaryDirectory() as folder:
        files = _files(tree, Path(folder))
        for node in cluster.nodes:
            ctr = ["ctr", "--address", str(node.folder / "own/run/containerd/containerd.sock"), "--namespace", "k8s.io"]
            base, run = _below(ctr)
            archive = Path(folder) / f"{node.name}.tar"
            write_image(archive, files, f"{IMAGE.rpartition(':')[0]}:{TAG}", run, 0, base)
            _run([*ctr, "images", "import", "--snapshotter", "overlayfs", str(archive)])


def _files(tree: Path, folder: Path) -> dict[str, Entry]:
    """What is ours, in place of what is there of it."""
    staged, names = folder / "staged", [str(path.relative_to(tree)) for path in tree.rglob("*") if path.is_file()]
    stage(tree, staged, [name for name in names if not name.startswith("build/")], 0)
    files = installed(build_wheel(staged, folder, 0))
    files |= compiled(files)
    packages = {PurePosixPath(name).relative_to(MODULES).parts[0] for name in files if name.startswith(MODULES)}
    return files | {f"{MODULES}/{each}/{_WHITEOUT}": Entry(0o644, b"") for each in packages}


def _below(ctr: Sequence[str]) -> tuple[Base, Mapping[str, Any]]:
    """The image of this checkout, as a node has it, and how it is run."""
    listed = _run([*ctr, "images", "list", f"name=={IMAGE}"]).splitlines()
    manifest = json.loads(_run([*ctr, "content", "get", listed[1].split()[2]]))
    config = json.loads(_run([*ctr, "content", "get", manifest["config"]["digest"]]))
    return Base(manifest["layers"], config["rootfs"]["diff_ids"]), config["config"]


def _run(argv: Sequence[str]) -> str:
    return subprocess.run(argv, capture_output=True, text=True, check=True, timeout=60).stdout
