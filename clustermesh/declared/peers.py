"""ClusterMeshPeers as the Kubernetes API has them, and the entry of the peers folder that each asks for. Pure."""

from __future__ import annotations

import re
from collections.abc import Mapping
from datetime import datetime
from typing import Any, Final

import msgspec
from msgspec import Raw, Struct

from certs.check import check_time, check_use, facts, read_certificates, read_pair
from certs.errors import CertsError
from certs.names import Leaf, remote
from clustermesh.address import parse_prefix
from clustermesh.errors import DecodeError, Invalid
from clustermesh.joining import names
from clustermesh.joining.member import Entrance
from clustermesh.kube.rbac import FOLLOW, Rule
from clustermesh.kube.resource import Resource
from clustermesh.mesh.peer_files import PeerFile, read_limits
from clustermesh.model import check_cluster_name
from clustermesh.store import endpoint

GROUP: Final = names.DECLARED_GROUP
VERSION: Final = names.DECLARED_VERSION
KIND: Final = "ClusterMeshPeer"
PLURAL: Final = names.DECLARED
RULES: Final = (
    Rule(GROUP, PLURAL, FOLLOW),
    Rule(GROUP, f"{PLURAL}/status", ("patch",)),
    Rule("", "secrets", ("get", "patch", "create")),
    Rule("", "configmaps", ("get", "patch", "create")),
)
"""What keeping them takes, in their namespace; of Secrets and ConfigMaps those of `joining.names` alone, and the
Secrets that peers may name."""
_CAPITAL: Final = re.compile("([A-Z])")


class Condition(Struct, frozen=True, rename="camel"):
    """As Kubernetes has conditions."""

    type: str = ""
    status: str = ""
    reason: str = ""
    message: str = ""
    last_transition_time: str = ""
    observed_generation: int = 0


class Declared(Struct, frozen=True):
    """One of them: `spec` as it stands there, and the `status` that was written last."""

    name: str
    generation: int = 0
    spec: Mapping[str, Any] = {}
    status: Mapping[str, Any] = {}

    @property
    def paused(self) -> bool:
        return self.spec.get("paused") is True

    @property
    def trust(self) -> str:
        """The Secret that says what this cluster trusts and shows there, "" for what all peers share."""
        found = self.spec.get("trust")
        name = found.get("secretName") if isinstance(found, dict) else None
        return name if isinstance(name, str) else ""


class _Meta(Struct, frozen=True):
    name: str
    generation: int = 0


class _Object(Struct, frozen=True):
    metadata: _Meta
    spec: dict[str, Any] = {}
    status: dict[str, Any] = {}


class _Trust(Struct, frozen=True, rename="camel"):
    secret_name: str


class Spec(Struct, frozen=True, rename="camel"):
    """What a ClusterMeshPeer says; charts/clustermesh/crds has what each field is."""

    addresses: list[str]
    port: int = endpoint.DEFAULT_PORT
    trust: _Trust | None = None
    allow_prefixes: list[str] = []
    limits: dict[str, int] = {}
    admit: bool = True
    paused: bool = False


def peers_of(namespace: str) -> Resource[str, Declared]:
    """Those of one namespace, by name."""
    return Resource(
        group=GROUP,
        version=VERSION,
        plural=PLURAL,
        decode=_decode,
        key=lambda _namespace, name: name,
        namespace=namespace,
    )


def _decode(raw: Raw) -> tuple[str, Declared]:
    try:
        found = msgspec.json.decode(raw, type=_Object)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as e:
        raise DecodeError(KIND, bytes(raw)[:80].decode(errors="replace"), str(e)) from e
    return found.metadata.name, Declared(found.metadata.name, found.metadata.generation, found.spec, found.status)


def spec_of(declared: Declared) -> Spec:
    """Raises Invalid for a field of another type than its own: a definition may be older than this program."""
    try:
        return msgspec.convert(declared.spec, Spec)
    except msgspec.ValidationError as e:
        rule, _, place = str(e).partition(" - at ")
        at = place.strip("`").removeprefix("$")
        raise Invalid(f"spec{at}", None, rule[:1].lower() + rule[1:]) from e


def peer_of(declared: Declared, own: str) -> PeerFile:
    """The peer that `declared` describes, but for its credentials. Raises Invalid; `own` is this cluster's name."""
    name = check_cluster_name(declared.name)
    if name == own:
        raise Invalid("metadata.name", name, "must be another cluster's name: this is the own one")
    spec = spec_of(declared)
    if not spec.addresses:
        raise Invalid("spec.addresses", [], "must name at least one host name or address")
    for number, host in enumerate(spec.addresses):
        _check_host(host, spec.port, f"spec.addresses[{number}]")
    entrance = Entrance(tuple(spec.addresses), spec.port)
    return PeerFile(
        name=name,
        endpoints=entrance.endpoints(name),
        host_aliases=entrance.aliases(name),
        allowed=tuple(
            parse_prefix(each, f"spec.allowPrefixes[{number}]") for number, each in enumerate(spec.allow_prefixes)
        ),
        limits=read_limits({_dashed(key): most for key, most in spec.limits.items()}, "spec.limits"),
    )


def _check_host(host: str, port: int, where: str) -> None:
    rule = "must be a host name or an address, without scheme and port"
    spelled = f"[{host}]" if ":" in host else host
    if not 0 < port < 65536:
        raise Invalid("spec.port", port, "must be 1 to 65535")
    try:
        parsed = endpoint.parse(f"https://{spelled}:{port}")
    except Invalid as e:
        raise Invalid(where, host, rule) from e
    if parsed.host != host.lower() or parsed.port != port:
        raise Invalid(where, host, rule)


def _dashed(name: str) -> str:
    """As the peers folder spells it: listingBytes is listing-bytes there."""
    return _CAPITAL.sub(r"-\1", name).lower()


def credentials_in(declared: Declared, secret: Mapping[str, bytes], own: str, now: datetime) -> dict[str, bytes]:
    """The files beside the peer's entry, made of the Secret that it names. Raises Invalid where they are no good for
    the cluster `own`: another cluster's user. An etcd of somebody's own may have users of any name."""
    where, name = f"spec.trust.secretName: {declared.trust}", names.credentials_of(declared.name)
    for key in ("ca.crt", "tls.crt", "tls.key"):
        if not secret.get(key):
            raise Invalid(f"{where}: {key}", None, "must be there, as in a Secret of type kubernetes.io/tls")
    try:
        read_certificates(secret["ca.crt"], "ca.crt")
        shown = read_pair(secret["tls.crt"], secret["tls.key"], "tls").certificate
        check_time(shown, now, "tls.crt")
        user = facts(shown, "tls.crt").common_name
        check_use(shown, remote(own) if user.startswith(remote("").common_name) else Leaf(user), "tls.crt")
    except CertsError as e:
        raise Invalid(where, None, str(e)) from e
    return {
        f"{name}-ca.crt": secret["ca.crt"],
        f"{name}.crt": secret["tls.crt"],
        f"{name}.key": secret["tls.key"],
    }
