"""JSON as Go's encoding/json writes it, byte for byte: compact, maps sorted by key, HTML-safe.

Field order, omitted fields and null are the wire structs' own business; here is what is the same for all of them.
Go escapes <, >, & and the line separators U+2028 and U+2029 inside strings; msgspec does not, and the rest is alike.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Final

import msgspec
from msgspec import Meta

from clustermesh.errors import Invalid

UInt8 = Annotated[int, Meta(ge=0, le=0xFF)]
UInt16 = Annotated[int, Meta(ge=0, le=0xFFFF)]
UInt32 = Annotated[int, Meta(ge=0, le=0xFFFF_FFFF)]

_ENCODER: Final = msgspec.json.Encoder(order="deterministic")
_ESCAPES: Final = tuple((char.encode(), f"\\u{ord(char):04x}".encode()) for char in "<>&\u2028\u2029")


def encode(value: msgspec.Struct | Mapping[str, msgspec.Struct]) -> bytes:
    """`value` as JSON; Invalid where a text cannot be written as UTF-8 (a lone surrogate)."""
    try:
        data = _ENCODER.encode(value)
    except UnicodeEncodeError as e:
        raise Invalid("text", e.object, "must be valid Unicode") from e
    for char, escape in _ESCAPES:  # such a byte can only stand inside a string, and never behind a lone backslash
        if char in data:
            data = data.replace(char, escape)
    return data
