"""Two nodes joined by a cable, each with its agent's parts running. Whatever is missing is skipped by its name."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
from netns_mesh import MeshNode
from netns_node import join


@pytest.fixture(scope="session")
def machine() -> None:
    """What every test here needs."""
    if os.geteuid() != 0:
        pytest.skip("root is missing: no namespace can be made")
    for program in ("ip", "mount"):
        if shutil.which(program) is None:
            pytest.skip(f"{program} is missing")


@pytest.fixture(scope="session")
def wireguard_go(machine: None) -> None:
    """What tests with a tunnel need on top."""
    if shutil.which("wireguard-go") is None:
        pytest.skip("wireguard-go is missing")
    if not Path("/dev/net/tun").exists():
        pytest.skip("/dev/net/tun is missing: the kernel has no TUN driver")


@pytest.fixture
def node(machine: None, tmp_path: Path) -> Iterator[MeshNode]:
    """One node, its agent not started."""
    made = MeshNode(1, tmp_path / "node1")
    yield made
    made.close()


@pytest.fixture
def outside() -> int:
    """The family of the packets between nodes; a test that wants both is parametrised with it."""
    return 4


@pytest.fixture
def mesh(wireguard_go: None, tmp_path: Path, outside: int) -> Iterator[tuple[MeshNode, MeshNode]]:
    """Two nodes that are each other's peers."""
    with ExitStack() as stack:
        one, two = (MeshNode(number, tmp_path / f"node{number}") for number in (1, 2))
        for node in (one, two):
            stack.callback(node.close)
        join(one, two)
        for node in (one, two):
            node.start_agent()
        one.connect(two, two.address6 if outside == 6 else two.address)
        two.connect(one, one.address6 if outside == 6 else one.address)
        yield one, two
        for node in (one, two):
            node.stop_agent()
