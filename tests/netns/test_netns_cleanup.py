"""`clustermesh node cleanup`: nothing of an agent is left on a node, whatever ended an earlier try.

  node 1 (net + mount namespace, a bpf filesystem of its own)          node 2
+------------------------------------------------------------+        +------+
|  cm-wg0 ── routes and blackholes to 10.2.0.0/24, ...        |        |      |
|  lo 10.1.0.1, fd00:10:1::1         lxc... ── pod a     eth0 ========== eth0 |
|  maps, links: pinned                 (from_pod)   (strict)  |        |      |
+------------------------------------------------------------+        +------+
"""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
from argparse import Namespace
from collections.abc import Iterator
from contextlib import ExitStack, aclosing
from pathlib import Path

import pytest
from netns_mesh import MeshNode
from netns_node import TIMEOUT, join

from agent import cleanup
from agent.api import alone
from agent.bpf.bpffs import ensure_bpffs
from agent.bpf.hooks import PROGRAMS, UNDERLAY_PROGRAMS, Kind
from agent.bpf.links import Mechanism
from agent.bpf.loader import Datapath
from agent.cni.endpoint import host_ifname
from agent.process import runs
from agent.reserved_ports import ReservedPorts
from clustermesh.errors import Invalid

RESERVED = Path("/proc/sys/net/ipv4/ip_local_reserved_ports")


class Left(MeshNode):
    """A node that an agent was killed on."""

    def __init__(self, state: Path, bpffs: Path) -> None:
        super().__init__(1, state)
        shutil.rmtree(state / "wireguard")  # where only tests have it
        self.pins = bpffs / "clustermesh"
        self.options = Namespace(
            bpffs=bpffs, state_dir=state, run_dir=Path("/run/clustermesh"), device="cm-wg0", all_state=False
        )

    def live(self, other: MeshNode, mechanism: Mechanism) -> None:
        """All that an agent makes."""
        self.start_agent()
        self.connect(other)
        self.make_pod("a")
        (self.state / "wireguard.key").write_text("a key")
        (self.state / "bcc").mkdir()
        (self.state / "bcc" / "bcc-1.json").write_text("{}")
        self.call(lambda: RESERVED.write_text("8080\n"))
        self.call(lambda: ReservedPorts(self.options.run_dir).hold(range(61440, 65536)))
        datapath = self.call(lambda: Datapath.open(None, self.pins))
        self.call(lambda: datapath.devices.attach("eth0", UNDERLAY_PROGRAMS, mechanism))
        of_pods = [program for program in PROGRAMS if program.kind is Kind.POD]
        self.call(lambda: datapath.devices.attach(self.pod_device, of_pods, mechanism))
        datapath.close()

    @property
    def pod_device(self) -> str:
        return host_ifname("container-a", "eth0")

    def clean(self, *, whole: bool) -> list[str]:
        """What was removed, the first thing alone where it is not to be whole."""

        async def work() -> list[str]:
            removed = []
            async with aclosing(cleanup.clean(self.options)) as sentences:
                async for sentence in sentences:
                    removed.append(sentence)
                    if not whole:
                        break
            return removed

        return self.do(work())

    def left(self) -> list[str]:
        """What of an agent is here, by kind."""
        found = [link["ifname"] for link in json.loads(self.run("ip -j link")) if link["ifname"] not in ("lo", "eth0")]
        for family in (4, 6):
            found += [f"route {each['dst']}" for each in json.loads(self.run(f"ip -j -{family} route show proto 177"))]
            shown = json.loads(self.run(f"ip -j -{family} addr show lo"))
            found += [each["local"] for link in shown for each in link.get("addr_info", []) if each["scope"] != "host"]
        found += [str(path) for path in [self.pins, *self.pins.glob("**/*")] if path.exists() or path.is_symlink()]
        found += ["clsact"] if "clsact" in self.run("tc qdisc show") else []
        found += [each for each in self.call(RESERVED.read_text).strip().split(",") if each != "8080"]
        return [*found, *map(str, self.state.glob("**/*"))]


