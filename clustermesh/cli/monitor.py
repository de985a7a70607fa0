"""Events of a node's programs, as its agent passes them on: bytes to rows, rows to lines. Pure.

The agent says first how the bytes are read. What an event leaves open is in the head of its packet, which anybody may
have sent: whatever it is, a row is made of it.
"""

from __future__ import annotations

import time
from base64 import b64decode
from collections.abc import Iterator, Mapping, Sequence
from socket import ntohs
from struct import Struct
from typing import Any, Final, NamedTuple

from clustermesh.address import Address, text
from clustermesh.errors import Invalid

_PROTOCOLS: Final = {1: "ICMP", 6: "TCP", 17: "UDP", 58: "ICMPv6", 132: "SCTP"}
_WITH_PORTS: Final = frozenset({"TCP", "UDP", "SCTP"})
_MAPPED: Final = bytes(10) + b"\xff\xff"
_FLAGS: Final = ("FIN", "SYN", "RST", "PSH", "ACK", "URG")
_ENDS: Final = ("source", "destination", "new_source", "new_destination")
_FRAGMENT: Final = 44
_MARKS: Final = {"drop": "xx", "lb": "=>", "trace": "->"}


class Form:
    """How the bytes are read, as the agent said."""

    def __init__(self, said: Mapping[str, Any]) -> None:
        try:
            self._struct, self._fields = Struct(said["form"]), tuple(map(str, said["fields"]))
            self._types, self._reasons = list(map(str, said["types"])), list(map(str, said["reasons"]))
            dict(zip(self._fields, self._struct.unpack(bytes(self._struct.size)), strict=True))
        except Exception as e:
            raise Invalid("agent", "its monitor", f"speaks another form than this command: {e}") from e

    def rows(self, events: str, offset: int) -> Iterator[dict[str, Any]]:
        """One for each of the events in base64. `offset` is what the Unix time is beyond the kernel's, in ns."""
        for values in self._struct.iter_unpack(b64decode(events)):
            yield self._row(dict(zip(self._fields, values, strict=True)), offset)

    def _row(self, event: dict[str, Any], offset: int) -> dict[str, Any]:
        packet = read_head(event["head"][: event["head_size"]])
        protocol = event["protocol"] or packet.protocol
        row: dict[str, Any] = {
            "time": (event["time"] + offset) / 1e9,
            "cpu": event["cpu"],
            "type": _named(self._types, event["type"]),
            "reason": _named(self._reasons, event["reason"]),
            "protocol": _PROTOCOLS.get(protocol, str(protocol)),
            "flags": packet.flags,
            "ifindex": event["ifindex"],
            "cookie": event["cookie"],
            "identity": {"source": event["source_identity"], "destination": event["destination_identity"]},
        }
        for end in _ENDS:
            address, port = Address(event[end]), ntohs(event[f"{end}_port"])
            if not any(address):
                address, port = packet.ends.get(end, (Address(bytes(16)), 0))
            row[end] = {"address": text(address), "port": port} if any(address) else None
        return row


class Packet(NamedTuple):
    """What the head of a packet says, as far as there is one."""

    protocol: int
    ends: Mapping[str, tuple[Address, int]]
    flags: Sequence[str]


def read_head(head: bytes) -> Packet:
    """From the network header on."""
    version = head[0] >> 4 if head else 0
    if version == 4 and len(head) >= 20:
        protocol, transport = head[9], head[(head[0] & 15) * 4 :]
        if int.from_bytes(head[6:8]) & 0x1FFF:  # a later fragment
            transport = b""
        addresses = _MAPPED + head[12:16], _MAPPED + head[16:20]
    elif version == 6 and len(head) >= 40:
        protocol, transport = head[6], head[40:]
        if protocol == _FRAGMENT and len(transport) >= 8:
            later = int.from_bytes(transport[2:4]) & 0xFFF8
            protocol, transport = transport[0], b"" if later else transport[8:]
        addresses = head[8:24], head[24:40]
    else:
        return Packet(0, {}, ())
    has_ports = _PROTOCOLS.get(protocol) in _WITH_PORTS
    ports = [int.from_bytes(transport[at : at + 2]) if has_ports else 0 for at in (0, 2)]
    flags = transport[13] if _PROTOCOLS.get(protocol) == "TCP" and len(transport) > 13 else 0
    ends = {end: (Address(at), port) for end, at, port in zip(_ENDS[:2], addresses, ports, strict=True)}
    return Packet(protocol, ends, [name for bit, name in enumerate(_FLAGS) if flags & 1 << bit])


def line_of(row: Mapping[str, Any]) -> str:
    """As `cilium-dbg monitor` shows an event."""
    clock = time.strftime("%H:%M:%S", time.localtime(row["time"])) + f".{int(row['time'] * 1000) % 1000:03}"
    reason = row["reason"].removeprefix("drop_").replace("_", " ")
    identity = f"{row['identity']['source']}->{row['identity']['destination']}"
    at = f"ifindex {row['ifindex']}, " if row["ifindex"] else ""
    before = _flow(row["source"], row["destination"])
    after = _flow(row["new_source"], row["new_destination"])
    changed = f" => {after}" if after else ""
    last = " ".join([row["protocol"].lower(), *row["flags"]])
    return (
        f"{clock} CPU {row['cpu']:02}: {_MARKS.get(row['type'], '--')} {row['type']} ({reason}) "
        f"{at}cookie {row['cookie']}, identity {identity}: {before}{changed} {last}"
    )


def _flow(source: Mapping[str, Any] | None, destination: Mapping[str, Any] | None) -> str:
    return " -> ".join(map(_end, filter(None, (source, destination))))


def _end(end: Mapping[str, Any]) -> str:
    address = f"[{end['address']}]" if ":" in end["address"] else end["address"]
    return f"{address}:{end['port']}" if end["port"] else address


def _named(names: Sequence[str], number: int) -> str:
    return names[number] if number < len(names) else str(number)
