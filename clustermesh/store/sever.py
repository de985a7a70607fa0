"""Cuts the TCP connections of others to a port of this network namespace: what is at their ends must connect again.

etcd asks whether a watch is permitted when it is made and never again, so who is not let in any more hears on over a
connection from before. Linux ends the sockets of any process for whoever has CAP_NET_ADMIN (sock_diag(7), SOCK_DESTROY;
CONFIG_INET_DIAG_DESTROY). This process' own connections are left alone.
"""

from __future__ import annotations

import os
import socket
import struct
from collections.abc import Iterable, Iterator
from contextlib import suppress
from typing import Final, NamedTuple

from clustermesh.address import V4, Address
from clustermesh.errors import Refused

_NETLINK_SOCK_DIAG: Final = 4
_SOCK_DIAG_BY_FAMILY, _SOCK_DESTROY = 20, 21
_NLMSG_ERROR, _NLMSG_DONE = 2, 3
_REQUEST, _ACK, _DUMP = 0x1, 0x4, 0x300
_OPEN: Final = 1 << 1 | 1 << 8  # ESTABLISHED, and CLOSE_WAIT, where the other end still hears
_LISTEN: Final = 1 << 10
_HEADER: Final = struct.Struct("=IHHII")  # nlmsghdr: length, type, flags, sequence, port
_QUERY: Final = struct.Struct("=BBxxI48s")  # inet_diag_req_v2: family, protocol, states, inet_diag_sockid
_FOUND: Final = struct.Struct("=B3x48s16xI")  # inet_diag_msg: family, inet_diag_sockid, inode
_PORTS: Final = struct.Struct("!HH")  # the first of an inet_diag_sockid: local, remote
_TIMEOUT: Final = 5.0


class Connection(NamedTuple):
    """One end of a TCP connection, as the kernel names it: `id` holds its addresses, ports and a cookie of its own."""

    family: int
    id: bytes

    @property
    def local(self) -> tuple[Address, int]:
        return self._address(4), _PORTS.unpack_from(self.id)[0]

    @property
    def remote(self) -> tuple[Address, int]:
        return self._address(20), _PORTS.unpack_from(self.id)[1]

    def _address(self, at: int) -> Address:
        if self.family == socket.AF_INET:
            return Address(V4.address[:12] + self.id[at : at + 4])
        return Address(self.id[at : at + 16])


def find_connections(port: int) -> frozenset[Connection]:
    """What is connected to `port`, but for this process. Raises Refused, also where nobody listens there."""
    if not any(_dump(_PORTS.pack(port, 0), _LISTEN)):
        raise Refused(f"nobody listens on port {port} in this network namespace")
    own = _own_inodes()
    ours = {end.local for end, inode in _dump(_PORTS.pack(0, port)) if inode in own}
    return frozenset(end for end, _ in _dump(_PORTS.pack(port, 0)) if end.remote not in ours)


def cut(connections: Iterable[Connection]) -> None:
    """End `connections` at once; ended already is success. Raises Refused where that is not permitted or unknown."""
    with _open() as netlink:
        for end in connections:
            query = _QUERY.pack(end.family, socket.IPPROTO_TCP, _OPEN, end.id)
            try:
                list(_ask(netlink, _SOCK_DESTROY, _REQUEST | _ACK, query))
            except FileNotFoundError:
                continue
            except OSError as e:
                raise Refused(f"connections cannot be cut: {e.strerror or e}") from e


def _dump(ports: bytes, states: int = _OPEN) -> Iterator[tuple[Connection, int]]:
    """The ends in one of `states` with the local and the remote port given, 0 for any, each with its inode."""
    with _open() as netlink:
        for family in (socket.AF_INET, socket.AF_INET6):
            query = _QUERY.pack(family, socket.IPPROTO_TCP, states, ports)
            try:
                for found in _ask(netlink, _SOCK_DIAG_BY_FAMILY, _REQUEST | _DUMP, query):
                    of, named, inode = _FOUND.unpack_from(found)
                    yield Connection(of, named), inode
            except OSError as e:
                raise Refused(f"connections cannot be listed: {e.strerror or e}") from e


def _open() -> socket.socket:
    try:
        netlink = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, _NETLINK_SOCK_DIAG)
    except OSError as e:
        raise Refused(f"connections cannot be listed: {e.strerror}") from e
    netlink.settimeout(_TIMEOUT)
    return netlink


def _ask(netlink: socket.socket, kind: int, flags: int, payload: bytes) -> Iterator[bytes]:
    """The payloads of the answer, up to its end. Raises OSError, also the one that the kernel answers with."""
    netlink.send(_HEADER.pack(_HEADER.size + len(payload), kind, flags, 0, 0) + payload)
    while True:
        data = netlink.recv(1 << 16)
        while data:
            length, kind, *_ = _HEADER.unpack_from(data)
            body, data = data[_HEADER.size : length], data[(length + 3) & ~3 :]
            if kind == _NLMSG_ERROR and (code := -struct.unpack_from("=i", body)[0]):
                raise OSError(code, os.strerror(code))
            if kind in (_NLMSG_ERROR, _NLMSG_DONE):
                return
            yield body


def _own_inodes() -> set[int]:
    """Of this process' sockets."""
    found = set()
    for name in os.listdir("/proc/self/fd"):
        with suppress(OSError):  # the descriptor of the listing itself is gone by now
            found.add(os.stat(f"/proc/self/fd/{name}").st_ino)
    return found
