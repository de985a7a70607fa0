"""The same sources through the other loader: BCC compiles them as they are, and the kernel takes what comes out.

The maps are made before, as an agent makes them, and named by descriptor; no program is attached.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from agent.bpf.hooks import PROGRAMS
from agent.bpf.loader import Datapath

pytestmark = pytest.mark.root

_SOURCES = Path(__file__).parents[2] / "bpf"
_PYTHON = "/usr/bin/python3"  # Debian's, which python3-bpfcc is for
_LOAD = """
import sys
from bcc import BPF
source, *rest = sys.argv[1:]
flags = rest[:rest.index("--")]
b = BPF(src_file=source, cflags=flags)
for each in rest[rest.index("--") + 1:]:
    name, kind, attach_type = each.split(":")
    b.load_func(name, int(kind), attach_type=int(attach_type))
    print(name)
"""
# BCC asks for the headers of the running kernel by its name, whichever are there.
_WITH_HEADERS = """
set -e
mount -t tmpfs none /lib/modules
mkdir /lib/modules/$(uname -r)
ln -s "$1" /lib/modules/$(uname -r)/build
ln -s "$2" /lib/modules/$(uname -r)/source
shift 2
exec "$@"
"""


def _headers() -> tuple[Path, Path]:
    """What `build` and `source` of a kernel's modules point at on Debian."""
    found = sorted(each for each in Path("/usr/src").glob("linux-headers-*") if each.name.endswith("-common"))
    for common in reversed(found):
        for build in sorted(Path("/usr/src").glob(common.name.removesuffix("-common") + "-*")):
            if build != common:
                return build, common
    pytest.skip("linux-headers are missing (any version): BCC cannot compile")


def test_bcc_compiles_the_same_sources_and_the_kernel_takes_every_program(datapath: Datapath) -> None:
    if subprocess.run([_PYTHON, "-c", "import bcc"], capture_output=True, check=False).returncode:
        pytest.skip("python3-bpfcc is missing: the sources cannot be tried with BCC")
    if shutil.which("unshare") is None:
        pytest.skip("unshare is missing (util-linux): kernel headers cannot be shown to BCC")
    flags = ["-DCLUSTERMESH_BCC", f"-I{_SOURCES}", "-Dhas_set_retval_value=1", "-Dnode_netns_value=1"]
    flags += [f"-D{name}_fd={fd}" for name, fd in datapath.maps.items()]
    programs = [f"{each.name}:{each.program_type:d}:{each.attach_type:d}" for each in PROGRAMS]
    load = [_PYTHON, "-c", _LOAD, str(_SOURCES / "clustermesh.bpf.c"), *flags, "--", *programs]
    done = subprocess.run(
        ["unshare", "--mount", "sh", "-c", _WITH_HEADERS, "sh", *map(str, _headers()), *load],
        pass_fds=list(datapath.maps.values()),
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        env={"PATH": os.environ["PATH"], "HOME": "/root"},
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.split() == [program.name for program in PROGRAMS]
