"""`python -m tools.release.node_images`: what nodes of `lab.kubernetes` have, into build/images/containerd.

It is containerd's own folder with images, unpacked: ours of the checkout as it is, what is started first in each pod,
and CoreDNS where it was built. What was made of the same files is not made again.
"""

from __future__ import annotations

import fcntl
import hashlib
import shutil
import subprocess
import tempfile
from pathlib import Path
from typing import Final

from clustermesh import __version__
from tools.release import debian
from tools.release.__main__ import ROOT, tracked
from tools.release.archive import Entry
from tools.release.image import build_image, write_image
from tools.release.packages import build_wheel, stage

FOLDER: Final = ROOT / "build" / "images"
_COREDNS: Final = ROOT / "build" / "coredns"
"""Which tools/setup-kube builds, for tests alone."""
_PAUSE: Final = "localhost.local/pause:1"
_IMPORT: Final = """
root=$1/containerd
cd "$2"
shift 2
containerd --config "$PWD/containerd.toml" --root "$root" --state "$PWD/state" --address "$PWD/sock" >log 2>&1 &
child=$!
until ctr --address sock version >/dev/null 2>&1; do kill -0 $child || { cat log; exit 1; }; sleep 0.05; done
for each; do ctr --address sock --namespace k8s.io images import --snapshotter overlayfs "$each" >>log; done
kill $child
wait $child || true
"""
_MADE_OF: Final = ("agent/", "bpf/", "certs/", "charts/", "clustermesh/", "tools/release/", "pyproject.toml")


def main() -> None:
    """Entry point."""
    names = [name for name in tracked() if name.startswith(_MADE_OF)]
    digest = hashlib.sha256(b"".join(name.encode() + (ROOT / name).read_bytes() for name in names)).hexdigest()
    digest += _COREDNS.resolve().name
    FOLDER.parent.mkdir(exist_ok=True)
    with FOLDER.with_suffix(".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # two that build at once would build into each other
        _build(digest)


def _build(digest: str) -> None:
    mark = FOLDER / ".complete"
    if mark.exists() and mark.read_text() == digest:
        return
    print("==> making the images for Kubernetes nodes (about half a minute)", flush=True)
    shutil.rmtree(FOLDER, ignore_errors=True)
    (FOLDER / "containerd").mkdir(parents=True)
    with tempfile.TemporaryDirectory() as folder:
        tree = Path(folder) / "clustermesh"
        stage(ROOT, tree, tracked(), 0)
        image = build_image(build_wheel(tree, Path(folder), 0), Path(folder), __version__, 0)
        pause, archive = Path(folder) / "pause", Path(folder) / "pause.tar"
        subprocess.run(["clang", "-Os", "-static", "-o", pause, Path(__file__).with_name("pause.c")], check=True)
        write_image(archive, {"pause": Entry(0o755, pause)}, _PAUSE, {"Cmd": ["/pause"]}, 0)
        dns = Path(folder) / "coredns.tar"
        if _COREDNS.exists():
            links = {each: Entry(link=f"usr/{each}") for each in ("bin", "sbin", "lib", "lib64")}
            files = links | debian.files(["libc6"]) | {"coredns": Entry(0o755, _COREDNS)}
            write_image(dns, files, "localhost.local/coredns:1", {"Cmd": ["/coredns"]}, 0)
        _unpack(Path(folder), *(each for each in (image, archive, dns) if each.exists()))
    mark.write_text(digest)


def _unpack(folder: Path, *archives: Path) -> None:
    """In a mount namespace of its own, which ends with all that containerd mounted."""
    config = folder / "containerd.toml"
    config.write_text('version = 2\ndisabled_plugins = ["io.containerd.grpc.v1.cri"]\n')
    apart = ["unshare", "--mount", "--pid", "--fork", "--kill-child"]
    subprocess.run([*apart, "sh", "-euc", _IMPORT, "sh", FOLDER, folder, *archives], check=True)


if __name__ == "__main__":
    main()
