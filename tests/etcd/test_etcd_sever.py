"""Connections of others to a port are cut; everything else, one's own among them, goes on."""

from __future__ import annotations

import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack

import pytest

from clustermesh.address import parse
from clustermesh.errors import Refused
from clustermesh.store.sever import cut, find_connections

_CLIENT = """
import socket, sys
with socket.create_connection((sys.argv[1], int(sys.argv[2]))) as client:
    client.sendall(b"hello")
    try:
        sys.exit(7 if client.recv(1) else 1)
    except ConnectionError:
        sys.exit(0)
"""
Connect = Callable[[], socket.socket]


@pytest.fixture(params=["127.0.0.1", "::1", "::ffff:127.0.0.1"])
def server(request: pytest.FixtureRequest) -> Iterator[socket.socket]:
    """A listener; the last one takes IPv4 on a socket of IPv6, as etcd does."""
    with socket.socket(socket.AF_INET6 if ":" in request.param else socket.AF_INET) as listener:
        listener.bind((request.param.replace("::ffff:127.0.0.1", "::"), 0))
        listener.listen()
        yield listener


def other_process(stack: ExitStack, server: socket.socket) -> tuple[subprocess.Popen[bytes], socket.socket]:
    """A client in a process of its own, and our end of its connection."""
    host, port = server.getsockname()[:2]
    host = "127.0.0.1" if host == "::" else host
    client = stack.enter_context(subprocess.Popen([sys.executable, "-c", _CLIENT, host, str(port)]))
    stack.callback(client.kill)
    connection = stack.enter_context(server.accept()[0])
    assert connection.recv(5) == b"hello"
    return client, connection


def test_others_are_cut_and_own_connections_stay(server: socket.socket) -> None:
    host, port = server.getsockname()[:2]
    host = "127.0.0.1" if host == "::" else host
    with ExitStack() as stack:
        client, _ = other_process(stack, server)
        own = stack.enter_context(socket.create_connection((host, port)))
        accepted = stack.enter_context(server.accept()[0])
        found = find_connections(port)
        assert [(end.local[1], end.remote[0]) for end in found] == [(port, parse(host))]
        cut(found)
        assert client.wait(60) == 0, "the other end has heard of it"
        accepted.sendall(b"still")
        assert own.recv(5) == b"still"
        assert find_connections(port) == frozenset()
        cut(found)


def test_another_port_is_nobodys_business(server: socket.socket) -> None:
    with ExitStack() as stack, socket.create_server(("127.0.0.1", 0)) as other:
        client, connection = other_process(stack, server)
        assert find_connections(other.getsockname()[1]) == frozenset()
        connection.sendall(b"x")
        assert client.wait(60) == 7
    with pytest.raises(Refused, match="nobody listens on port"):
        find_connections(1)


def test_without_permission_it_is_refused(server: socket.socket, monkeypatch: pytest.MonkeyPatch) -> None:
    with ExitStack() as stack:
        client, connection = other_process(stack, server)
        found = find_connections(server.getsockname()[1])
        monkeypatch.setattr("clustermesh.store.sever._SOCK_DESTROY", 77)  # as a kernel without it
        with pytest.raises(Refused, match="connections cannot be cut"):
            cut(found)
        connection.sendall(b"x")
        assert client.wait(60) == 7
