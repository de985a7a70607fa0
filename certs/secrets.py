"""A cluster's certificates as Kubernetes Secrets, with the names and the shape of Cilium's chart. Pure.

cilium-ca                           ca.crt, ca.key
clustermesh-apiserver-NAME-cert     ca.crt, tls.crt, tls.key, for each leaf: server, admin, local, remote
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from typing import NamedTuple

from certs.check import check_authority, check_time, read_pair
from certs.errors import CertsError
from certs.folder import pair_fault
from certs.issue import Pair, create_authority, issue
from certs.names import AUTHORITY_SECRET, Leaf, leaf_secret
from certs.rotation import PREVIOUS

Data = Mapping[str, bytes]


class Kept(NamedTuple):
    """What a Secret is to hold; `reason` is why that is not what it holds, "" where it is."""

    data: Data
    reason: str = ""


def authority_of(found: Data) -> Pair:
    """The authority in the data of cilium-ca; CertsError where it is unfit to sign."""
    pair = read_pair(found.get("ca.crt", b""), found.get("ca.key", b""), f"Secret {AUTHORITY_SECRET}: ca")
    check_authority(pair.certificate, f"Secret {AUTHORITY_SECRET}: ca.crt")
    return pair


def keep_authority(found: Data, now: datetime) -> Kept:
    """One is made where there is none. What is there is never replaced, whatever it is: CertsError if it cannot
    sign."""
    if not found:
        made = create_authority(now)
        return Kept({"ca.crt": made.certificate_pem, "ca.key": made.key_pem}, "was absent")
    check_time(authority_of(found).certificate, now, f"Secret {AUTHORITY_SECRET}: ca.crt")
    return Kept(found)


def keep_leaf(leaf: str, wanted: Leaf, found: Data, authority: Data, now: datetime) -> Kept:
    """What the Secret of `leaf` is to hold, under the authority in the data `authority`.

    One that is good keeps its key and certificate where only what it trusts is not what the authority is now. So does
    what an old one signed, while certs.rotation replaces that.
    """
    signer, trusted = authority_of(authority), authority["ca.crt"]
    if PREVIOUS not in authority:  # nobody else issues anew what an older authority signed that is trusted beside it
        signer = Pair(signer.certificate, signer.key)
    if reason := _fault(leaf, wanted, found, signer, now):
        pair = issue(signer, wanted, now)
        made = {"ca.crt": trusted, "tls.crt": pair.certificate_pem, "tls.key": pair.key_pem}
        return Kept({**found, **made}, reason)
    if found.get("ca.crt") != trusted:
        return Kept({**found, "ca.crt": trusted}, "trusted another authority")
    return Kept(found)


def _fault(leaf: str, wanted: Leaf, found: Data, signer: Pair, now: datetime) -> str:
    if not found:
        return "was absent"
    name = f"Secret {leaf_secret(leaf)}: tls"
    try:
        pair = read_pair(found.get("tls.crt", b""), found.get("tls.key", b""), name)
        return pair_fault(pair, wanted, signer, now, f"{name}.crt")
    except CertsError as e:
        return str(e)
