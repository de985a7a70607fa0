"""TLS towards a server that ends it: with what came before, and with nothing kept of what comes behind."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Callable
from contextlib import suppress

import pytest
from pki import Authority

from clustermesh.errors import ClusterMeshError, Refused, Unavailable
from clustermesh.store.client import EtcdClient
from clustermesh.store.endpoint import parse
from clustermesh.store.faults import NobodyListens
from clustermesh.store.tls import Tls, Tunnel, explain

SETTINGS = b"\0\0\0\4\0\0\0\0\0"


class Server:
    """The other end, whose bytes somebody carries."""

    def __init__(self, tls: Tls) -> None:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(str(tls.cert), str(tls.key))
        context.set_alpn_protocols(["h2"])
        self.incoming, self.outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        self.session = context.wrap_bio(self.incoming, self.outgoing, server_side=True)

    def end(self) -> None:
        with suppress(ssl.SSLWantReadError):  # it is said; the other side's own end is not waited for
            self.session.unwrap()


@pytest.fixture(scope="module")
def certified(tmp_path_factory: pytest.TempPathFactory) -> tuple[Tls, Tls]:
    authority = Authority(tmp_path_factory.mktemp("ca"))
    return authority.issue("server", "127.0.0.1"), authority.issue("client")


def test_what_came_before_the_end_is_heard_and_nothing_behind_it(certified: tuple[Tls, Tls]) -> None:
    server, tunnel = Server(certified[0]), Tunnel(certified[1], "127.0.0.1")
    server.incoming.write(tunnel.begin())
    while not tunnel.shaken:
        with suppress(ssl.SSLWantReadError):
            server.session.do_handshake()
        assert tunnel.receive(server.outgoing.read()) == b""
        server.incoming.write(tunnel.take())
    server.session.do_handshake()
    server.session.write(b"first ")
    server.session.write(b"last")
    server.end()
    assert tunnel.receive(server.outgoing.read() + b"anything") == b"first last"
    assert tunnel.ended


async def test_a_server_that_ends_tls_alone_has_closed_the_connection(certified: tuple[Tls, Tls]) -> None:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        server = Server(certified[0])

        async def until_done(step: Callable[[], object]) -> None:
            while True:
                try:
                    step()
                except ssl.SSLWantReadError:
                    writer.write(server.outgoing.read())
                    server.incoming.write(await reader.read(1 << 16))
                else:
                    return

        await until_done(server.session.do_handshake)
        server.session.write(SETTINGS)
        await until_done(server.session.read)
        server.end()
        writer.write(server.outgoing.read() + bytes(1 << 16))
        with suppress(ConnectionResetError):
            while await reader.read(1 << 16):
                pass
        writer.transport.abort()

    listening = await asyncio.start_server(serve, "127.0.0.1", 0)
    where = f"https://127.0.0.1:{listening.sockets[0].getsockname()[1]}"
    async with listening, EtcdClient([where], certified[1], timeout=5.0) as client:
        with pytest.raises(Unavailable, match="connection closed by the server"):
            await client.count(b"")


@pytest.mark.parametrize(
    ("reason", "kind", "says"),
    [
        ("TLSV13_ALERT_CERTIFICATE_REQUIRED", Refused, "does not accept our certificate"),
        ("TLSV1_ALERT_UNKNOWN_CA", Refused, "does not accept our certificate"),
        ("TLSV1_ALERT_INTERNAL_ERROR", Unavailable, "TLS failed: tlsv1 alert internal error"),
        ("DECRYPTION_FAILED_OR_BAD_RECORD_MAC", Unavailable, "TLS failed"),
    ],
)
def test_only_an_alert_about_certificates_is_a_refusal_of_ours(
    reason: str, kind: type[ClusterMeshError], says: str
) -> None:
    error = ssl.SSLError(1, reason)
    error.reason = reason
    told = explain(parse("https://a"), error)
    assert type(told) is kind
    assert says in str(told)


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (ConnectionRefusedError(111, "Connect call failed ('10.0.0.1', 2379)"), NobodyListens),
        (ConnectionResetError(0, "connection closed by the server"), Unavailable),
        (OSError("Multiple exceptions: [Errno 111] Connect call failed ('a', 1), [Errno 111] b"), NobodyListens),
        (OSError("Multiple exceptions: [Errno 101] Connect call failed ('::', 1), [Errno 111] b"), NobodyListens),
        (OSError("Multiple exceptions: [Errno 110] Connect call failed ('a', 1), [Errno 111] b"), Unavailable),
        (OSError("Multiple exceptions: [Errno 101] Connect call failed ('::', 1), [Errno 113] b"), Unavailable),
        (OSError("getaddrinfo() returned empty list"), Unavailable),
    ],
)
def test_nobody_listens_where_every_address_there_is_a_way_to_refuses(error: OSError, kind: type[Unavailable]) -> None:
    assert type(explain(parse("http://a"), error)) is kind
