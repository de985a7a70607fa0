"""Reading certificates and judging them. Pure: bytes, certificates and the time go in, facts or CertsError come out."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime, timedelta
from threading import Lock
from typing import Final

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.utils import CryptographyDeprecationWarning
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from certs.errors import CertsError
from certs.issue import Pair, PrivateKey
from certs.names import Leaf, covers

# Renewal is due with this much left: time enough to notice a forgotten one before anything breaks.
RENEW_BEFORE: Final = timedelta(days=30)
_MALFORMED: Final = (
    ValueError,
    UnsupportedAlgorithm,
    x509.InvalidVersion,
    x509.DuplicateExtension,
    CryptographyDeprecationWarning,
)
_STRICT: Final = Lock()
"""What a warning does is one for all threads."""
_NO_SERVER: Final = "may not be used by a server (extended key usage lacks serverAuth)"


@dataclass(frozen=True, slots=True)
class Facts:
    """What a certificate says of itself. `key_id` is the SubjectKeyIdentifier in hex, "" where it has none."""

    common_name: str
    issuer: str
    hosts: tuple[str, ...]
    authority: bool
    server: bool
    client: bool
    key_id: str
    not_before: datetime
    not_after: datetime


def read_certificates(data: bytes, name: str) -> tuple[x509.Certificate, ...]:
    """Every certificate of a PEM file, at least one. `name` is the file's, for CertsError."""
    try:
        with _strictly():
            return tuple(x509.load_pem_x509_certificates(data))
    except _MALFORMED as e:
        raise CertsError(f"{name}: holds no readable PEM certificate; issue it again or restore it") from e


def read_pair(certificate: bytes, key: bytes, name: str) -> Pair:
    """A certificate (with its chain) and its key from two PEM files; CertsError unless the two belong together."""
    first, *rest = read_certificates(certificate, f"{name}.crt")
    try:
        loaded = serialization.load_pem_private_key(key, password=None)
    except (ValueError, TypeError, UnsupportedAlgorithm) as e:
        raise CertsError(f"{name}.key: holds no readable, unencrypted PEM private key") from e
    if not isinstance(loaded, ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey | ed25519.Ed25519PrivateKey):
        raise CertsError(f"{name}.key: is a {type(loaded).__name__}; it must be an ECDSA, RSA or Ed25519 key")
    if not _belongs(loaded, first):
        raise CertsError(f"{name}.key is not the key of {name}.crt: one of the two was replaced without the other")
    return Pair(first, loaded, tuple(rest))


def facts(certificate: x509.Certificate, name: str = "certificate") -> Facts:
    """What `certificate` says; CertsError when its extensions are garbage."""
    try:
        with _strictly():
            extensions = certificate.extensions
        names = [str(a.value) for a in certificate.subject.get_attributes_for_oid(NameOID.COMMON_NAME)]
        issuers = [str(a.value) for a in certificate.issuer.get_attributes_for_oid(NameOID.COMMON_NAME)]
    except _MALFORMED as e:
        raise CertsError(f"{name}: its contents are not well formed: {e}") from e
    purposes = _purposes(extensions)
    return Facts(
        common_name=names[0] if names else "",
        issuer=issuers[0] if issuers else "",
        hosts=_hosts(extensions),
        authority=_is_authority(extensions),
        server=purposes is None or ExtendedKeyUsageOID.SERVER_AUTH in purposes,
        client=purposes is None or ExtendedKeyUsageOID.CLIENT_AUTH in purposes,
        key_id=_key_id(extensions),
        not_before=certificate.not_valid_before_utc,
        not_after=certificate.not_valid_after_utc,
    )


def check_time(certificate: x509.Certificate, now: datetime, name: str) -> None:
    """CertsError unless `certificate` is valid at `now`."""
    if now < certificate.not_valid_before_utc:
        begins = f"{certificate.not_valid_before_utc:%F %R} UTC"
        raise CertsError(f"{name}: not valid before {begins}, and it is {now:%F %R}; check the clocks")
    if now >= certificate.not_valid_after_utc:
        raise CertsError(f"{name}: expired on {certificate.not_valid_after_utc:%F %R} UTC; renew it")


def check_leaf(leaf: x509.Certificate, authorities: Iterable[x509.Certificate], now: datetime, name: str) -> None:
    """CertsError unless `leaf` is valid at `now` and signed by one of `authorities`, itself valid and an authority."""
    facts(leaf, name)  # names and extensions are parsed late, and garbage in them must show here
    check_time(leaf, now, name)
    authorities = tuple(authorities)
    signers = [a for a in authorities if is_signed_by(leaf, a)]
    if not signers:
        raise CertsError(_stranger(leaf, authorities, name))
    # During a change of authority two certificates share one key: any of them that is good is enough.
    error = None
    for signer in signers:
        try:
            check_time(signer, now, f"{name}: its authority")
            check_authority(signer, f"{name}: its authority")
            return
        except CertsError as e:
            error = e
    assert error is not None
    raise error


