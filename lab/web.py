"""The server of a web pod: TCP and UDP on one port, one line in, one line out. Standard library only; run by its path.

    request:  <marker>\\n
    answer:   <cluster> <pod> <marker>\\n

Over TCP the connection is closed after the answer.
"""

from __future__ import annotations

import argparse
import asyncio
import signal
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


async def serve(port: int, cluster: str, pod: str) -> None:
    """Until SIGTERM."""
    loop = asyncio.get_running_loop()
    stopped = asyncio.Event()
    loop.add_signal_handler(signal.SIGTERM, stopped.set)
    server = await loop.create_server(lambda: TcpServer(cluster, pod), "0.0.0.0", port, backlog=1024)
    udp, _ = await loop.create_datagram_endpoint(lambda: UdpServer(cluster, pod), ("0.0.0.0", port))
    await stopped.wait()
    udp.close()
    server.close()


def main() -> None:
    options = argparse.ArgumentParser(description="the server of a web pod")
    options.add_argument("--port", type=int, required=True)
    options.add_argument("--cluster", required=True)
    options.add_argument("--pod", required=True)
    chosen = options.parse_args()
    asyncio.run(serve(chosen.port, chosen.cluster, chosen.pod))


if __name__ == "__main__":
    main()