@pytest.fixture
def node(wireguard_go: None, tmp_path: Path) -> Iterator[Left]:
    if os.geteuid() != 0:
        pytest.skip("root is missing")
    bpffs = tmp_path / "bpf"
    ensure_bpffs(bpffs)
    with ExitStack() as closing:
        closing.callback(subprocess.run, ["umount", str(bpffs)], check=True, timeout=TIMEOUT)
        node, other = Left(tmp_path / "node1", bpffs), MeshNode(2, tmp_path / "node2")
        closing.callback(other.close)
        closing.callback(node.close)
        join(node, other)
        yield node


@pytest.mark.parametrize("mechanism", [Mechanism.TCX, Mechanism.CLSACT])
def test_killed_after_any_step_another_run_leaves_nothing(node: Left, tmp_path: Path, mechanism: Mechanism) -> None:
    other = MeshNode(3, tmp_path / "node3")
    try:
        node.live(other, mechanism)
    finally:
        other.close()
    pid = node.wireguard_pid()
    node.stop_agent()
    node.options.all_state = True
    removed = 0
    while node.clean(whole=False):
        removed += 1
    assert (
        removed
        >= len(("the datapath", "the device", "wireguard-go", "routes", "ports", "a pod", "two addresses of lo")) + 1
    )
    assert node.left() == []
    assert node.call(RESERVED.read_text) == "8080\n"
    assert not runs(pid)
    assert node.clean(whole=True) == []


@pytest.mark.parametrize(
    ("device", "why"), [("cm-wg1", "is not here, and cm-wg0 is"), ("../x", "must be a device name")]
)
def test_a_wrong_device_is_refused_where_a_tunnel_would_be_left(node: Left, device: str, why: str) -> None:
    node.start_agent()
    before = node.left()
    node.options.device = device
    with pytest.raises(Invalid, match=f"device: '{device}': {why}"):
        node.clean(whole=True)
    assert node.left() == before
    node.options.device = "cm-wg0"
    assert any("cm-wg0" in sentence for sentence in node.clean(whole=True))


def test_pods_that_run_and_the_nodes_key_stay_unless_asked_for(node: Left, tmp_path: Path) -> None:
    other = MeshNode(3, tmp_path / "node3")
    try:
        node.live(other, Mechanism.TCX)
    finally:
        other.close()
    node.stop_agent()
    removed = node.clean(whole=True)
    assert any("cm-wg0" in sentence for sentence in removed)
    left = node.left()
    assert {node.pod_device, "10.1.0.1", "fd00:10:1::1", str(node.state / "wireguard.key")} <= {*left}
    assert not [each for each in left if each.startswith(("route", str(node.pins), "cm-wg0"))]
    with node.tcp_server("a"):
        node.call(lambda: socket.create_connection(("10.1.0.2", 8080), TIMEOUT)).close()
    assert node.clean(whole=True) == []


def test_beside_an_agent_it_is_refused_and_changes_nothing(node: Left) -> None:
    node.start_pods()
    node.make_pod("a")
    before = node.left()
    given = ["--bpffs", str(node.pins.parent), "--state-dir", str(node.state), "--run-dir", "/run/clustermesh"]
    command = [sys.executable, "-P", "-m", "clustermesh.cli", "node", "cleanup", "--force", "--all-state", *given]

    def run() -> subprocess.CompletedProcess[str]:
        return subprocess.run(command, capture_output=True, text=True, timeout=TIMEOUT, check=False)

    with alone(node.state / "elsewhere", node.state):
        done = node.call(run)
    assert (done.returncode, done.stdout) == (1, "")
    assert "another agent holds" in done.stderr
    assert {*before} <= {*node.left()}
    done = node.call(run)
    assert (done.returncode, done.stderr) == (0, "")
    assert f"removed device {node.pod_device}" in done.stdout
    again = node.call(run)
    assert (again.returncode, again.stdout) == (0, "nothing of an agent was here\n")


@pytest.mark.parametrize(
    ("option", "value", "why"),
    [
        ("device", "eth0", "is a device of kind veth"),
        ("bpffs", Path("/etc/passwd"), "must be a mounted bpf file system"),
    ],
)
def test_what_is_no_agents_is_refused_before_anything_goes(node: Left, option: str, value: object, why: str) -> None:
    node.start_pods()
    before = node.left()
    setattr(node.options, option, value)
    with pytest.raises(Invalid, match=f"--{option}: '{value}': {why}.*nothing was removed"):
        node.clean(whole=True)
    assert node.left() == before
    assert "eth0" in node.run("ip -j link")
