"""What issued certificates say, and how they are judged."""

from __future__ import annotations

import contextlib
import ssl
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.x509.oid import NameOID
from hypothesis import given
from hypothesis import strategies as st

from certs import issue as issuing
from certs.check import check_authority, check_leaf, check_server, check_use, facts, read_certificates, read_pair
from certs.errors import CertsError
from certs.issue import Pair, create_authority, issue, renew_authority
from certs.names import Leaf, cluster_leaves, covers, remote, server

NOW = datetime(2026, 6, 1, 12, tzinfo=UTC)
DAY = timedelta(days=1)
AUTHORITY = create_authority(NOW)
SERVER = issue(AUTHORITY, server(["172.20.1.1"]), NOW)


def _extension(pair: Pair, kind: type[x509.ExtensionType]) -> x509.ExtensionType:
    return pair.certificate.extensions.get_extension_for_class(kind).value


def test_authority_is_one_that_cilium_takes_for_its_own() -> None:
    said = facts(AUTHORITY.certificate)
    usage = _extension(AUTHORITY, x509.KeyUsage)
    assert (said.common_name, said.authority, bool(said.key_id)) == ("Cilium CA", True, True)
    assert isinstance(usage, x509.KeyUsage)
    assert usage.key_cert_sign
    assert usage.crl_sign


def test_server_has_the_names_its_clients_dial() -> None:
    said = facts(SERVER.certificate)
    names = ("clustermesh-apiserver.cilium.io", "*.mesh.cilium.io", "localhost", "127.0.0.1", "::1", "172.20.1.1")
    assert (said.common_name, said.hosts, said.server) == ("clustermesh-apiserver.cilium.io", names, True)


def test_clients_are_named_as_their_etcd_users_and_are_no_servers() -> None:
    leaves = cluster_leaves("alpha")
    said = {name: facts(issue(AUTHORITY, leaf, NOW).certificate) for name, leaf in leaves.items()}
    assert {n: f.common_name for n, f in said.items() if n != "server"} == {
        "admin": "admin-alpha",
        "local": "local-alpha",
        "remote": "remote-alpha",
    }
    assert [n for n, f in said.items() if f.server] == ["server"]
    assert all(f.client for f in said.values())


def test_leaf_names_its_authority_by_key_so_that_equal_names_do_not_confuse() -> None:
    authority_id = _extension(AUTHORITY, x509.SubjectKeyIdentifier)
    named = _extension(SERVER, x509.AuthorityKeyIdentifier)
    assert isinstance(authority_id, x509.SubjectKeyIdentifier)
    assert isinstance(named, x509.AuthorityKeyIdentifier)
    assert named.key_identifier == authority_id.digest


@pytest.mark.parametrize(
    "host", ["", ".", "a..b", "a\nb", "a b", "\u00fc.example", "*", "a.*", "x" * 64, "x." * 127 + "x"]
)
def test_a_host_that_no_certificate_can_name_is_refused_with_the_rule(host: str) -> None:
    with pytest.raises(CertsError, match=r"^host '.*: must be an address, or a DNS name") as refused:
        issue(AUTHORITY, Leaf("x", server=True, hosts=(host,)), NOW)
    assert str(refused.value).isprintable()
    assert len(str(refused.value)) < 300


@pytest.mark.parametrize(
    "host", ["a", "x" * 63, "x." * 126 + "x", "*.mesh.cilium.io", "etcd_1.a-b", "192.0.2.1", "::1"]
)
def test_a_host_that_a_client_may_dial_is_written_down(host: str) -> None:
    assert facts(issue(AUTHORITY, Leaf("x", server=True, hosts=(host,)), NOW).certificate).hosts == (host,)


@pytest.mark.parametrize("name", ["", "a\nb", "x" * 65, "\u00fc" * 33, "\udcff"])
def test_a_common_name_that_no_certificate_can_have_is_refused_with_the_rule(name: str) -> None:
    with pytest.raises(CertsError, match=r"^common name '.*: must be 1 to 64 bytes"):
        issue(AUTHORITY, Leaf(name), NOW)


