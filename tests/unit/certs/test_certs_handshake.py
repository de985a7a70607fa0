"""Issued certificates between two real TLS stacks on the loopback, both sides verifying."""

from __future__ import annotations

import socket
import ssl
import threading
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from certs.check import read_certificates, read_pair
from certs.errors import CertsError
from certs.folder import initialise, leaf_of, renew
from certs.issue import create_authority
from certs.names import cluster_leaves
from certs.pair import certificate_file, key_file
from certs.rotation import begin, forget, rotation_of, take

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


AUTHORITIES = ("old", "both", "new")


@pytest.fixture(scope="module")
def rotated(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A cluster's folder before its authority is replaced, meanwhile, and afterwards."""
    now, top = datetime.now(UTC), tmp_path_factory.mktemp("rotated")
    data = files_of(_cluster(top / "old", "alpha"))
    rotation = begin(data, now)
    both = take(data, rotation, now)
    for name, files in (("both", both), ("new", forget(both, rotation))):
        (top / name).mkdir()
        for file, content in files.items():
            (top / name / file).write_bytes(content)
    return {name: top / name for name in AUTHORITIES}


def files_of(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.mark.parametrize("client", AUTHORITIES)
@pytest.mark.parametrize("server", AUTHORITIES)
def test_while_an_authority_is_replaced_whoever_is_a_step_behind_gets_through(
    rotated: dict[str, Path], server: str, client: str
) -> None:
    """What either shows, and what it trusts, may each be that of the step before."""
    for shown_by_server, shown_by_client in ((server, client), (server, server), (client, client)):
        listens, dials = rotated[shown_by_server], rotated[shown_by_client]
        said = _shake_hands(
            _context(listens, "server", rotated[server], server=True),
            _context(dials, "remote", rotated[client], server=False),
            "localhost",
        )
        behind = {"old", "new"} <= {shown_by_server, client} or {"old", "new"} <= {shown_by_client, server}
        if not behind:
            assert said == ("", "")
        elif shown_by_client == "old" and server == "new":
            assert "certificate verify failed" in said[0], "what the old authority signed is let in nowhere"


def test_what_took_part_in_a_rotation_names_what_it_did_and_nobody_trusts_the_old_authority(
    rotated: dict[str, Path],
) -> None:
    old, both, new = (files_of(rotated[name]) for name in AUTHORITIES)
    for name in cluster_leaves("alpha"):
        before, after = (leaf_of(read_pair(f[f"{name}.crt"], f[f"{name}.key"], name)) for f in (old, new))
        assert before == after
        assert old[f"{name}.key"] != new[f"{name}.key"]
    assert len(read_certificates(both["ca.crt"], "ca")) == 2
    (left,) = read_certificates(new["ca.crt"], "ca")
    assert left != read_certificates(old["ca.crt"], "ca")[0]
    assert new.keys() == old.keys()
    rotation = rotation_of(both)
    assert rotation is not None
    assert take(both, rotation, datetime.now(UTC)) == both, "what was done is not done again"
    assert forget(new, rotation) == new


def test_a_stranger_to_the_authority_that_is_replaced_is_left_alone(rotated: dict[str, Path], beta: Path) -> None:
    rotation = rotation_of(files_of(rotated["both"]))
    assert rotation is not None
    data = files_of(beta) | {"broken.crt": b"none", "broken.key": b"none", "broken-ca.crt": b"none"}
    assert take(data, rotation, datetime.now(UTC)) == data
    assert forget(data, rotation) == data


def test_who_signs_with_another_authority_goes_on_with_it(rotated: dict[str, Path], beta: Path) -> None:
    old, own = files_of(rotated["old"]), files_of(beta)
    rotation = rotation_of(files_of(rotated["both"]))
    assert rotation is not None
    both = take(own | {"ca.crt": own["ca.crt"] + old["ca.crt"]}, rotation, datetime.now(UTC))
    assert read_pair(both["ca.crt"], both["ca.key"], "ca").chain == (rotation.new.certificate, rotation.old)
    its = begin(own, datetime.now(UTC))
    under_way = take(own, its, datetime.now(UTC))
    assert forget(take(under_way, rotation, datetime.now(UTC)), rotation) == under_way
    with pytest.raises(CertsError, match="is being replaced by another one already"):
        take(under_way, begin(own, datetime.now(UTC)), datetime.now(UTC))


def test_an_authority_that_can_no_longer_sign_is_not_replaced_in_silence() -> None:
    now = datetime.now(UTC)
    expired = create_authority(now - timedelta(days=3660))
    with pytest.raises(CertsError, match="expired"):
        begin({"ca.crt": expired.certificate_pem, "ca.key": expired.key_pem}, now)
