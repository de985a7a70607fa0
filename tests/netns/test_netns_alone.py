"""One agent in each network namespace, whatever folders it has: two would take the tunnels from each other."""

from __future__ import annotations

import subprocess
import sys
from contextlib import ExitStack
from pathlib import Path

import pytest
from netns_mesh import MeshNode

from agent import api
from clustermesh.errors import Refused

pytestmark = pytest.mark.root

_HOLD = r"""
import socket
held = socket.socket(socket.AF_UNIX)
held.bind("\0clustermesh-agent")
held.listen()
print(flush=True)
input()
"""
_RUN = r"""
from agent import api
with api.alone_in_network():
    print(flush=True)
    input()
"""
_NOBODY = 65534
_TRIES = 300  # twice what the kernel lets wait for a process that takes nobody


def _start(node: MeshNode, stack: ExitStack, user: int, program: str = _HOLD) -> subprocess.Popen[str]:
    """A process of `user` that holds the name in the network namespace of `node`."""
    held = node.call(
        lambda: subprocess.Popen(
            [sys.executable, "-I", "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, user=user
        )
    )
    stack.enter_context(held)
    stack.callback(held.kill)
    assert held.stdout is not None
    assert held.stdout.readline() == "\n"
    return held


def _be_alone() -> None:
    with api.alone_in_network():
        pass


def test_a_second_agent_in_a_network_namespace_is_refused_until_the_first_has_ended(
    node: MeshNode, tmp_path: Path
) -> None:
    with ExitStack() as stack:
        first = _start(node, stack, user=0)
        with pytest.raises(Refused, match=rf"another agent \(pid {first.pid}\) runs in this network namespace"):
            node.call(_be_alone)
        other = MeshNode(2, tmp_path / "node2")
        stack.callback(other.close)
        other.call(_be_alone)
        first.kill()
        first.wait()
        node.call(_be_alone)


def test_a_second_agent_is_refused_however_often_it_tries(node: MeshNode) -> None:
    with ExitStack() as stack:
        first = _start(node, stack, user=0, program=_RUN)
        for _ in range(_TRIES):
            with pytest.raises(Refused, match=rf"another agent \(pid {first.pid}\) runs"):
                node.call(_be_alone)
        first.communicate("\n")
        assert first.returncode == 0
        node.call(_be_alone)


def test_who_may_run_no_agent_cannot_keep_one_from_starting(node: MeshNode, caplog: pytest.LogCaptureFixture) -> None:
    with ExitStack() as stack:
        _start(node, stack, user=_NOBODY)
        node.call(_be_alone)
    assert "nobody notices a second agent" in caplog.text
