"""What two clusters tell each other where no one person has access to both: pure.

An offer is what another cluster has to know of one, with credentials that its authority signed for that other cluster.
It is taken for what it says only as far as `checks` go, as if it had been read from an API.
"""

from __future__ import annotations

from datetime import datetime
from typing import Final, TypeVar

import msgspec
from cryptography.hazmat.primitives.serialization import Encoding
from msgspec import Struct
from msgspec.structs import replace

from certs.check import is_signed_by, read_certificates, read_pair
from certs.errors import CertsError
from certs.plain import plain_certificates, plain_key
from certs.signature import has_signed, public_key, sign
from clustermesh.address import parse_prefix, prefix_text
from clustermesh.errors import ClusterMeshError, DecodeError, Refused
from clustermesh.joining import names
from clustermesh.joining.links import Link, credentials, has_credentials, link, replaced
from clustermesh.joining.member import CertFiles, Entrance, Member, Version
from clustermesh.joining.secret_sizes import MOST_ENTRY
from clustermesh.model import Cluster, check_cluster_id, check_cluster_name
from clustermesh.standalone.context import parse_address
from clustermesh.standalone.pod_cidrs import PodCidr

T = TypeVar("T")
MOST_BYTES: Final = 1 << 20
MOST_SENTENCES, MOST_LETTERS = 20, 1000
"""Of a refusal: no more is said, nor shown."""
_MOST_HOSTS: Final = 64
_MOST_CIDRS: Final = 10_240
"""Two of each node, and nodes as many as Kubernetes knows."""


class Offer(Struct, frozen=True, kw_only=True):
    """One cluster as another is told of it. `shown` are the files that the other is to show it, PEM;
    with `keep` those that it has from before stay, where they are good."""

    name: str
    id: int
    max_clusters: int
    encryption: str
    hosts: list[str]
    port: int
    pod_cidrs: list[tuple[str, str]]
    trusted: str
    signer: str
    server: str
    shown: dict[str, str]
    product: str = ""
    version: str = ""
    as_is: bool = False
    keep: bool = False


class Ask(Struct, frozen=True, kw_only=True):
    """What the newcomer sends: the id and the secret of its token, and itself, an `Offer` in JSON. The signature over
    all three is by the key of the server's certificate in that offer."""

    id: str
    secret: str
    offer: msgspec.Raw
    signature: bytes


def offer(owner: Member, reader: str, now: datetime) -> Offer:
    """`owner` as the cluster `reader` is to know it. Raises Refused where it is not to be reached, or cannot sign."""
    if owner.entrance is None:
        raise Refused(f"{owner.name} is not reached from outside: {owner.hidden}")
    newcomer = Member(context="", cluster=Cluster(name=reader, id=0), namespace="")
    try:
        shown = credentials(Link(newcomer, owner, owner.entrance), now)
    except CertsError as e:
        remedy = f"put ca.key into its Secret {names.AUTHORITY}, or `clustermesh connect` with one authority for both"
        raise Refused(f"{owner.name} cannot sign a certificate for {reader}: {e}: {remedy}") from e
    version, cidrs = owner.version or Version("", ""), dict.fromkeys(owner.pod_cidrs)
    if len(cidrs) > _MOST_CIDRS:
        raise Refused(
            f"{owner.name} has {len(cidrs)} pod CIDRs: by invitation must be at most {_MOST_CIDRS}: use `clustermesh "
            "connect`"
        )
    return Offer(
        name=owner.name,
        id=owner.cluster.id,
        max_clusters=owner.cluster.max_clusters,
        encryption=owner.encryption,
        hosts=list(owner.entrance.hosts),
        port=owner.entrance.port,
        pod_cidrs=[(each.node, prefix_text(each.prefix)) for each in cidrs],
        trusted=_believed(owner).decode(),
        signer=owner.signer.cert.decode(),
        server=owner.server.cert.decode(),
        shown={key: value.decode() for key, value in shown.items()},
        product=version.product,
        version=version.number,
        as_is=owner.entrance.as_is,
    )


def join_again(newcomer: str) -> str:
    """What to do where the token, or what it brought, is by an authority of before."""
    return f"join by a new invitation: `clustermesh invite create --again --to {newcomer}`"


def _believed(owner: Member) -> bytes:
    """What is to be trusted of it: the authority that signs now, where what it shows is signed by that. One that is
    being replaced is not told to anybody any more."""
    try:
        signer = read_certificates(owner.signer.cert, names.AUTHORITY)[0]
        if is_signed_by(read_certificates(owner.server.cert, names.SERVER_CERT)[0], signer):
            return signer.public_bytes(Encoding.PEM)
    except CertsError:
        pass  # the checks say so
    return owner.trusted


