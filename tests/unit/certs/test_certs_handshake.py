"""Issued certificates between two real TLS stacks on the loopback, both sides verifying."""

from __future__ import annotations

import socket
import ssl
import threading
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from certs.folder import initialise, renew
from certs.names import cluster_leaves
from certs.pair import certificate_file, key_file

PATIENCE = 10.0


@pytest.fixture(scope="module")
def alpha(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return _cluster(tmp_path_factory.mktemp("alpha"), "alpha")


@pytest.fixture(scope="module")
def beta(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return _cluster(tmp_path_factory.mktemp("beta"), "beta")


def _cluster(folder: Path, name: str, now: datetime | None = None) -> Path:
    initialise(folder, cluster_leaves(name, ["etcd.alpha.example"]), now or datetime.now(UTC))
    return folder


def _context(folder: Path, name: str, trust: Path, *, server: bool) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER if server else ssl.PROTOCOL_TLS_CLIENT)
    context.load_cert_chain(certificate_file(folder, name), key_file(folder, name))
    context.load_verify_locations(certificate_file(trust, "ca"))
    context.verify_mode = ssl.CERT_REQUIRED
    context.verify_flags |= ssl.VERIFY_X509_STRICT
    return context


def _shake_hands(server: ssl.SSLContext, client: ssl.SSLContext, host: str) -> tuple[str, str]:
    """(why the server refused, why the client refused); both empty when a byte came through."""
    refused: list[str] = []

    def serve(listener: socket.socket) -> None:
        try:
            with listener.accept()[0] as plain, server.wrap_socket(plain, server_side=True) as secured:
                secured.sendall(b"!")
        except OSError as e:
            refused.append(str(e))

    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.settimeout(PATIENCE)
        thread = threading.Thread(target=serve, args=(listener,))
        thread.start()
        client_refused = ""
        try:
            with (
                socket.create_connection(listener.getsockname(), timeout=PATIENCE) as plain,
                client.wrap_socket(plain, server_hostname=host) as secured,
            ):
                client_refused = "" if secured.recv(1) == b"!" else "closed"
        except OSError as e:
            client_refused = str(e)
        thread.join(PATIENCE)
        assert not thread.is_alive()
    return "".join(refused), client_refused


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "beta.mesh.cilium.io", "etcd.alpha.example"])
@pytest.mark.parametrize("client", ["admin", "local", "remote"])
def test_every_leaf_gets_through_under_every_name(alpha: Path, client: str, host: str) -> None:
    server = _context(alpha, "server", alpha, server=True)
    assert _shake_hands(server, _context(alpha, client, alpha, server=False), host) == ("", "")


def test_client_of_a_foreign_authority_is_refused_by_the_server(alpha: Path, beta: Path) -> None:
    server = _context(alpha, "server", alpha, server=True)
    refused, _ = _shake_hands(server, _context(beta, "remote", alpha, server=False), "localhost")
    assert "certificate verify failed" in refused


def test_server_of_a_foreign_authority_is_refused_by_the_client(alpha: Path, beta: Path) -> None:
    server = _context(beta, "server", alpha, server=True)
    _, refused = _shake_hands(server, _context(alpha, "remote", alpha, server=False), "localhost")
    assert "certificate verify failed" in refused


def test_server_under_a_name_it_does_not_have_is_refused(alpha: Path) -> None:
    server = _context(alpha, "server", alpha, server=True)
    _, refused = _shake_hands(server, _context(alpha, "remote", alpha, server=False), "a.b.mesh.cilium.io")
    assert "Hostname mismatch" in refused


def test_client_leaf_in_the_place_of_a_server_is_refused(alpha: Path) -> None:
    server = _context(alpha, "remote", alpha, server=True)
    _, refused = _shake_hands(server, _context(alpha, "remote", alpha, server=False), "localhost")
    assert "certificate verify failed" in refused


def test_server_without_a_client_certificate_lets_nobody_in(alpha: Path) -> None:
    nobody = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    nobody.load_verify_locations(certificate_file(alpha, "ca"))
    refused, _ = _shake_hands(_context(alpha, "server", alpha, server=True), nobody, "localhost")
    assert "peer did not return a certificate" in refused


def test_expired_client_is_refused(tmp_path: Path) -> None:
    old = _cluster(tmp_path / "old", "alpha", datetime.now(UTC) - timedelta(days=400))
    renew(old, "server", datetime.now(UTC))
    server = _context(old, "server", old, server=True)
    refused, _ = _shake_hands(server, _context(old, "remote", old, server=False), "localhost")
    assert "certificate has expired" in refused


def test_renewed_leaves_and_renewed_authority_still_fit_what_peers_hold(tmp_path: Path) -> None:
    folder, now = _cluster(tmp_path / "alpha", "alpha", datetime.now(UTC) - timedelta(days=300)), datetime.now(UTC)
    peer = _context(folder, "remote", folder, server=False)  # loaded before: old leaf, old authority
    for name in ("ca", "server", "remote"):
        renew(folder, name, now)
    server = _context(folder, "server", folder, server=True)
    assert _shake_hands(server, peer, "localhost") == ("", "")
    assert _shake_hands(server, _context(folder, "remote", folder, server=False), "localhost") == ("", "")
