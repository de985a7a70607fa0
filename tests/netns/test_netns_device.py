"""Who provides the WireGuard device, and what is said when nobody can.

  node 1 (net + mount namespace, own /run)
+------------------------------------------+
|  cm-wg0  --- wireguard-go, or what a test |
|              puts in its place            |
+------------------------------------------+
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
from pathlib import Path

import pytest
from netns_mesh import MTU, MeshNode

from agent import netlink
from agent.wireguard import kernel, keys
from agent.wireguard.device import FWMARK, LISTEN_PORT, Device, open_device
from agent.wireguard.kernel import KernelDevice
from agent.wireguard.peer import Settings
from agent.wireguard.uapi import UapiClient
from agent.wireguard.userspace import SOCKETS, UserspaceDevice
from clustermesh.errors import Refused, Unavailable


def ensure(node: MeshNode, device: Device) -> bool:
    return node.do(device.ensure(node.private_key, LISTEN_PORT, FWMARK, MTU))


def userspace(node: MeshNode, binary: str = "wireguard-go") -> UserspaceDevice:
    return UserspaceDevice("cm-wg0", "the kernel has none", log=node.state / "wireguard-go.log", binary=binary)


def program(tmp_path: Path, script: str) -> str:
    path = tmp_path / "wireguard-fake"
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)
    return str(path)


def test_probe_says_in_a_sentence_what_is_missing_and_leaves_no_device(node: MeshNode) -> None:
    lack = node.do(kernel.find_lack())
    device = node.do(open_device(log=node.state / "wireguard-go.log"))
    assert device.kind == ("kernel" if lack is None else "userspace")
    assert device.why == ("the kernel has WireGuard" if lack is None else lack)
    assert node.do(netlink.find_link("cm-wg-probe")) is None


def test_kernel_device_without_kernel_support_is_refused(node: MeshNode) -> None:
    if node.do(kernel.find_lack()) is None:
        pytest.skip("this kernel has WireGuard: its absence cannot be tested")
    device = KernelDevice("cm-wg0", "by force")
    with pytest.raises(Refused, match="add device cm-wg0: Operation not supported"):
        ensure(node, device)
    with pytest.raises(Unavailable, match="read cm-wg0"):
        node.do(device.peers())


def test_kernel_device_does_not_take_over_another_kind(node: MeshNode) -> None:
    """What a wireguard-go leaves behind when the machine comes up with a kernel that has WireGuard."""
    node.run("ip link add cm-wg0 type bridge")
    with pytest.raises(Refused, match="cm-wg0 is a device of kind bridge"):
        ensure(node, KernelDevice("cm-wg0", "the kernel has WireGuard"))


def test_kernel_device_works_where_the_kernel_has_it(node: MeshNode) -> None:
    lack = node.do(kernel.find_lack())
    if lack is not None:
        pytest.skip(lack)
    device = KernelDevice("cm-wg0", "the kernel has WireGuard")
    assert ensure(node, device) is True
    assert ensure(node, device) is False
    assert node.do(device.peers()) == {}


def test_device_is_up_without_an_address(wireguard_go: None, node: MeshNode) -> None:
    node.call(lambda: netlink.set_rp_filter("default", 2))
    device = userspace(node)
    assert ensure(node, device) is True
    assert ensure(node, device) is False
    settings = node.do(UapiClient(SOCKETS / "cm-wg0.sock").get()).settings
    assert settings == Settings(private_key=node.private_key, listen_port=51871, fwmark=0xE00)
    link = node.do(netlink.find_link("cm-wg0"))
    assert link is not None
    assert (link.up, link.mtu) == (True, MTU)
    assert node.run("ip -4 addr show cm-wg0") == node.run("ip -6 addr show cm-wg0") == "", "not even a link-local one"
    assert node.call(Path("/proc/sys/net/ipv4/conf/cm-wg0/rp_filter").read_text) == "0\n"


def test_damage_to_the_device_is_repaired(wireguard_go: None, node: MeshNode) -> None:
    device = userspace(node)
    ensure(node, device)
    node.run("ip link set cm-wg0 down mtu 1280")
    assert ensure(node, device) is False
    link = node.do(netlink.find_link("cm-wg0"))
    assert link is not None
    assert (link.up, link.mtu) == (True, MTU)


def test_other_key_is_replaced_on_the_running_device(wireguard_go: None, node: MeshNode) -> None:
    """An agent whose state folder was lost adopts the device, and gives it the new key."""
    device = userspace(node)
    ensure(node, device)
    other = keys.generate()
    assert node.do(device.ensure(other, LISTEN_PORT, FWMARK, MTU)) is False
    settings = node.do(UapiClient(SOCKETS / "cm-wg0.sock").get()).settings
    assert settings is not None
    assert settings.private_key == other


def test_missing_program_is_refused_with_the_reason_for_both(node: MeshNode) -> None:
    with pytest.raises(Refused, match="no-such-program is not installed, and the kernel has none"):
        ensure(node, userspace(node, "no-such-program"))


def test_program_that_ends_at_once_is_quoted(wireguard_go: None, node: MeshNode, tmp_path: Path) -> None:
    with pytest.raises(Unavailable, match="ended at once: the moon is in the way"):
        ensure(node, userspace(node, program(tmp_path, "echo the moon is in the way >&2; exit 1")))


def test_name_taken_by_another_kind_of_device_is_refused(wireguard_go: None, node: MeshNode) -> None:
    node.run("ip link add cm-wg0 type bridge")
    with pytest.raises(Refused, match="TUN device cm-wg0"):
        ensure(node, userspace(node))


def test_socket_that_a_dead_process_left_is_no_obstacle(wireguard_go: None, node: MeshNode) -> None:
    def leave_socket() -> None:
        SOCKETS.mkdir(parents=True)
        with socket.socket(socket.AF_UNIX) as dead:
            dead.bind(str(SOCKETS / "cm-wg0.sock"))

    node.call(leave_socket)
    device = userspace(node)
    node.do(device.died())
    assert ensure(node, device) is True


def test_daemon_has_its_own_session_and_none_of_our_files(wireguard_go: None, node: MeshNode, tmp_path: Path) -> None:
    with (tmp_path / "ours").open("w") as ours:
        os.set_inheritable(ours.fileno(), True)
        ensure(node, userspace(node))
    pid = node.wireguard_pid()
    assert os.getsid(pid) != os.getsid(0)
    names = set[str]()
    for link in Path(f"/proc/{pid}/fd").iterdir():
        with contextlib.suppress(FileNotFoundError):  # it opens and closes some all the time
            names.add(str(link.readlink()))
    assert str(tmp_path / "ours") not in names
    assert str(node.state / "wireguard-go.log") in names


def test_stopped_daemon_is_known_to_be_silent_and_not_started_a_second_time(wireguard_go: None, node: MeshNode) -> None:
    log = node.state / "wireguard-go.log"
    device = UserspaceDevice("cm-wg0", "the kernel has none", log=log, ask_every=0.05)
    ensure(node, device)
    pid = node.wireguard_pid()

    async def until_silent(silent: bool) -> None:
        watching = asyncio.create_task(device.died())
        while (device.silent_since is not None) != silent:  # the device is no asyncio.Event
            await asyncio.sleep(0.05)
        assert not watching.done()
        watching.cancel()

    os.kill(pid, signal.SIGSTOP)
    try:
        node.do(until_silent(True))
        with pytest.raises(Unavailable, match="no answer"):
            ensure(node, device)
    finally:
        os.kill(pid, signal.SIGCONT)
    node.do(until_silent(False))
    assert ensure(node, device) is False
    assert node.wireguard_pid() == pid
