"""One node of a mesh: a thread of this process in network and mount namespaces of its own, with an event loop inside.

The code under test runs in the node as an agent would: with its own /run, so that two wireguard-go may both be called
cm-wg0, its own devices and routes. Namespaces go with the thread and the processes started in it; `close` ends those.
"""

from __future__ import annotations

import asyncio
import ctypes
import os
import signal
import socket
import struct
import subprocess
import threading
from collections.abc import Callable, Coroutine
from contextlib import suppress
from pathlib import Path
from typing import Any, TypeVar

from agent import netlink
from agent.wireguard.userspace import SOCKETS

T = TypeVar("T")
TIMEOUT = 60.0  # seconds for any one step
_CLONE_NEWNS, _CLONE_NEWNET = 0x00020000, 0x40000000
_SO_RCVBUFFORCE, _SOL_PACKET, _PACKET_STATISTICS = 33, 263, 6
_LIBC = ctypes.CDLL(None, use_errno=True)


def _leave() -> None:
    if _LIBC.unshare(_CLONE_NEWNS | _CLONE_NEWNET):
        raise OSError(ctypes.get_errno(), "unshare")
    subprocess.run(["mount", "--make-rprivate", "/"], check=True, timeout=TIMEOUT)
    subprocess.run(["mount", "-t", "tmpfs", "tmpfs", "/run"], check=True, timeout=TIMEOUT)
    Path("/run/netns").mkdir()


class NetnsNode:
    """`number` names everything of the node: underlay 192.0.2.N and 2001:db8::N, pod CIDRs 10.N.0.0/24 and
    fd00:10:N::/64."""

    def __init__(self, number: int) -> None:
        self.address, self.pod_cidr = f"192.0.2.{number}", f"10.{number}.0.0/24"
        self.address6, self.pod_cidr6 = f"2001:db8::{number}", f"fd00:10:{number}::/64"
        self._sockets = list[socket.socket]()
        self._loop = asyncio.new_event_loop()
        self._ready = threading.Event()
        self._thread = threading.Thread(target=self._live, name=f"node{number}", daemon=True)
        self._thread.start()
        assert self._ready.wait(TIMEOUT)
        self.call(lambda: None)

    def _live(self) -> None:
        try:
            _leave()
            self._loop.call_soon(self._ready.set)
            self._loop.run_forever()
            self._loop.run_until_complete(self._end_tasks())
        finally:
            self._ready.set()
            self._loop.close()

    async def _end_tasks(self) -> None:
        """Those that a test which failed left."""
        left = asyncio.all_tasks() - {asyncio.current_task()}
        for task in left:
            task.cancel()
        await asyncio.gather(*left, return_exceptions=True)

    def do(self, work: Coroutine[Any, Any, T]) -> T:
        """Run a coroutine inside the node."""
        return asyncio.run_coroutine_threadsafe(asyncio.wait_for(work, TIMEOUT), self._loop).result(2 * TIMEOUT)

    def call(self, work: Callable[[], T]) -> T:
        """Run a function inside the node."""

        async def wrapped() -> T:
            return work()

        return self.do(wrapped())

    def run(self, command: str) -> str:
        done = self.call(
            lambda: subprocess.run(command.split(), capture_output=True, text=True, timeout=TIMEOUT, check=False)
        )
        assert done.returncode == 0, f"{command}: {done.stderr}"
        return done.stdout

    def wireguard_pid(self, name: str = "cm-wg0") -> int:
        """Process id of the wireguard-go behind the device: it made the socket, so the kernel knows."""

        def ask() -> int:
            with socket.socket(socket.AF_UNIX) as connection:
                connection.settimeout(TIMEOUT)
                connection.connect(str(SOCKETS / f"{name}.sock"))
                return int.from_bytes(connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12)[:4], "little")

        return self.call(ask)

    def kill_wireguard(self, number: signal.Signals = signal.SIGKILL) -> None:
        pid = self.wireguard_pid()
        watch = os.pidfd_open(pid)
        try:
            os.kill(pid, number)
            assert _wait_readable(watch), f"wireguard-go {pid} does not end"
        finally:
            os.close(watch)

    def pod_socket(self, pod: str, family: int, kind: int, protocol: int = 0) -> socket.socket:
        """A socket inside the namespace of a pod, to be used from anywhere."""
        return self.open_socket(
            lambda: netlink.in_netns(Path("/run/netns", pod), lambda: socket.socket(family, kind, protocol))
        )

    def open_socket(self, make: Callable[[], socket.socket]) -> socket.socket:
        """What `make` makes inside the node, closed with it at the latest."""
        made = self.call(make)
        self._sockets.append(made)
        made.settimeout(TIMEOUT)
        return made

    def close(self) -> None:
        for each in self._sockets:
            each.close()
        with suppress(OSError):
            self.kill_wireguard()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(TIMEOUT)
        assert not self._thread.is_alive()


