"""The load generator of a client pod: new connections at a steady rate. Standard library only; run by its path.

Prints one JSON object per line, each {"records": [[at, took, cluster, error, host], ...]}: `at` is CLOCK_MONOTONIC
seconds when the request began, `took` seconds, `cluster` who answered or null, `error` what went wrong or null, `host`
the address that was asked: each of those given in turn. The clock is the machine's, so records can be set against what
the lab did when. The last line is {"done": true}.

The rate is kept whatever the answers do: a slow answer never delays the next request, it would hide failures.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import signal
import sys
import time
from typing import Any, cast

KINDS = ("tcp", "udp-connected", "udp-unconnected")
_FLUSH_SECONDS = 0.1

Record = tuple[float, float, str | None, str | None, str]


class TcpExchange(asyncio.Protocol):
    """One request in a connection of its own: `answer` is the line that came back, or the error that came instead."""

    def __init__(self, marker: str) -> None:
        self._marker = marker.encode()
        self._received = b""
        self.answer: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        cast(asyncio.Transport, transport).write(self._marker + b"\n")

    def data_received(self, data: bytes) -> None:
        self._received += data
        if self._received.endswith(b"\n") and not self.answer.done():
            self.answer.set_result(self._received)

    def connection_lost(self, exc: Exception | None) -> None:
        if not self.answer.done():
            self.answer.set_exception(exc or ConnectionResetError("closed without an answer"))
            self.answer.exception()  # asyncio would complain where the call was given up before


class UdpExchange(asyncio.DatagramProtocol):
    """One request from a socket of its own, which must see the answer come from where it asked."""

    def __init__(self, marker: str, server: tuple[str, int], *, connected: bool) -> None:
        self._marker, self._server, self._connected = marker.encode(), server, connected
        self.answer: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        address = None if self._connected else self._server
        cast(asyncio.DatagramTransport, transport).sendto(self._marker + b"\n", address)

    def datagram_received(self, data: bytes, addr: tuple[str | Any, int]) -> None:
        if self.answer.done() or data.split()[-1:] != [self._marker]:
            return  # what was late for the socket that had this port before is no answer to this one
        if addr[:2] == self._server:  # of IPv6 it has four parts
            self.answer.set_result(data)
        else:
            self.answer.set_exception(ValueError(f"asked {self._server}, answered by {addr}"))

    def error_received(self, exc: Exception) -> None:
        if not self.answer.done():
            self.answer.set_exception(exc)


async def ask(server: tuple[str, int], marker: str, kind: str, seconds: float) -> Record:
    """One request of `kind` KINDS. Never raises for what the network does: that is recorded."""
    begun = time.monotonic()
    try:
        async with asyncio.timeout(seconds):
            words = (await (_ask_tcp(server, marker) if kind == "tcp" else _ask_udp(server, marker, kind))).split()
        if len(words) != 3 or words[2] != marker:
            raise ValueError(f"wrong answer {words!r}")
    except (OSError, ValueError) as error:  # TimeoutError is an OSError
        return begun, time.monotonic() - begun, None, f"{type(error).__name__}: {error}".rstrip(": "), server[0]
    return begun, time.monotonic() - begun, words[0], None, server[0]


async def _ask_tcp(server: tuple[str, int], marker: str) -> str:
    transport, exchange = await asyncio.get_running_loop().create_connection(lambda: TcpExchange(marker), *server)
    try:
        return (await exchange.answer).decode()
    finally:
        transport.close()


async def _ask_udp(server: tuple[str, int], marker: str, kind: str) -> str:
    """From a connected socket, or from one that names the server with each datagram: two ways through the kernel."""
    connected = kind == "udp-connected"
    transport, exchange = await asyncio.get_running_loop().create_datagram_endpoint(
        lambda: UdpExchange(marker, server, connected=connected),
        local_addr=None if connected else ("::" if ":" in server[0] else "0.0.0.0", 0),
        remote_addr=server if connected else None,
    )
    try:
        return (await exchange.answer).decode()
    finally:
        transport.close()


async def generate(options: argparse.Namespace) -> None:
    """`rate` requests a second for `seconds`, or until SIGTERM; then waits for the answers still due."""
    kinds = KINDS if options.kinds == "all" else options.kinds.split(",")
    asked = [((host, options.port), kind) for kind in kinds for host in options.hosts.split(",")]
    loop = asyncio.get_running_loop()
    stopped = asyncio.Event()
    loop.add_signal_handler(signal.SIGTERM, stopped.set)
    records: list[Record] = []
    begun, sent = time.monotonic(), 0
    async with asyncio.TaskGroup() as group:
        printer = group.create_task(_print(records))
        async with asyncio.TaskGroup() as requests:
            while not stopped.is_set() and sent < options.rate * options.seconds:
                await asyncio.sleep(max(0.0, begun + sent / options.rate - time.monotonic()))
                marker = f"{options.marker}-{os.getpid()}-{sent}"
                server, kind = asked[sent % len(asked)]
                task = requests.create_task(ask(server, marker, kind, options.wait))
                task.add_done_callback(lambda done: records.append(done.result()))
                sent += 1
        printer.cancel()
    _write({"records": records})
    _write({"done": True})


async def _print(records: list[Record]) -> None:
    while True:
        await asyncio.sleep(_FLUSH_SECONDS)
        if records:
            _write({"records": records})
            records.clear()


def _write(line: object) -> None:
    sys.stdout.write(json.dumps(line) + "\n")
    sys.stdout.flush()


def main() -> None:
    options = argparse.ArgumentParser(description="new connections at a steady rate, one JSON record each")
    options.add_argument("hosts", help="addresses, separated by commas, asked in turn")
    options.add_argument("port", type=int)
    options.add_argument("--rate", type=float, default=250.0, help="requests a second (default 250)")
    options.add_argument("--seconds", type=float, default=60.0, help="for how long at most (default 60)")
    options.add_argument("--wait", type=float, default=10.0, help="a request without an answer by then has failed")
    options.add_argument("--marker", default="marker", help="what each request begins with, and its answer must hold")
    options.add_argument("--kinds", default="tcp", help=f"in turn, of {','.join(KINDS)}, or all (default tcp)")
    asyncio.run(generate(options.parse_args()))


if __name__ == "__main__":
    main()
