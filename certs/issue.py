"""Signing: an authority and the leaves below it. Pure but for the randomness of keys and serials; time is an argument.

Lifetimes: an authority 10 years, a leaf 1 year and never beyond its authority. Both begin an hour in the past, so that
a peer whose clock is a little slow takes them at once. Keys are ECDSA P-256, which every TLS stack in the mesh (etcd's
Go, OpenSSL) takes and signs fast; an authority brought from elsewhere may have an RSA key too.
"""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Final

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from certs.errors import CertsError
from certs.names import AUTHORITY_NAME, COMMON_NAME_RULE, HOST_RULE, Leaf, is_common_name, is_host

AUTHORITY_LIFETIME: Final = timedelta(days=3653)
LEAF_LIFETIME: Final = timedelta(days=365)
CLOCK_SKEW: Final = timedelta(hours=1)

PrivateKey = ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey | ed25519.Ed25519PrivateKey


@dataclass(frozen=True, slots=True)
class Pair:
    """A certificate and the private key it belongs to; `chain` are further certificates of the same file."""

    certificate: x509.Certificate
    key: PrivateKey
    chain: tuple[x509.Certificate, ...] = ()

    @property
    def certificate_pem(self) -> bytes:
        """The certificate, then the rest of its chain."""
        return b"".join(c.public_bytes(serialization.Encoding.PEM) for c in (self.certificate, *self.chain))

    @property
    def key_pem(self) -> bytes:
        """The key as unencrypted PKCS #8, which etcd, Go and OpenSSL read."""
        return self.key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )


def new_key() -> ec.EllipticCurvePrivateKey:
    """A fresh ECDSA P-256 key."""
    return ec.generate_private_key(ec.SECP256R1())


def create_authority(now: datetime, common_name: str = AUTHORITY_NAME) -> Pair:
    """A self-signed authority with a fresh key."""
    return _authority(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common_name)]), new_key(), now)


def renew_authority(authority: Pair, now: datetime) -> Pair:
    """The same authority (name, key and so SubjectKeyId) with a new lifetime: what it signed stays good.

    Raises CertsError for an authority that another one signed.
    """
    certificate = authority.certificate
    if certificate.subject != certificate.issuer:
        raise CertsError(
            f"the authority was signed by {certificate.issuer.rfc4514_string()!r}: renew it there and bring it here"
        )
    renewed = _authority(certificate.subject, authority.key, now)
    return Pair(renewed.certificate, authority.key, authority.chain)


def _authority(name: x509.Name, key: PrivateKey, now: datetime) -> Pair:
    builder = _builder(name, name, key, now, now + AUTHORITY_LIFETIME)
    # No length limit: Cilium's own authority has none either, and people do put intermediates below theirs.
    builder = builder.add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
    builder = builder.add_extension(_key_usage(authority=True), critical=True)
    return Pair(builder.sign(key, _hash(key)), key)


def certify(authority: Pair, other: Pair) -> x509.Certificate:
    """What `authority` says of the key of `other`, an authority too: whoever trusts it takes what `other` signed."""
    issuer, told = authority.certificate, other.certificate
    until = min(told.not_valid_after_utc, issuer.not_valid_after_utc)
    begins = max(told.not_valid_before_utc, issuer.not_valid_before_utc)
    builder = _builder(told.subject, issuer.subject, other.key, begins + CLOCK_SKEW, until)
    builder = builder.add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
    builder = builder.add_extension(_key_usage(authority=True), critical=True)
    builder = builder.add_extension(_authority_key_id(issuer), critical=False)
    return builder.sign(authority.key, _hash(authority.key))


def issue(authority: Pair, leaf: Leaf, now: datetime, key: PrivateKey | None = None) -> Pair:
    """A certificate for `leaf` signed by `authority`, for `key` or for a fresh one.

    Raises CertsError when the authority is no authority, is not valid at `now`, or `leaf` cannot be written down.
    """
    issuer = authority.certificate
    if not issuer.not_valid_before_utc <= now < issuer.not_valid_after_utc:
        valid = f"{issuer.not_valid_before_utc:%F} to {issuer.not_valid_after_utc:%F}"
        raise CertsError(f"the authority is valid from {valid}, and it is {now:%F}: renew it, or check the clock")
    key = key or new_key()
    if not is_common_name(leaf.common_name):
        raise CertsError(f"common name {leaf.common_name[:64]!r}: {COMMON_NAME_RULE}")
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, leaf.common_name)])
    until = min(now + LEAF_LIFETIME, issuer.not_valid_after_utc)
    builder = _builder(subject, issuer.subject, key, now, until)
    builder = builder.add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
    builder = builder.add_extension(_key_usage(authority=False), critical=True)
    builder = builder.add_extension(x509.ExtendedKeyUsage(_purposes(leaf)), critical=False)
    builder = builder.add_extension(_authority_key_id(issuer), critical=False)
    if leaf.hosts:
        names = x509.SubjectAlternativeName([_general_name(host) for host in leaf.hosts])
        builder = builder.add_extension(names, critical=False)
    return Pair(builder.sign(authority.key, _hash(authority.key)), key)


def _builder(
    subject: x509.Name, issuer: x509.Name, key: PrivateKey, now: datetime, until: datetime
) -> x509.CertificateBuilder:
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - CLOCK_SKEW)
        .not_valid_after(until)
        # Cilium's command line compares authorities by this identifier.
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
    )


def _purposes(leaf: Leaf) -> list[x509.ObjectIdentifier]:
    # etcd's JSON gateway dials etcd itself with the server's certificate: without clientAuth it logs errors for ever.
    server = [ExtendedKeyUsageOID.SERVER_AUTH] if leaf.server else []
    return [*server, ExtendedKeyUsageOID.CLIENT_AUTH]


def _key_usage(*, authority: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=True,
        key_cert_sign=authority,
        crl_sign=authority,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        encipher_only=False,
        decipher_only=False,
    )


def _authority_key_id(issuer: x509.Certificate) -> x509.AuthorityKeyIdentifier:
    try:
        subject_key_id = issuer.extensions.get_extension_for_class(x509.SubjectKeyIdentifier).value
    except x509.ExtensionNotFound:
        public = issuer.public_key()
        assert isinstance(public, ec.EllipticCurvePublicKey | rsa.RSAPublicKey | ed25519.Ed25519PublicKey)
        return x509.AuthorityKeyIdentifier.from_issuer_public_key(public)
    return x509.AuthorityKeyIdentifier.from_issuer_subject_key_identifier(subject_key_id)


def _general_name(host: str) -> x509.GeneralName:
    if not is_host(host):
        raise CertsError(f"host {host[:64]!r}: {HOST_RULE}")
    try:
        return x509.IPAddress(ipaddress.ip_address(host))
    except ValueError:
        return x509.DNSName(host)


def _hash(key: PrivateKey) -> hashes.SHA256 | None:
    return None if isinstance(key, ed25519.Ed25519PrivateKey) else hashes.SHA256()
