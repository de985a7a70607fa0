"""A network namespace to run tests in: a thread of this process that has left for one, loopback up.

Sockets belong to the namespace they were made in, wherever they are used afterwards, so servers and clients made
through `call` can be driven from anywhere. The namespace goes with the thread and the last socket.
"""

from __future__ import annotations

import ctypes
import os
import socket
import subprocess
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from typing import Self, TypeVar

T = TypeVar("T")
_CLONE_NEWNET = 0x40000000
_LIBC = ctypes.CDLL(None, use_errno=True)
TIMEOUT = 180.0  # seconds for any one step: the kernel verifies what BCC made for ten, for a minute where it is busy


def _leave() -> None:
    if _LIBC.unshare(_CLONE_NEWNET) != 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))
    subprocess.run(["ip", "link", "set", "lo", "up"], check=True, timeout=TIMEOUT)


class Node:
    """A context manager; what is opened through it is closed with it."""

    def __enter__(self) -> Self:
        self._thread = ThreadPoolExecutor(max_workers=1, initializer=_leave)
        self._open = ExitStack()
        self.call(lambda: None)
        return self

    def __exit__(self, *_: object) -> None:
        self._open.close()
        self._thread.shutdown()

    def call(self, work: Callable[[], T]) -> T:
        return self._thread.submit(work).result(timeout=TIMEOUT)

    def run(self, *command: str) -> str:
        done = self.call(lambda: subprocess.run(command, capture_output=True, text=True, timeout=TIMEOUT, check=False))
        assert done.returncode == 0, done.stderr
        return done.stdout

    def add_address(self, address: str) -> None:
        """Give it to loopback. An IPv6 one may be bound to, and has its route, a moment after it is there."""
        family, bits = ("-6", 128) if ":" in address else ("-4", 32)
        self.run("ip", "address", "replace", f"{address}/{bits}", "dev", "lo")
        while f"local {address} " not in self.run("ip", family, "route", "show", "table", "local", "to", address):
            time.sleep(0.01)

    def socket(self, family: int, kind: int, protocol: int = 0) -> socket.socket:
        made = self.call(lambda: socket.socket(family, kind, protocol))
        made.settimeout(TIMEOUT)
        self._open.callback(made.close)
        return made

    def echo(self, kind: int, address: str = "127.0.0.1") -> EchoServer:
        """A server on a free port of `address`; an address that is not there yet is given to loopback."""
        family = socket.AF_INET6 if ":" in address else socket.AF_INET
        if address not in ("127.0.0.1", "::1"):
            self.add_address(address)
        server = EchoServer(self.socket(family, kind), address)
        self._open.callback(server.close)
        return server


class EchoServer:
    """Answers with its own port in front of what it was sent, so that a client can tell who answered."""

    def __init__(self, listener: socket.socket, address: str) -> None:
        self._socket = listener
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((address, 0))
        self.address: tuple[str, int] = listener.getsockname()[:2]
        is_stream = listener.type == socket.SOCK_STREAM
        if is_stream:
            listener.listen(128)
        listener.settimeout(0.1)
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._serve, args=(self._accept if is_stream else self._answer,))
        self._thread.start()

    @property
    def port(self) -> int:
        return self.address[1]

    def _serve(self, once: Callable[[], None]) -> None:
        while not self._stopped.is_set():
            try:
                once()
            except TimeoutError:
                continue
            except ConnectionError:
                continue  # a client that left without waiting

    def _accept(self) -> None:
        connection, _ = self._socket.accept()
        with connection:
            connection.settimeout(TIMEOUT)
            connection.sendall(b"%d:" % self.port + connection.recv(100))

    def _answer(self) -> None:
        data, peer = self._socket.recvfrom(100)
        self._socket.sendto(b"%d:" % self.port + data, peer)

    def close(self) -> None:
        self._stopped.set()
        self._thread.join(TIMEOUT)
        self._socket.close()
