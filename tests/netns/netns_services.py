"""Servers and clients around one node's services, so that a call costs a millisecond: sockets are made in their network
namespaces and driven from here."""

from __future__ import annotations

import selectors
import socket
import threading
import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from itertools import count, cycle
from pathlib import Path
from typing import Any, NamedTuple

from netns_devices import DevicesBed
from netns_node import NetnsNode

from agent.bpf.bpffs import cgroup2_root
from agent.bpf.layouts import Reason
from agent.domains.tables import open_map
from agent.plan.services import ServicePlanner, ServiceTrackers
from clustermesh.address import parse
from clustermesh.mesh.answering import Here
from clustermesh.mesh.resolve import resolve
from clustermesh.model import LocalService
from clustermesh.reconcile import Reconciler, Tracker

PATIENCE = 10.0
HERE = "n"  # the node's name


class Answer(NamedTuple):
    """Who answered, and whom he saw."""

    server: str
    client: str


class Servers:
    """Each answers every connection and datagram with its name and its client's address."""

    def __init__(self) -> None:
        self._selector = selectors.DefaultSelector()
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._serve, name="servers", daemon=True)

    def add(self, name: str, listening: socket.socket) -> None:
        listening.setblocking(False)
        self._selector.register(listening, selectors.EVENT_READ, name)

    def start(self) -> None:
        self._thread.start()

    def _serve(self) -> None:
        while not self._ended.is_set():
            for key, _ in self._selector.select(0.05):
                with suppress(OSError):  # a client that left
                    self._answer(key.fileobj, key.data)

    def _answer(self, listening: Any, name: str) -> None:
        if listening.type == socket.SOCK_STREAM:
            connection, peer = listening.accept()
            with connection:
                connection.sendall(f"{name} {peer[0]}".encode())
        else:
            _, peer = listening.recvfrom(100)
            listening.sendto(f"{name} {peer[0]}".encode(), peer)

    def close(self) -> None:
        self._ended.set()
        if self._thread.ident is not None:
            self._thread.join(PATIENCE)


class ServicesBed:
    """`node` serves; `outside` is the other node and, by other addresses of its, clients of the world."""

    def __init__(self, devices: DevicesBed, outside: NetnsNode) -> None:
        self.devices, self.node, self.outside = devices, devices.node, outside
        self.servers = Servers()
        self._ports = {socket.SOCK_STREAM: count(33_000), socket.SOCK_DGRAM: cycle(range(50_000, 50_040))}
        maps = {name: open_map(devices.datapath, f"lb_{name}") for name in ServiceTrackers._fields}
        self._tables = ServiceTrackers(*(Tracker(name, each) for name, each in maps.items()))
        self._reconciler = Reconciler(*self._tables)
        self._reconciler.may_delete = True
        self._planner = ServicePlanner(self._tables, [each.max_entries for each in maps.values()])
        self._here = Here(HERE, addresses=tuple(map(parse, (self.node.address, self.node.address6))))

    def serve(self, *services: LocalService) -> None:
        """As the agent does."""
        for service in services:
            name = service.service.namespace, service.service.name
            self._planner.update(name, resolve(service, (), self._here))
        self.node.do(self._reconciler.flush())
        assert self._reconciler.settled

    def withdraw(self, *services: LocalService) -> None:
        for service in services:
            self._planner.update((service.service.namespace, service.service.name), [])
        self.node.do(self._reconciler.flush())

    def wait_for(self, where: str, to: tuple[str, int]) -> None:
        """Until it can be reached from there: the kernel asks for neighbours once it is sure of its own addresses."""
        for _ in range(100):
            client = self.socket_in(where, socket.AF_INET6 if ":" in to[0] else socket.AF_INET, socket.SOCK_STREAM)
            client.settimeout(0.1)
            with suppress(OSError):  # it is late, or the kernel has given up to ask for a neighbour just now
                self.ask(client, to)
                return
            time.sleep(0.01)
        raise TimeoutError(to)

    def socket_in(self, where: str, family: int, kind: int) -> socket.socket:
        """In a pod, or "outside"."""
        if where == "outside":
            made = self.outside.open_socket(lambda: socket.socket(family, kind))
        else:
            made = self.node.pod_socket(where, family, kind)
        made.settimeout(PATIENCE)
        return made

    def listen(self, name: str, where: str, addresses: Iterable[str], port: int) -> None:
        for address in addresses:
            for kind in (socket.SOCK_STREAM, socket.SOCK_DGRAM):
                made = self.socket_in(where, socket.AF_INET6 if ":" in address else socket.AF_INET, kind)
                made.bind((address, port))
                if kind == socket.SOCK_STREAM:
                    made.listen(128)
                self.servers.add(name, made)

    def ask(self, client: socket.socket, to: tuple[str, int]) -> Answer:
        """One connection, or one datagram there and back. Datagrams come from few ports, of which most are still known
        from calls before. Closes the client. OSError."""
        with client:
            if not client.getsockname()[1]:
                client.bind(("", next(self._ports[client.type])))
            client.connect(to)
            if client.type == socket.SOCK_DGRAM:
                client.send(b"?")
            said = client.recv(100).decode()
            while client.type == socket.SOCK_STREAM and client.recv(100):
                pass  # who closes first cannot use the port again at once
        if not said:
            raise ConnectionResetError
        return Answer(*said.split())

    def asks(self, where: str, to: tuple[str, int], kind: int, source: str = "") -> Callable[[], Answer]:
        """A client of `where` that calls `to`, each time anew."""
        family = socket.AF_INET6 if ":" in to[0] else socket.AF_INET

        def ask() -> Answer:
            client = self.socket_in(where, family, kind)
            client.bind((source, next(self._ports[kind])))
            return self.ask(client, to)

        return ask

    def translated(self) -> int:
        """How many connections and flows have begun through packets."""
        return self.devices.datapath.counters()[Reason.NAT_NEW]

    def is_silent(self, where: str, to: tuple[str, int], kind: int, source: str, beside: tuple[str, int]) -> bool:
        """Whether a call is dropped without a word: no program takes it, one says that it has dropped something, and
        nothing has come back when the same client has its answer from `beside`."""
        client = self.socket_in(where, socket.AF_INET6 if ":" in to[0] else socket.AF_INET, kind)
        client.bind((source, next(self._ports[kind])))
        before, began = self._drops(), self.translated()
        client.setblocking(False)
        with client:
            with suppress(BlockingIOError):
                client.connect(to)
                if kind == socket.SOCK_DGRAM:
                    client.send(b"?")
            end = time.monotonic() + PATIENCE
            while (
                self._drops() == before and time.monotonic() < end
            ):  # a busy kernel takes a packet later than it is sent
                time.sleep(0.001)
            is_dropped = self._drops() > before and self.translated() == began
            self.asks(where, beside, kind, source)()
            return is_dropped and not client.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)

    def _drops(self) -> int:
        return sum(count for reason, count in self.devices.datapath.counters().items() if "DROP" in reason.name)

    def close(self) -> None:
        self.servers.close()


def in_cgroup(name: str, make: Callable[[], list[socket.socket]]) -> list[socket.socket]:
    """What `make` makes while this process is in a cgroup of this name: a socket is of the cgroup it was made in."""
    root = cgroup2_root()
    assert root is not None
    line = next(line for line in Path("/proc/self/cgroup").read_text().splitlines() if line.startswith("0::"))
    home = root / line.removeprefix("0::/")
    (root / name / "cgroup.procs").write_text("0")
    try:
        return make()
    finally:
        (home / "cgroup.procs").write_text("0")
