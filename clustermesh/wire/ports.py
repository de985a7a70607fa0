"""Layer 4 ports on the wire: `{"Protocol":"TCP","Port":80}`, capitalised inside objects that are not."""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from typing import Final

from msgspec import Struct, field

from clustermesh.errors import Invalid
from clustermesh.model import Port, Protocol
from clustermesh.wire.go_json import UInt16

_PROTOCOLS: Final = {protocol.value: protocol for protocol in Protocol}


class WirePort(Struct, frozen=True, gc=False):
    """Both fields are required: a port without them is what makes a real reader fail."""

    protocol: str = field(name="Protocol")
    port: UInt16 = field(name="Port")


def read_protocol(text: str) -> Protocol:
    """Any case, as Cilium's readers have it; Invalid for what is no protocol."""
    protocol = _PROTOCOLS.get(text) or _PROTOCOLS.get(text.upper())
    if protocol is None:
        raise Invalid("protocol", text, f"must be one of {', '.join(_PROTOCOLS)}")
    return protocol


def write_protocol(protocol: Protocol) -> str:
    """The one right spelling; Invalid for a text that is not one, whatever the type says."""
    if protocol not in _PROTOCOLS:
        raise Invalid("protocol", protocol, f"must be one of {', '.join(_PROTOCOLS)}")
    return str(protocol)


def check_port(port: int) -> int:
    if not 0 <= port <= 0xFFFF:
        raise Invalid("port", port, "must be 0 to 65535")
    return port


def write_ports(ports: Mapping[str, Port]) -> dict[str, WirePort]:
    """Ports by name; Invalid for one that no reader takes."""
    return {name: WirePort(write_protocol(port.protocol), check_port(port.port)) for name, port in ports.items()}


def read_ports(wire: Mapping[str, WirePort] | None) -> Mapping[str, Port]:
    """Ports by name; null is none. Thousands of backends have the same few: equal ones are one object."""
    return _ports(tuple((name, port.protocol, port.port) for name, port in wire.items())) if wire else {}


@lru_cache(4096)
def _ports(ports: tuple[tuple[str, str, int], ...]) -> Mapping[str, Port]:
    return {name: Port(protocol=read_protocol(protocol), port=port) for name, protocol, port in ports}
