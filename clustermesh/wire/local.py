"""This project's own values, under clustermesh/v1/: the own cluster's services, its agents' keys, a change's times."""

from __future__ import annotations

from typing import Annotated, Final

import msgspec
from msgspec import Meta, Struct, field

from clustermesh.errors import Invalid
from clustermesh.model import Affinity, AgentRecord, LocalService, Stamp
from clustermesh.wire import go_json, service
from clustermesh.wire.decoding import decodes
from clustermesh.wire.keys import check_name
from clustermesh.wire.node import check_wireguard_key

_Nanoseconds = Annotated[int, Meta(ge=0, le=2**63 - 1)]


class _LocalService(Struct, frozen=True, gc=False):
    service: service.WireService
    is_global: bool = field(name="global", default=False)
    affinity: Affinity = Affinity.NONE


class _AgentRecord(Struct, frozen=True, gc=False):
    node: str
    wireguard_public_key: str = field(name="wireguardPublicKey")
    boot_id: str = field(name="bootID", default="")


class _Stamp(Struct, frozen=True, gc=False):
    observed: _Nanoseconds
    published: _Nanoseconds


_SERVICES: Final = msgspec.json.Decoder(_LocalService)
_AGENTS: Final = msgspec.json.Decoder(_AgentRecord)
_STAMPS: Final = msgspec.json.Decoder(_Stamp)


def encode_service(local: LocalService) -> bytes:
    """JSON, the service inside it as Cilium has it; Invalid as in service.encode."""
    return go_json.encode(_LocalService(service.to_wire(local.service), local.is_global, local.affinity))


@decodes("local service")
def decode_service(data: bytes) -> LocalService:
    """Raises DecodeError."""
    wire = _SERVICES.decode(data)
    return LocalService(service=service.from_wire(wire.service), is_global=wire.is_global, affinity=wire.affinity)


def encode_agent(record: AgentRecord) -> bytes:
    """JSON; Invalid unless node and key are what they must be."""
    _check_agent(record)
    return go_json.encode(_AgentRecord(record.node, record.wireguard_public_key, record.boot_id))


@decodes("agent record")
def decode_agent(data: bytes) -> AgentRecord:
    """Raises DecodeError."""
    wire = _AGENTS.decode(data)
    record = AgentRecord(node=wire.node, wireguard_public_key=wire.wireguard_public_key, boot_id=wire.boot_id)
    _check_agent(record)
    return record


def encode_stamp(stamp: Stamp) -> bytes:
    """JSON; Invalid for a time before 1970 or after 2262."""
    for where, moment in (("observed", stamp.observed), ("published", stamp.published)):
        if not 0 <= moment < 2**63:
            raise Invalid(where, moment, "must be Unix time in nanoseconds")
    return go_json.encode(_Stamp(stamp.observed, stamp.published))


@decodes("stamp")
def decode_stamp(data: bytes) -> Stamp:
    """Raises DecodeError."""
    wire = _STAMPS.decode(data)
    return Stamp(observed=wire.observed, published=wire.published)


def _check_agent(record: AgentRecord) -> None:
    check_name(record.node, "node")
    check_wireguard_key(record.wireguard_public_key)