def encode_ask(owner: Member, token: tuple[str, str], said: Offer) -> bytes:
    """`owner`, of which `said` tells, asks with a token's id and secret. Raises Refused where it has no key."""
    where = f"Secret {names.SERVER_CERT} of {owner.name}"
    try:
        key = read_pair(owner.server.cert, owner.server.key, where).key
    except CertsError as e:
        raise Refused(str(e)) from e
    raw = msgspec.json.encode(said)
    signature = sign(key, _signed(*token, raw))
    return msgspec.json.encode(Ask(id=token[0], secret=token[1], offer=msgspec.Raw(raw), signature=signature))


def decode_ask(data: bytes) -> tuple[Ask, Offer, bytes]:
    """With the public key by which it is signed. Raises DecodeError."""
    ask = _decoded(data, Ask)
    said = decode_offer(bytes(ask.offer))
    try:
        server = read_certificates(_plain("server", said.server), "server")[0]
    except CertsError as e:
        raise DecodeError("server", "hidden", str(e)) from e
    if not has_signed(server, _signed(ask.id, ask.secret, bytes(ask.offer)), ask.signature):
        raise DecodeError("signature", "hidden", "must be by the key of the server's certificate")
    return ask, said, public_key(server)


def _signed(number: str, secret: str, said: bytes) -> bytes:
    return msgspec.json.encode(("clustermesh join", number, secret, said))


def decode_offer(data: bytes) -> Offer:
    """Raises DecodeError."""
    return _decoded(data, Offer)


def _decoded(data: bytes, kind: type[T]) -> T:
    try:
        return msgspec.json.decode(data, type=kind)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as e:
        raise DecodeError("offer", "hidden", f"must be what `clustermesh join` of this release sends: {e}") from e


def offered_link(reader: Member, said: Offer, now: datetime, *, keep: bool) -> Link:
    """`reader` is to read who `said` that, with the credentials that came with it (or those that it has, which `keep`
    keeps where they are good), and with what an earlier connection of the two allowed. Certificates and keys are
    written anew, and all that goes into a Secret is of `MOST_ENTRY` at most. Raises DecodeError."""
    try:
        owner = _member(said)
        files = _files(said, owner.trusted)
    except (ClusterMeshError, CertsError) as e:
        raise DecodeError(f"offer of {said.name[:40]!r}", "hidden", str(e)) from e
    assert owner.entrance is not None
    before = link(reader, owner, owner.entrance, ())
    if keep and has_credentials(before, now):
        return before
    kept = {"copied" if reader.mirrored else "peers": replaced(reader.entries, owner.name, files)}
    return replace(before, reader=replace(reader, **kept))


def _files(said: Offer, trusted: bytes) -> dict[str, bytes]:
    """What the owner is to be shown, beside what is `trusted` of it."""
    authority, cert, key = (f"{names.credentials_of(said.name)}{end}" for end in ("-ca.crt", ".crt", ".key"))
    if said.shown.keys() != {authority, cert, key}:
        raise DecodeError("shown", sorted(said.shown)[:4], f"must be {authority}, {cert} and {key}")
    found = {authority: trusted, cert: _plain(cert, said.shown[cert]), key: plain_key(_bytes(said.shown[key]), key)}
    if (size := sum(map(len, [*found.values(), *said.hosts]))) > MOST_ENTRY:
        raise DecodeError("hosts, trusted and shown", size, f"must be at most {MOST_ENTRY} bytes together")
    return found


def _plain(field: str, pem: str) -> bytes:
    return plain_certificates(_bytes(pem), field)


def _bytes(text: str) -> bytes:
    return text.encode(errors="replace")


def _member(said: Offer) -> Member:
    if said.max_clusters not in (255, 511):
        raise DecodeError("maxConnectedClusters", said.max_clusters, "must be 255 or 511")
    if not 1 <= len(said.hosts) <= _MOST_HOSTS:
        raise DecodeError("hosts", len(said.hosts), f"must be 1 to {_MOST_HOSTS}")
    for host in said.hosts:
        parse_address(f"[{host}]:{said.port}" if ":" in host else f"{host}:{said.port}", "hosts")
    if len(said.pod_cidrs) > _MOST_CIDRS:
        raise DecodeError("pod_cidrs", len(said.pod_cidrs), f"must be at most {_MOST_CIDRS}")
    name = check_cluster_name(said.name)
    return Member(
        context=f"(told by {name})",
        cluster=Cluster(name=name, id=check_cluster_id(said.id, said.max_clusters), max_clusters=said.max_clusters),
        namespace=names.NAMESPACE,
        encryption=said.encryption[:40],
        version=Version(said.product[:40], said.version[:40]) if said.version else None,
        entrance=Entrance(tuple(said.hosts), said.port, said.as_is),
        pod_cidrs=tuple(PodCidr(parse_prefix(text), name, node[:253]) for node, text in said.pod_cidrs),
        signer=CertFiles(cert=_plain("signer", said.signer)),
        trusted=_plain("trusted", said.trusted),
        server=CertFiles(cert=_plain("server", said.server) if said.server else b""),
    )
