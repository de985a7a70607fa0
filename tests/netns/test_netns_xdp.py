"""Node ports by XDP with real traffic: a client outside calls, and a backend on another node answers.

  node 1                                    the other node
+----------------------+                +-----------------------------+
|  node port 30080     |                | far 10.2.0.2: the backend   |
|           eth0 ========================== eth0 192.0.2.2            |
|       192.0.2.1      |                | 198.51.100.7: the client    |
+----------------------+                +-----------------------------+

What XDP sends on is seen by no tap on eth0: those are asked after it.
"""

from __future__ import annotations

import os
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Self

import pytest
from ethtool import SUM_WHAT_IS_SENT, switch
from netns_devices import DevicesBed
from netns_mesh import MeshNode
from netns_node import TIMEOUT, NetnsNode, Tap, join
from netns_services import ServicesBed
from test_netns_services import LISTENING, NODE_PORT, service

from agent.bpf import xdp_hooks
from agent.bpf.bpffs import ensure_bpffs
from agent.bpf.hooks import Accelerated
from agent.bpf.layouts import Reason, XdpMode
from agent.bpf.links import Mechanism, Outcome
from agent.bpf.loader import Datapath
from agent.bpf.programs import EXIT, program_load, set_result
from agent.bpf.syscalls import XDP_FLAGS, AttachType, ProgramType, link_create
from clustermesh.model import LocalService

FAR, WORLD = ("10.2.0.2", "fd00:10:2::2"), ("198.51.100.7", "2001:db8:7::7")
NODE = ("192.0.2.1", "2001:db8::1")
ROUNDS = 30
modes = pytest.mark.parametrize("mode", XdpMode, ids=lambda mode: mode.name)


def _pass_all(node: NetnsNode, mode: XdpMode = XdpMode.NATIVE) -> int:
    """A program on eth0 that takes all frames as they are, for as long as the descriptor is held."""
    program = program_load(ProgramType.XDP, (set_result(2), EXIT))
    try:
        return node.call(lambda: link_create(program, socket.if_nametoindex("eth0"), AttachType.XDP, XDP_FLAGS[mode]))
    finally:
        os.close(program)


class Conversation:
    """A client of the world that calls the node port, and the backend on the other node that it has got."""

    def __init__(self, bed: XdpBed, family: int, kind: socket.SocketKind) -> None:
        listening = bed.services.socket_in("outside", (socket.AF_INET, socket.AF_INET6)[family], kind)
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listening.bind((FAR[family], LISTENING))
        self._client = bed.services.socket_in("outside", listening.family, kind)
        self._client.bind((WORLD[family], 0))
        if kind == socket.SOCK_STREAM:
            listening.listen()
            self._client.connect((NODE[family], NODE_PORT))
            self._server, peer = listening.accept()
            listening.close()
        else:
            self._client.connect((NODE[family], NODE_PORT))
            self._client.send(b"?")
            _, peer = listening.recvfrom(10)
            listening.connect(peer)
            listening.send(b"!")
            assert self._client.recv(10) == b"!"
            self._server = listening
        assert peer[0] == NODE[family], "the backend sees node 1"

    def go_on(self, rounds: int = ROUNDS) -> None:
        for number in range(rounds):
            self._client.send(b"question %d" % number)
            assert self._server.recv(100) == b"question %d" % number
            self._server.send(b"answer %d" % number)
            assert self._client.recv(100) == b"answer %d" % number

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._client.close()
        self._server.close()


class XdpBed:
    def __init__(self, folder: Path, stack: ExitStack) -> None:
        self.pins = folder / "bpf" / "clustermesh"
        ensure_bpffs(folder / "bpf")
        stack.callback(subprocess.run, ["umount", str(folder / "bpf")], check=True, timeout=TIMEOUT)
        self.outside, self.node = NetnsNode(2), MeshNode(1, folder / "node1")
        stack.callback(self.outside.close)
        stack.callback(self.node.close)
        join(self.node, self.outside)
        for address in (*FAR, *WORLD):
            self.outside.run(f"ip addr add {address} dev lo")
        self.outside.call(lambda: switch("eth0", SUM_WHAT_IS_SENT, on=False))  # as what comes by a wire
        stack.callback(os.close, _pass_all(self.outside))  # or a veth takes nothing that node 1's driver sends back
        stack.callback(Datapath.remove, self.pins)
        self.devices = DevicesBed(self.node, self.pins)
        stack.callback(self.devices.stop)
        self.services = ServicesBed(self.devices, self.outside)
        self.web: LocalService = service("web", {"far"})
        self.services.serve(self.web)

    def restart(self, *wanted: XdpMode) -> None:
        """Another agent, of which these modes are asked."""
        self.devices.stop()
        self.devices.start(xdp=wanted)

    def hook(self) -> tuple[Mechanism, Outcome]:
        found = self.devices.datapath.frames.hooks["eth0"]
        return found.mechanism, found.outcome

    def translated(self) -> int:
        counted = self.devices.datapath.counters()
        return counted[Reason.NAT_FORWARD] + counted[Reason.NAT_REPLY]


