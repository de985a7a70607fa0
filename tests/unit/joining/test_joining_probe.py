"""Whether the etcd of another cluster answers: what the question leaves behind in this process."""

from __future__ import annotations

import asyncio
import socket
import ssl
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path

from certs.issue import create_authority, issue
from certs.names import server
from clustermesh.joining.member import Entrance
from clustermesh.joining.probe import probe

NOW = datetime.now(UTC)
AUTHORITY = create_authority(NOW)


def serving(tmp_path: Path) -> ssl.SSLContext:
    """Of a server of the cluster beta."""
    pair = issue(AUTHORITY, server(), NOW)
    (tmp_path / "crt").write_bytes(pair.certificate_pem)
    (tmp_path / "key").write_bytes(pair.key_pem)
    made = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    made.load_cert_chain(tmp_path / "crt", tmp_path / "key")
    return made


@contextmanager
def answering(answer: Callable[[socket.socket], None]) -> Iterator[int]:
    """A server of one connection, in a thread of its own as OpenSSL's errors are a thread's; its port."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        listening.settimeout(10)

        def serve() -> None:
            connection, _ = listening.accept()
            connection.settimeout(10)
            with connection, suppress(ConnectionError):
                answer(connection)

        thread = threading.Thread(target=serve)
        thread.start()
        yield listening.getsockname()[1]
        thread.join()


def test_an_etcd_that_refuses_who_asked_harms_no_other_connection(tmp_path: Path) -> None:
    strict, mild, over = serving(tmp_path), serving(tmp_path), threading.Event()
    strict.verify_mode = ssl.CERT_REQUIRED

    def refuse(connection: socket.socket) -> None:
        """As an etcd does with who shows no certificate; it says so after the goodbye, if it hears one."""
        said, says = ssl.MemoryBIO(), ssl.MemoryBIO()
        session = strict.wrap_bio(said, says, server_side=True)
        refused = False
        while not refused:
            try:
                session.do_handshake()
            except ssl.SSLWantReadError:
                connection.sendall(says.read())
                said.write(connection.recv(1 << 16))
            except ssl.SSLError:
                refused = True
        try:
            connection.recv(1 << 16)
            connection.sendall(says.read())
            connection.recv(1 << 16)
        finally:
            over.set()

    def echo(connection: socket.socket) -> None:
        with mild.wrap_socket(connection, server_side=True) as session:
            while said := session.recv(1 << 16):
                session.sendall(said)

    async def ask(strict_port: int, mild_port: int) -> bytes:
        known = ssl.create_default_context(cadata=AUTHORITY.certificate_pem.decode())
        reader, writer = await asyncio.open_connection("127.0.0.1", mild_port, ssl=known)
        error = await probe(Entrance(("127.0.0.1",), strict_port), "beta", AUTHORITY.certificate_pem)
        assert error is None
        assert await asyncio.to_thread(over.wait, 10)
        writer.write(b"still here?\n")
        answer = await reader.readline()
        writer.transport.abort()
        return answer

    with answering(refuse) as strict_port, answering(echo) as mild_port:
        assert asyncio.run(ask(strict_port, mild_port)) == b"still here?\n"
