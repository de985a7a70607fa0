"""The real kernel: programs freshly compiled, a bpf filesystem of their own, a cgroup and a network namespace per test.

Whatever is missing is skipped by its name; nothing is skipped where all of it is there.
"""

from __future__ import annotations

import itertools
import os
import platform
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from bcc_bed import compiled
from bpf_choice import Chooser, opened_chooser
from bpf_node import Node
from bpf_outside import Outside, outside_net, outside_of
from bpf_services import FAMILIES, Bed

from agent.bpf.bpffs import cgroup2_root, ensure_bpffs
from agent.bpf.loader import Datapath, constants
from agent.bpf.probe import probe

_REPOSITORY = Path(__file__).parents[2]
_numbers = itertools.count()


@pytest.fixture(scope="session")
def bpf_object(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The programs as the sources have them now, whatever lies in build/."""
    if shutil.which("clang") is None:
        pytest.skip("clang is missing: the eBPF programs cannot be compiled")
    folder = tmp_path_factory.mktemp("build")
    make = ["make", "-s", "-C", str(_REPOSITORY / "bpf"), f"BUILD={folder}"]
    done = subprocess.run(make, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    return folder / "clustermesh.bpf.o"


@pytest.fixture(scope="session")
def bpffs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A bpf filesystem that goes with the session, and every pin with it."""
    if os.geteuid() != 0:
        pytest.skip("root is missing: eBPF cannot be loaded")
    path = tmp_path_factory.mktemp("bpffs")
    ensure_bpffs(path)
    try:
        lacking = [f"{each.name} ({each.sentence})" for each in probe(path) if each.needed and not each.present]
        if lacking:
            pytest.skip(f"missing: {', '.join(lacking)}")
        yield path
    finally:
        subprocess.run(["umount", str(path)], check=True, timeout=60)


@pytest.fixture
def pin_dir(bpffs: Path) -> Iterator[Path]:
    path = bpffs / f"test{next(_numbers)}"
    yield path
    Datapath.remove(path)
    assert not path.exists()


@pytest.fixture(scope="session")
def bcc_cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """BCC's programs, compiled once for all workers of this run."""
    base = tmp_path_factory.getbasetemp()
    return compiled((base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "bcc", constants())


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """What a program does is tested with both loaders where a test says so: BCC's take seconds to be verified."""
    if "loader" in metafunc.fixturenames:
        both = metafunc.definition.get_closest_marker("both_loaders") is not None
        metafunc.parametrize("loader", ["libbpf", "bcc"] if both else ["libbpf"], indirect=True)


@pytest.fixture
def loader(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def datapath(request: pytest.FixtureRequest, loader: str, bpf_object: Path, pin_dir: Path) -> Iterator[Datapath]:
    """Loaded and pinned, attached nowhere."""
    cache = request.getfixturevalue("bcc_cache") if loader == "bcc" else None
    opened = Datapath.open(bpf_object, pin_dir, bcc_cache=cache)
    yield opened
    opened.close()


@pytest.fixture(scope="module")
def sizes() -> dict[str, int]:
    """Of maps, where a file wants others than there are."""
    return {}


@pytest.fixture(scope="module", params=["libbpf", "bcc"])
def loaded(request: pytest.FixtureRequest, bpf_object: Path, bpffs: Path, sizes: dict[str, int]) -> Iterator[Datapath]:
    """One of each loader for all tests of a file, for where there are many packets."""
    path = bpffs / f"test{next(_numbers)}"
    cache = request.getfixturevalue("bcc_cache") if request.param == "bcc" else None
    opened = Datapath.open(bpf_object, path, sizes, bcc_cache=cache)
    yield opened
    opened.close()
    Datapath.remove(path)


@pytest.fixture(params=FAMILIES)
def bed(loaded: Datapath, request: pytest.FixtureRequest) -> Bed:
    made = Bed(*FAMILIES[request.param])
    made.reset(loaded)
    return made


@pytest.fixture(scope="module")
def net() -> Iterator[Node]:
    """Where clients outside and other nodes are."""
    with outside_net() as made:
        yield made


@pytest.fixture
def outside(bed: Bed, net: Node) -> Outside:
    return outside_of(bed, net)


@pytest.fixture
def cgroup(bpffs: Path) -> Iterator[Path]:
    """An empty cgroup, deleted afterwards. (`bpffs` is asked for because it checks what the kernel has.)"""
    root = cgroup2_root()
    assert root is not None
    path = root / f"clustermesh-test-{os.getpid()}-{next(_numbers)}"
    path.mkdir()
    yield path
    path.rmdir()


@pytest.fixture
def node(cgroup: Path) -> Iterator[Node]:
    """A thread in a network namespace of its own, in a process that is in `cgroup` for as long as the test runs."""
    home = _own_cgroup()
    (cgroup / "cgroup.procs").write_text(str(os.getpid()))
    try:
        with Node() as made:
            yield made
    finally:
        (home / "cgroup.procs").write_text(str(os.getpid()))


def _own_cgroup() -> Path:
    root = cgroup2_root()
    assert root is not None
    line = next(line for line in Path("/proc/self/cgroup").read_text().splitlines() if line.startswith("0::"))
    return root / line.removeprefix("0::/")


@pytest.fixture(scope="session")
def choose_object(tmp_path_factory: pytest.TempPathFactory, bpf_object: Path) -> Path:
    made = tmp_path_factory.mktemp("choose") / "choose.bpf.o"
    command = ["clang", "-O2", "-g", "-Wall", "-Werror", "-target", "bpf", "-mcpu=v3", f"-I{_REPOSITORY / 'bpf'}"]
    command += [
        f"-isystem/usr/include/{platform.machine()}-linux-gnu",
        "-c",
        str(Path(__file__).parent / "choose.bpf.c"),
    ]
    subprocess.run([*command, "-o", str(made)], check=True, timeout=60)
    return made


@pytest.fixture
def chooser(datapath: Datapath, choose_object: Path) -> Iterator[Chooser]:
    with opened_chooser(datapath, choose_object) as made:
        yield made