@pytest.fixture(scope="module")
def shared(machine: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[XdpBed]:
    with ExitStack() as stack:
        yield XdpBed(tmp_path_factory.mktemp("xdp"), stack)


@pytest.fixture
def bed(shared: XdpBed) -> Iterator[XdpBed]:
    yield shared
    shared.restart()
    assert "xdp" not in shared.node.run("ip link show eth0")
    assert not any(name.startswith("xdp") for name in shared.devices.pinned())


def seen(tap: Tap) -> list[bytes]:
    """Packets to and from the node port or a lent one that came up the stack."""
    return [packet for packet in tap.packets() if packet[0] >> 4 == 6 or packet[9] in (socket.IPPROTO_TCP, 17)]


@modes
@pytest.mark.parametrize(
    ("kind", "family"),
    [(socket.SOCK_STREAM, 0), (socket.SOCK_STREAM, 1), (socket.SOCK_DGRAM, 1)],
    ids=["TCP, IPv4", "TCP, IPv6", "UDP, IPv6"],
)
def test_a_conversation_goes_on_past_the_stack(
    bed: XdpBed, mode: XdpMode, family: int, kind: socket.SocketKind
) -> None:
    bed.restart(mode)
    assert bed.hook() == (
        {XdpMode.NATIVE: Mechanism.XDP, XdpMode.GENERIC: Mechanism.XDP_GENERIC}[mode],
        Outcome.ATTACHED,
    )
    before = bed.translated()
    with Conversation(bed, family, kind) as conversation:
        conversation.go_on(3)  # both ends have spoken
        if kind == socket.SOCK_DGRAM:
            time.sleep(3.3)  # what lasts for longer than three ticks is more than an exchange
            conversation.go_on(3)
        with closing(Tap(bed.node)) as tap:
            conversation.go_on()
            assert len(seen(tap)) < ROUNDS / 2, "what tc sends on is seen twice"
    assert bed.translated() - before >= 2 * ROUNDS


@modes
def test_a_killed_agent_leaves_it_and_the_next_one_adopts_it(bed: XdpBed, mode: XdpMode) -> None:
    bed.restart(mode)
    with Conversation(bed, 0, socket.SOCK_STREAM) as conversation:
        conversation.go_on(3)
        bed.devices.stop()
        with closing(Tap(bed.node)) as tap:
            conversation.go_on()
            assert len(seen(tap)) < ROUNDS / 2
        bed.devices.start(xdp=[mode])
        assert bed.hook()[1] is Outcome.ADOPTED
        conversation.go_on()


def test_without_it_the_same_conversation_goes_on_by_tc(bed: XdpBed) -> None:
    bed.restart(XdpMode.GENERIC)
    with Conversation(bed, 0, socket.SOCK_STREAM) as conversation:
        conversation.go_on()
        bed.restart()
        with closing(Tap(bed.node)) as tap:
            conversation.go_on()
            assert len(seen(tap)) >= 2 * ROUNDS
        bed.restart(XdpMode.NATIVE)
        conversation.go_on()


def test_what_a_veths_other_end_has_not_summed_up_is_translated_by_tc(bed: XdpBed) -> None:
    """As between containers: no checksum is complete there."""
    bed.restart(XdpMode.NATIVE)
    bed.outside.call(lambda: switch("eth0", SUM_WHAT_IS_SENT, on=True))
    try:
        for family in (0, 1):
            with Conversation(bed, family, socket.SOCK_STREAM) as conversation:
                conversation.go_on()
    finally:
        bed.outside.call(lambda: switch("eth0", SUM_WHAT_IS_SENT, on=False))


def test_best_effort_has_the_kernel_run_it_on_a_veth_whose_other_end_might_take_nothing(bed: XdpBed) -> None:
    bed.restart(XdpMode.NATIVE, XdpMode.GENERIC)
    assert bed.hook()[0] is Mechanism.XDP_GENERIC


def test_another_program_on_the_device_stays_and_tc_translates(bed: XdpBed) -> None:
    foreign = _pass_all(bed.node, XdpMode.GENERIC)
    try:
        for wanted in ([XdpMode.NATIVE], [XdpMode.GENERIC], [XdpMode.NATIVE, XdpMode.GENERIC]):
            bed.restart(*wanted)
            (problem,) = bed.devices.domain.frames.problems.values()
            assert "another XDP program is on eth0" in problem.sentence
            with Conversation(bed, 0, socket.SOCK_STREAM) as conversation:
                conversation.go_on()
            assert "xdpgeneric" in bed.node.run("ip link show eth0")
    finally:
        os.close(foreign)
    bed.node.do(bed.devices.domain.audit())


def test_the_kernel_runs_none_under_a_vlan_whose_frames_it_would_take_for_its_own(
    bed: XdpBed, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    listed = tmp_path / "config"  # as a kernel with VLANs says it
    head = "VLAN Dev name\t | VLAN ID\nName-Type: VLAN_NAME_TYPE_RAW_PLUS_VID_NO_PAD\n"
    listed.write_text(head + "eth1.7         | 7  | eth1\neth0.5         | 5  | eth0\n")
    monkeypatch.setattr(xdp_hooks, "_VLANS", listed)
    bed.restart(XdpMode.NATIVE, XdpMode.GENERIC)
    (problem,) = bed.devices.domain.frames.problems.values()
    assert "VLANs are on it (eth0.5)" in problem.sentence
    bed.restart(XdpMode.NATIVE)
    assert bed.hook()[0] is Mechanism.XDP
    listed.write_text(head)
    bed.restart(XdpMode.GENERIC)
    assert bed.hook()[0] is Mechanism.XDP_GENERIC
    listed.write_text(head + "eth0.5         | 5  | eth0\n")  # made later
    bed.node.do(bed.devices.domain.audit())
    bed.node.do(bed.devices.domain.whole_step())
    assert not bed.devices.datapath.frames.hooks
    (problem,) = bed.devices.domain.frames.problems.values()
    assert "VLANs are on it (eth0.5)" in problem.sentence


def test_a_device_that_is_renamed_keeps_it(bed: XdpBed) -> None:
    frames, modes = bed.devices.datapath.frames, [XdpMode.GENERIC]
    bed.node.run("ip link add old0 type veth peer name other0")
    wanted = Accelerated(bed.node.call(lambda: socket.if_nametoindex("old0")), bytes.fromhex("020000000078"))
    before = bed.node.call(lambda: frames.attach("old0", wanted, modes))
    bed.node.run("ip link set old0 name new0")
    hook = bed.node.call(lambda: frames.attach("new0", wanted, modes))
    assert hook == before._replace(target="new0", outcome=Outcome.ADOPTED)
    bed.node.call(lambda: frames.detach("old0"))
    assert "xdpgeneric" in bed.node.run("ip link show new0")
    bed.node.call(lambda: frames.detach("new0"))
    bed.node.run("ip link del new0")


def test_another_address_of_the_device_is_that_of_its_frames_at_once(bed: XdpBed) -> None:
    bed.restart(XdpMode.GENERIC)
    bed.node.run("ip link set eth0 address 02:00:00:00:00:77")
    while bed.devices.domain.frames.desired["eth0"].address != bytes.fromhex("020000000077"):
        bed.node.do(bed.devices.domain.audit())
    bed.devices.settle()
    bed.outside.run("ip neigh flush dev eth0")
    with Conversation(bed, 0, socket.SOCK_STREAM) as conversation:
        conversation.go_on(3)
        with closing(Tap(bed.node)) as tap:
            conversation.go_on()
            assert len(seen(tap)) < ROUNDS / 2


def test_taking_the_datapath_out_of_the_kernel_takes_it_off(bed: XdpBed) -> None:
    bed.restart(XdpMode.NATIVE)
    bed.devices.stop()
    bed.node.call(lambda: Datapath.remove(bed.pins))
    assert "xdp" not in bed.node.run("ip link show eth0")
    bed.devices.start()
    bed.services = ServicesBed(bed.devices, bed.outside)
    bed.services.serve(bed.web)