def test_leaf_is_taken_by_a_peer_whose_clock_is_behind() -> None:
    check_leaf(SERVER.certificate, [AUTHORITY.certificate], NOW - timedelta(minutes=59), "server")
    with pytest.raises(CertsError, match=r"not valid before .* check the clocks"):
        check_leaf(SERVER.certificate, [AUTHORITY.certificate], NOW - timedelta(minutes=61), "server")


def test_leaf_ends_with_its_authority_at_the_latest() -> None:
    late = AUTHORITY.certificate.not_valid_after_utc - 10 * DAY
    leaf = issue(AUTHORITY, remote("alpha"), late).certificate
    assert leaf.not_valid_after_utc == AUTHORITY.certificate.not_valid_after_utc


def test_expired_leaf_and_expired_authority_are_named() -> None:
    with pytest.raises(CertsError, match=r"^server: expired on 2027-06-01"):
        check_leaf(SERVER.certificate, [AUTHORITY.certificate], NOW + 366 * DAY, "server")
    with pytest.raises(CertsError, match="valid from"):
        issue(AUTHORITY, remote("alpha"), NOW + 3660 * DAY)


def test_leaf_of_another_authority_with_the_same_name_is_refused_and_the_reason_told() -> None:
    other = create_authority(NOW)
    with pytest.raises(CertsError, match="another authority of the same name"):
        check_leaf(SERVER.certificate, [other.certificate], NOW, "server")
    with pytest.raises(CertsError, match="which is not the authority here"):
        check_leaf(SERVER.certificate, [create_authority(NOW, "Other").certificate], NOW, "server")


def test_leaf_cannot_sign_a_leaf() -> None:
    client = issue(AUTHORITY, remote("alpha"), NOW)
    forged = issue(client, remote("beta"), NOW)
    with pytest.raises(CertsError, match="not an authority"):
        check_leaf(forged.certificate, [client.certificate], NOW, "forged")
    with pytest.raises(CertsError):
        check_leaf(forged.certificate, [AUTHORITY.certificate], NOW, "forged")
    with pytest.raises(CertsError, match="not an authority"):
        check_authority(client.certificate, "client")


def test_renewed_authority_vouches_for_what_the_old_one_signed() -> None:
    later = NOW + 3000 * DAY
    leaf = issue(AUTHORITY, remote("alpha"), later)
    renewed = renew_authority(AUTHORITY, later)
    check_leaf(leaf.certificate, [renewed.certificate], later + 300 * DAY, "remote")
    assert facts(renewed.certificate).key_id == facts(AUTHORITY.certificate).key_id
    assert renewed.certificate.not_valid_after_utc > AUTHORITY.certificate.not_valid_after_utc


def test_one_good_authority_among_expired_ones_is_enough() -> None:
    later = AUTHORITY.certificate.not_valid_after_utc + DAY
    renewed = renew_authority(AUTHORITY, later)
    leaf = issue(renewed, remote("alpha"), later).certificate
    check_leaf(leaf, [AUTHORITY.certificate, renewed.certificate], later, "remote")
    with pytest.raises(CertsError, match="its authority: expired"):
        check_leaf(leaf, [AUTHORITY.certificate], later, "remote")


@pytest.mark.parametrize(
    "key",
    [
        rsa.generate_private_key(65537, 2048),
        ed25519.Ed25519PrivateKey.generate(),
        ec.generate_private_key(ec.SECP384R1()),
    ],
)
def test_authority_brought_from_elsewhere_signs_with_its_own_kind_of_key(key: issuing.PrivateKey) -> None:
    name = x509.Name(
        [x509.NameAttribute(NameOID.COMMON_NAME, "Cilium CA"), x509.NameAttribute(NameOID.COUNTRY_NAME, "DE")]
    )
    authority = issuing._authority(name, key, NOW)
    leaf = issue(authority, remote("alpha"), NOW)
    check_leaf(leaf.certificate, [authority.certificate], NOW, "remote")
    check_leaf(leaf.certificate, [renew_authority(authority, NOW).certificate], NOW, "remote")


def test_intermediate_authority_is_not_renewed_in_place() -> None:
    builder = x509.CertificateBuilder(
        issuer_name=AUTHORITY.certificate.subject,
        subject_name=x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "Below")]),
        public_key=SERVER.key.public_key(),
        serial_number=7,
        not_valid_before=NOW,
        not_valid_after=NOW + DAY,
    )
    below = Pair(builder.sign(AUTHORITY.key, issuing._hash(AUTHORITY.key)), SERVER.key)
    with pytest.raises(CertsError, match="renew it there"):
        renew_authority(below, NOW)


