"""Packets of more than 64 KiB (BIG TCP), which the kernel makes where a device takes them. No header says how long one
is: IPv4's length is 0, IPv6's too, and a header of its own that is none on the wire stands before that of TCP."""

from __future__ import annotations

import socket
import struct
import threading
from contextlib import suppress
from random import Random

from netns_node import TIMEOUT, NetnsNode

SIZE = 200_000
_SETLINK, _REQUEST_AND_ACKNOWLEDGE = 19, 5
_SIZES = (41, 58, 63, 64)  # IFLA_{GSO,GRO}_MAX_SIZE, IFLA_{GSO,GRO}_IPV4_MAX_SIZE
_SO_RCVBUFFORCE = 33


def allow(device: str) -> None:
    """Have the device of this network namespace take them. (iproute2 knows IPv4's size since 6.3.)"""
    body = struct.pack("=BxHiII", 0, 0, socket.if_nametoindex(device), 0, 0)
    body += b"".join(struct.pack("=HHI", 8, kind, SIZE) for kind in _SIZES)
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW) as kernel:
        kernel.send(struct.pack("=IHHII", 16 + len(body), _SETLINK, _REQUEST_AND_ACKNOWLEDGE, 1, 0) + body)
        (error,) = struct.unpack_from("=i", kernel.recv(4096), 16)
    assert error == 0, f"{device}: {error}"


class Lengths:
    """Of the IP packets that any device of a node sees."""

    def __init__(self, node: NetnsNode) -> None:
        self._socket = node.open_socket(lambda: socket.socket(socket.AF_PACKET, socket.SOCK_DGRAM, socket.htons(3)))
        self._socket.setsockopt(socket.SOL_SOCKET, _SO_RCVBUFFORCE, 64 << 20)
        self._socket.setblocking(False)

    def largest(self) -> int:
        """Of those since the last call."""
        found, some = 0, bytearray(1)
        with suppress(BlockingIOError):
            while True:
                found = max(found, self._socket.recv_into(some, 1, socket.MSG_TRUNC))
        return found

    def close(self) -> None:
        self._socket.close()


def talk(client: socket.socket, to: tuple[str, int], server: socket.socket, size: int = 4 << 20) -> None:
    """Much from one to the other, and back. Closes all."""
    said, heard = Random(1).randbytes(size), list[bytes]()

    def serve() -> None:
        connection, _ = server.accept()
        with connection:
            connection.settimeout(TIMEOUT)
            heard.append(_all_of(connection, size))
            connection.sendall(heard[0])

    serving = threading.Thread(target=serve)
    serving.start()
    with server, client:
        client.connect(to)
        client.sendall(said)
        assert _all_of(client, size) == said
        serving.join(TIMEOUT)
    assert heard == [said]


def _all_of(connection: socket.socket, size: int) -> bytes:
    found = bytearray()
    while len(found) < size:
        some = connection.recv(1 << 20)
        assert some, "closed"
        found += some
    return bytes(found)
