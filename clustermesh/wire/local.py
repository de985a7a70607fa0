"""This project's own values, under clustermesh/v1/: the own cluster's services, its agents' keys, times of changes.

An own service that Cilium's key describes in full has no key here: `shared` is what stands there, `from_shared` what an
agent makes of it, and `is_told` whether the two are one another's inverse.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Final

import msgspec
from msgspec import Meta, Struct, field

from clustermesh.errors import Invalid
from clustermesh.model import Affinity, AgentRecord, LocalService, Service, Stamp
from clustermesh.wire import go_json, identity, service
from clustermesh.wire.decoding import decodes
from clustermesh.wire.keys import check_name
from clustermesh.wire.node import check_wireguard_key

_Nanoseconds = Annotated[int, Meta(ge=0, le=2**63 - 1)]


class _LocalService(Struct, frozen=True, gc=False):
    service: service.WireService
    is_global: bool = field(name="global", default=False)
    affinity: Affinity = Affinity.NONE


class _Identity(Struct, frozen=True, gc=False):
    id: go_json.UInt32
    labels: str


class _AgentRecord(Struct, frozen=True, gc=False):
    node: str
    wireguard_public_key: str = field(name="wireguardPublicKey")
    boot_id: str = field(name="bootID", default="")
    reads_shared: bool = field(name="readsShared", default=False)
    identities: tuple[_Identity, ...] = ()


class _Stamps(Struct, frozen=True, gc=False):
    published: _Nanoseconds
    observed: dict[str, _Nanoseconds]


_SERVICES: Final = msgspec.json.Decoder(_LocalService)
_AGENTS: Final = msgspec.json.Decoder(_AgentRecord)
_STAMPS: Final = msgspec.json.Decoder(_Stamps)


def encode_service(local: LocalService) -> bytes:
    """JSON, the service inside it as Cilium has it; Invalid as in service.encode."""
    return go_json.encode(_LocalService(service.to_wire(local.service), local.is_global, local.affinity))


@decodes("local service")
def decode_service(data: bytes) -> LocalService:
    """Raises DecodeError."""
    wire = _SERVICES.decode(data)
    return LocalService(service=service.from_wire(wire.service), is_global=wire.is_global, affinity=wire.affinity)


def shared(local: LocalService) -> Service | None:
    """What other clusters are told of `local`; None where they are told nothing."""
    return local.service if local.is_global and local.service.shared else None


def from_shared(service: Service | None) -> LocalService | None:
    """The own service that Cilium's key says `service` of; one that is not shared is as good as absent."""
    return LocalService(service=service, is_global=True) if service is not None and service.shared else None


def is_told(local: LocalService) -> bool:
    """Whether `shared` says all there is to say of `local`, and `from_shared` gives it back."""
    return shared(local) is not None and local.affinity is Affinity.NONE


def encode_agent(record: AgentRecord) -> bytes:
    """JSON; Invalid unless node and key are what they must be."""
    _check_agent(record)
    identities = tuple(_Identity(each.id, identity.encode(each).decode()) for each in record.identities)
    return go_json.encode(
        _AgentRecord(record.node, record.wireguard_public_key, record.boot_id, record.reads_shared, identities)
    )


@decodes("agent record")
def decode_agent(data: bytes) -> AgentRecord:
    """Raises DecodeError."""
    wire = _AGENTS.decode(data)
    record = AgentRecord(
        node=wire.node,
        wireguard_public_key=wire.wireguard_public_key,
        boot_id=wire.boot_id,
        reads_shared=wire.reads_shared,
        identities=tuple(identity.decode(each.labels.encode(), each.id) for each in wire.identities),
    )
    _check_agent(record)
    return record


def encode_stamps(observed: Mapping[tuple[str, str], int], published: int) -> bytes:
    """JSON: when the services written in one transaction were observed, and when they were written.

    Invalid for a time before 1970 or after 2262.
    """
    for where, moment in (("published", published), *(("observed", at) for at in observed.values())):
        if not 0 <= moment < 2**63:
            raise Invalid(where, moment, "must be Unix time in nanoseconds")
    return go_json.encode(_Stamps(published, {f"{space}/{name}": at for (space, name), at in observed.items()}))


@decodes("stamps")
def decode_stamps(data: bytes) -> dict[tuple[str, str], Stamp]:
    """By namespace and name of the service. Raises DecodeError."""
    wire = _STAMPS.decode(data)
    stamps = {}
    for named, observed in wire.observed.items():
        namespace, _, name = named.partition("/")
        where = (check_name(namespace, "namespace"), check_name(name, "name"))
        stamps[where] = Stamp(observed=observed, published=wire.published)
    return stamps


def _check_agent(record: AgentRecord) -> None:
    check_name(record.node, "node")
    check_wireguard_key(record.wireguard_public_key)