def _wait_readable(fd: int) -> bool:
    import select

    return bool(select.select([fd], [], [], TIMEOUT)[0])


def join(one: NetnsNode, two: NetnsNode) -> None:
    """A cable between two nodes. Each has the other for its default gateway, so that whatever leaks is seen there."""
    pid = two.call(threading.get_native_id)
    one.run(f"ip link add eth0 type veth peer name eth0 netns {pid}")
    for node, other in ((one, two), (two, one)):
        node.run(f"ip addr add {node.address}/24 dev eth0")
        node.run(f"ip addr add {node.address6}/64 dev eth0 nodad")
        node.run("ip link set eth0 up")
        node.run(f"ip route add default via {other.address}")
        node.run(f"ip route add default via {other.address6}")


class Tap:
    """Every IP packet that crosses the underlay device of a node, both ways."""

    def __init__(self, node: NetnsNode) -> None:
        self._socket = node.open_socket(
            lambda: socket.socket(socket.AF_PACKET, socket.SOCK_DGRAM, socket.htons(0x0003))
        )
        self._socket.setsockopt(socket.SOL_SOCKET, _SO_RCVBUFFORCE, 64 << 20)  # all that a test says between two looks
        self._socket.bind(("eth0", 0x0003))
        self._socket.setblocking(False)

    def packets(self) -> list[bytes]:
        """What came since the last call."""
        found = []
        with suppress(BlockingIOError):
            while True:
                packet, source = self._socket.recvfrom(1 << 16)
                if source[1] in (0x0800, 0x86DD):  # IPv4, IPv6
                    found.append(packet)
        assert self._count_lost() == 0, "what is not seen may have been clear"
        return found

    def _count_lost(self) -> int:
        """Packets for which there was no room, since the last call."""
        said = self._socket.getsockopt(_SOL_PACKET, _PACKET_STATISTICS, 8)
        return int(struct.unpack("=II", said)[1])

    def close(self) -> None:
        self._socket.close()


def is_clear(packet: bytes) -> bool:
    """Whether a packet of the underlay shows a pod's address, or is a piece of one that was too large."""
    if packet[0] >> 4 == 6:
        return packet[6] == socket.IPPROTO_FRAGMENT or b"\xfd\x00\x00\x10" in (packet[8:12], packet[24:28])
    fragment = struct.unpack_from("!H", packet, 6)[0] & 0x3FFF  # more fragments, or an offset
    return bool(fragment) or 10 in (packet[12], packet[16])  # source, destination: 10.0.0.0/8


def is_wireguard(packet: bytes) -> bool:
    """Whether a packet is UDP to or from the mesh's port."""
    over_ipv6 = packet[0] >> 4 == 6
    protocol, header = (packet[6], 40) if over_ipv6 else (packet[9], (packet[0] & 15) * 4)
    return protocol == socket.IPPROTO_UDP and 51871 in struct.unpack_from("!HH", packet, header)
