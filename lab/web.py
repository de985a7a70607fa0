"""The server of a web pod: TCP and UDP on one port, IPv4 and IPv6, one line in, one line out.

Standard library only; run by its path.

    request:  <marker>\\n
    answer:   <cluster> <pod> <marker>\\n

Over TCP the connection is closed after the answer.
"""

from __future__ import annotations

import argparse
import asyncio
import signal
import socket
from typing import Any, cast


def answer(cluster: str, pod: str, request: bytes) -> bytes:
    return f"{cluster} {pod} ".encode() + request.strip() + b"\n"


class TcpServer(asyncio.Protocol):
    """Answers the first line of a connection, then closes it."""

    def __init__(self, cluster: str, pod: str) -> None:
        self._cluster, self._pod = cluster, pod
        self._received = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)

    def data_received(self, data: bytes) -> None:
        self._received += data
        if b"\n" in self._received or len(self._received) > 4096:
            self._transport.write(answer(self._cluster, self._pod, self._received))
            self._transport.close()


class UdpServer(asyncio.DatagramProtocol):
    """Answers each datagram."""

    def __init__(self, cluster: str, pod: str) -> None:
        self._cluster, self._pod = cluster, pod

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.DatagramTransport, transport)

    def datagram_received(self, data: bytes, addr: tuple[str | Any, int]) -> None:
        self._transport.sendto(answer(self._cluster, self._pod, data), addr)


def listen(port: int, kind: socket.SocketKind) -> list[socket.socket]:
    """A socket for each address family that this machine has."""
    listening = []
    for family, address in ((socket.AF_INET, "0.0.0.0"), (socket.AF_INET6, "::")):
        try:
            one = socket.socket(family, kind)
        except OSError:
            continue
        if family == socket.AF_INET6:
            one.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        one.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        one.setblocking(False)
        one.bind((address, port))
        listening.append(one)
    return listening


async def serve(port: int, cluster: str, pod: str) -> None:
    """Until SIGTERM."""
    loop = asyncio.get_running_loop()
    stopped = asyncio.Event()
    loop.add_signal_handler(signal.SIGTERM, stopped.set)
    for one in listen(port, socket.SOCK_DGRAM):
        await loop.create_datagram_endpoint(lambda: UdpServer(cluster, pod), sock=one)
    for one in listen(port, socket.SOCK_STREAM):
        await loop.create_server(lambda: TcpServer(cluster, pod), sock=one, backlog=1024)
    await stopped.wait()


def main() -> None:
    options = argparse.ArgumentParser(description="the server of a web pod")
    options.add_argument("--port", type=int, required=True)
    options.add_argument("--cluster", required=True)
    options.add_argument("--pod", required=True)
    chosen = options.parse_args()
    asyncio.run(serve(chosen.port, chosen.cluster, chosen.pod))


if __name__ == "__main__":
    main()