def check_authority(certificate: x509.Certificate, name: str) -> None:
    """CertsError unless `certificate` may sign others."""
    if not facts(certificate, name).authority:
        raise CertsError(f"{name}: is not an authority (no basicConstraints CA, or no keyCertSign)")


def check_use(leaf: x509.Certificate, wanted: Leaf, name: str) -> None:
    """CertsError unless `leaf` may be used as `wanted`: its common name, its purpose, and every host."""
    said = facts(leaf, name)
    if said.common_name != wanted.common_name:
        raise CertsError(f"{name}: its common name is {said.common_name!r}, it must be {wanted.common_name!r}")
    if wanted.server and not said.server:
        raise CertsError(f"{name}: {_NO_SERVER}")
    if not wanted.server and not said.client:
        raise CertsError(f"{name}: may not be used by a client (extended key usage lacks clientAuth)")
    check_hosts(leaf, wanted.hosts, name)


def check_server(leaf: x509.Certificate, host: str, name: str) -> None:
    """CertsError unless a client that dials `host` takes `leaf` from its server, whatever its common name."""
    if not facts(leaf, name).server:
        raise CertsError(f"{name}: {_NO_SERVER}")
    check_hosts(leaf, (host,), name)


def check_hosts(leaf: x509.Certificate, hosts: Iterable[str], name: str) -> None:
    """CertsError unless `leaf` names every one of `hosts`."""
    said = facts(leaf, name)
    missing = [host for host in hosts if host not in said.hosts and not covers(said.hosts, host)]
    if missing:
        raise CertsError(f"{name}: does not name {', '.join(missing)}; it names {', '.join(said.hosts) or 'no host'}")


def renewal_due(certificate: x509.Certificate, now: datetime, before: timedelta = RENEW_BEFORE) -> bool:
    """Whether less than `before` is left."""
    return certificate.not_valid_after_utc - now < before


@contextmanager
def _strictly() -> Iterator[None]:
    # The library only warns of what other TLS stacks refuse already, such as a negative serial number.
    with _STRICT, warnings.catch_warnings():
        warnings.simplefilter("error", CryptographyDeprecationWarning)
        yield


def _belongs(key: PrivateKey, certificate: x509.Certificate) -> bool:
    try:
        return bool(key.public_key() == certificate.public_key())
    except (ValueError, UnsupportedAlgorithm):  # the certificate's key is of an unknown kind
        return False


def is_signed_by(leaf: x509.Certificate, authority: x509.Certificate) -> bool:
    """Whether the key of `authority` signed `leaf`."""
    try:
        leaf.verify_directly_issued_by(authority)
    except (ValueError, TypeError, InvalidSignature, UnsupportedAlgorithm):
        return False
    return True


def _stranger(leaf: x509.Certificate, authorities: tuple[x509.Certificate, ...], name: str) -> str:
    known = [facts(a, f"{name}: its authority") for a in authorities]
    if facts(leaf, name).issuer in [a.common_name for a in known]:
        ids = ", ".join(a.key_id or "without an id" for a in known)
        return f"{name}: signed by another authority of the same name (the one here has the key {ids}); issue it again"
    return f"{name}: signed by {leaf.issuer.rfc4514_string()!r}, which is not the authority here; issue it again"


def _purposes(extensions: x509.Extensions) -> set[x509.ObjectIdentifier] | None:
    try:
        return set(extensions.get_extension_for_class(x509.ExtendedKeyUsage).value)
    except x509.ExtensionNotFound:
        return None  # no list: good for everything (RFC 5280, 4.2.1.12)


def _hosts(extensions: x509.Extensions) -> tuple[str, ...]:
    try:
        names = extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except x509.ExtensionNotFound:
        return ()
    return tuple(str(n.value) for n in names if isinstance(n, x509.DNSName | x509.IPAddress))


def _is_authority(extensions: x509.Extensions) -> bool:
    try:
        if not extensions.get_extension_for_class(x509.BasicConstraints).value.ca:
            return False
        return extensions.get_extension_for_class(x509.KeyUsage).value.key_cert_sign
    except x509.ExtensionNotFound as e:
        return e.oid == x509.KeyUsage.oid  # key usage may be absent: no limits


def _key_id(extensions: x509.Extensions) -> str:
    try:
        return extensions.get_extension_for_class(x509.SubjectKeyIdentifier).value.digest.hex()
    except x509.ExtensionNotFound:
        return ""
