"""A cluster's authority replaced by a new one, in the files of its certificates and of what its peers hold. Pure.

The old authority signs a certificate of the new one's key, and every leaf that the new one issues shows that, too. So
whoever trusts either takes what is issued from now on, and it does not matter who hears of it first:

    take      the new one signs; what the old one signed is issued anew; who trusts the old one trusts both
    forget    once everybody has read that: the old one is trusted nowhere

Each changes what has still to be changed, so one that was interrupted is done again. Where several clusters have one
authority, each of them may tell of what is under way: that one is gone on with, and two at once are refused.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from datetime import datetime
from typing import Final, NamedTuple

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from certs.check import check_authority, check_time, is_signed_by, read_certificates, read_pair
from certs.errors import CertsError
from certs.folder import leaf_of
from certs.issue import Pair, certify, create_authority, issue

PREVIOUS: Final = "rotation-previous"
"""The old authority."""
CROSS: Final = "rotation-cross"
"""What it says of the new one."""
SINCE: Final = "rotation-since"
"""When everything was issued anew."""
JOINING: Final = "rotation-joining"
"""JSON: the clusters that fetch what the new authority signs, each with the SHA-256 of what it held before."""
_BUNDLE: Final = "ca.crt"
_KEY: Final = "ca.key"
_OURS: Final = frozenset({PREVIOUS, CROSS, SINCE, JOINING})

Data = Mapping[str, bytes]


class Rotation(NamedTuple):
    """One that is under way: from the authority `old` to `new`, which `cross` joins."""

    old: x509.Certificate
    new: Pair
    cross: x509.Certificate


def rotation_of(authority: Data) -> Rotation | None:
    """What the files of an authority tell; None while it is not being replaced. Raises CertsError."""
    if PREVIOUS not in authority:
        return None
    (old,) = read_certificates(authority[PREVIOUS], PREVIOUS)
    (cross,) = read_certificates(authority.get(CROSS, b""), CROSS)
    new = read_pair(authority.get(_BUNDLE, b""), authority.get(_KEY, b""), "ca")
    return None if new.certificate == old else Rotation(old, new, cross)  # else it was interrupted before it began


def begin(authority: Data, now: datetime) -> Rotation:
    """The one that is under way there, or else one to an authority that is made now. Raises CertsError."""
    if under_way := rotation_of(authority):
        return under_way
    old = read_pair(authority.get(_BUNDLE, b""), authority.get(_KEY, b""), "ca")
    check_authority(old.certificate, "ca.crt")
    check_time(old.certificate, now, "ca.crt")
    new = create_authority(now)
    return Rotation(old.certificate, new, certify(old, new))


def take(data: Data, rotation: Rotation, now: datetime) -> dict[str, bytes]:
    """The new authority signs, and is trusted wherever the old one is. Raises CertsError where that is being replaced
    by another one."""
    new, other = rotation.new, rotation_of(data)
    if other and other.old == rotation.old and other.new.certificate != new.certificate:
        raise CertsError(
            "its authority is being replaced by another one already: end that first, by `certs rotate --ca` with its "
            "context and those of its peers alone"
        )
    out = reissued(data, rotation.old, Pair(new.certificate, new.key, (rotation.cross,)), now)
    for key, held in _bundles(data):
        if rotation.old in held and new.certificate not in held:
            place = held.index(rotation.old)  # whoever signs there is still the first
            out[key] = _pem([*held[:place], new.certificate, *held[place:]])
    if is_held_in(data, rotation.old):
        out = {key: value for key, value in out.items() if key not in _OURS}
        out |= {_KEY: new.key_pem, PREVIOUS: _pem([rotation.old]), CROSS: _pem([rotation.cross])}
    return out


def forget(data: Data, rotation: Rotation) -> dict[str, bytes]:
    """Nobody who trusts the new authority trusts the old one."""
    ended = _OURS if is_held_in(data, rotation.new.certificate) else ()
    out = {key: value for key, value in data.items() if key not in ended}
    for key, held in _bundles(data):
        if rotation.old in held and rotation.new.certificate in held:
            out[key] = _pem([each for each in held if each != rotation.old])
    return out


def reissued(data: Data, signer: x509.Certificate, by: Pair, now: datetime) -> dict[str, bytes]:
    """Every leaf that `signer` signed, issued again `by` an authority with the names it has and a key of its own.

    A chain of that authority is shown with the leaf.
    """
    out = dict(data)
    for cert, key in pairs_in(data):
        try:
            pair = read_pair(data[cert], data[key], cert.removesuffix(".crt"))
        except CertsError:
            continue  # whose it was, nobody can tell; `certs secrets` and `connect` make it anew
        if is_signed_by(pair.certificate, signer):
            fresh = issue(by, leaf_of(pair), now)
            out |= {cert: fresh.certificate_pem + _pem(by.chain), key: fresh.key_pem}
    return out


def is_held_in(data: Data, authority: x509.Certificate) -> bool:
    """Whether these are files of the authority itself, with its key."""
    if _KEY not in data:
        return False
    try:
        return read_certificates(data.get(_BUNDLE, b""), _BUNDLE)[0] == authority
    except CertsError:
        return False


def takes_part(data: Data, rotation: Rotation) -> bool:
    """Whether these are files, with its key, of the authority that is replaced or of the new one."""
    return is_held_in(data, rotation.old) or is_held_in(data, rotation.new.certificate)


def trusts(data: Data, authority: x509.Certificate) -> bool:
    """Whether any of these files trusts `authority`."""
    return any(authority in held for _, held in _bundles(data))


def pairs_in(data: Data) -> Iterator[tuple[str, str]]:
    """Every leaf and its key, by the names of their files."""
    for cert in data:
        key = f"{cert.removesuffix('.crt')}.key"
        if cert.endswith(".crt") and key in data and cert != _BUNDLE:
            yield cert, key


def _bundles(data: Data) -> Iterator[tuple[str, tuple[x509.Certificate, ...]]]:
    for key, value in data.items():
        if key == _BUNDLE or key.endswith(f"-{_BUNDLE}"):
            try:
                yield key, read_certificates(value, key)
            except CertsError:
                continue


def _pem(certificates: Iterable[x509.Certificate]) -> bytes:
    return b"".join(each.public_bytes(Encoding.PEM) for each in certificates)