def test_wrong_use_is_told_by_what_is_missing() -> None:
    client = issue(AUTHORITY, remote("alpha"), NOW).certificate
    with pytest.raises(CertsError, match="lacks serverAuth"):
        check_server(client, "127.0.0.1", "client")
    with pytest.raises(CertsError, match="common name is 'remote-alpha', it must be 'remote-beta'"):
        check_use(client, remote("beta"), "client")
    with pytest.raises(CertsError, match=r"does not name 10\.0\.0\.9; it names clustermesh"):
        check_server(SERVER.certificate, "10.0.0.9", "server")


@pytest.mark.parametrize(
    ("host", "good"),
    [
        ("beta.mesh.cilium.io", True),
        ("BETA.mesh.cilium.io.", True),
        ("a.b.mesh.cilium.io", False),
        ("mesh.cilium.io", False),
        (".mesh.cilium.io", False),
        ("172.20.1.1", True),
        ("[::1]", True),
        ("0:0:0:0:0:0:0:1", True),
        ("172.20.1.2", False),
        ("172.20.1", False),
    ],
)
def test_wildcard_stands_for_exactly_one_label(host: str, good: bool) -> None:
    assert covers(facts(SERVER.certificate).hosts, host) is good


@pytest.mark.parametrize("leaf", [Leaf(""), Leaf("x" * 65), Leaf("ok", server=True, hosts=("bücher.example",))])
def test_names_that_no_certificate_can_hold_are_refused(leaf: Leaf) -> None:
    with pytest.raises(CertsError):
        issue(AUTHORITY, leaf, NOW)


def test_encrypted_or_foreign_key_is_refused() -> None:
    locked = SERVER.key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.BestAvailableEncryption(b"x")
    )
    with pytest.raises(CertsError, match="unencrypted"):
        read_pair(SERVER.certificate_pem, locked, "server")


def test_chain_of_a_file_is_kept() -> None:
    both = read_pair(SERVER.certificate_pem + AUTHORITY.certificate_pem, SERVER.key_pem, "server")
    assert both.chain == (AUTHORITY.certificate,)
    assert both.certificate_pem == SERVER.certificate_pem + AUTHORITY.certificate_pem


@given(certificate=st.binary(max_size=200), key=st.binary(max_size=200))
def test_garbage_raises_nothing_but_the_own_error(certificate: bytes, key: bytes) -> None:
    with pytest.raises(CertsError):
        read_pair(certificate, SERVER.key_pem, "x")
    with pytest.raises(CertsError):
        read_pair(SERVER.certificate_pem, key, "x")


def _with_each_bit_flipped(pair: Pair) -> Iterator[bytes]:
    """Every PEM file that one flipped bit makes of a certificate."""
    der = pair.certificate.public_bytes(serialization.Encoding.DER)
    for bit in range(len(der) * 8):
        flipped = bytearray(der)
        flipped[bit // 8] ^= 1 << bit % 8
        yield ssl.DER_cert_to_PEM_cert(bytes(flipped)).encode()


def _judge(pem: bytes) -> None:
    for certificate in read_certificates(pem, "x"):
        facts(certificate)
        check_leaf(certificate, [AUTHORITY.certificate], NOW, "x")


@pytest.mark.long
@pytest.mark.parametrize("pair", [AUTHORITY, SERVER], ids=["authority", "server"])
def test_no_flipped_bit_changes_what_is_taken_and_none_raises_anything_else(pair: Pair) -> None:
    for pem in _with_each_bit_flipped(pair):
        with contextlib.suppress(CertsError):
            _judge(pem)
            # Nothing signed covers the count of unused bits before the signature, which is always nought.
            taken = x509.load_pem_x509_certificate(pem)
            assert taken.tbs_certificate_bytes == pair.certificate.tbs_certificate_bytes
            assert taken.signature == pair.certificate.signature
        with contextlib.suppress(CertsError):  # the flip may lie outside the key
            read_pair(pem, pair.key_pem, "x")
