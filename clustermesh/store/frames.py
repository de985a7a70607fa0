"""The frames of HTTP/2, as far as a gRPC client meets them (RFC 9113, 6). Pure."""

from __future__ import annotations

from functools import lru_cache
from struct import Struct
from typing import Final, TypeAlias

from hpack.hpack import encode_integer

MAX_FRAME: Final = 1 << 14  # bytes of one frame, at most, either way: what both sides take if nothing else was said
MAX_BLOCK: Final = 1 << 16
MOST: Final = (1 << 31) - 1  # of a window, and the last number of a stream
PREFACE: Final = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
HEAD: Final = Struct(">HBBBI")  # length (two parts), type, flags, stream
PREFIX: Final = Struct(">BI")  # of a message: whether it is compressed, its length
WORD: Final = Struct(">I")
SETTING: Final = Struct(">HI")
DATA, HEADERS, RESET, SETTINGS, PUSH, PING, GO_AWAY, WINDOW_UPDATE, CONTINUATION = 0, 1, 3, 4, 5, 6, 7, 8, 9
END_STREAM = ACK = 0x1
END_HEADERS, PADDED, PRIORITY = 0x4, 0x8, 0x20
ENABLE_PUSH, MAX_CONCURRENT_STREAMS, INITIAL_WINDOW_SIZE = 2, 3, 4  # SETTINGS
CANCEL: Final = 8


Metadata: TypeAlias = tuple[tuple[str, str], ...]


class Broken(Exception):
    """The server does not keep to HTTP/2, and nothing it says on this connection counts any more."""


@lru_cache(64)
def request_headers(secure: bool, authority: str, path: str, metadata: Metadata, milliseconds: int | None) -> bytes:
    """The header block of a gRPC request; without `milliseconds` it may take for ever."""
    fields = [(":path", path), (":authority", authority), ("te", "trailers"), ("content-type", "application/grpc")]
    fields += [("user-agent", "clustermesh"), *metadata]
    if milliseconds is not None:
        fields.append(("grpc-timeout", f"{milliseconds}m"))
    return (b"\x83\x87" if secure else b"\x83\x86") + b"".join(_literal(*field) for field in fields)


def _literal(name: str, value: str) -> bytes:
    """A field that goes into no table (RFC 7541, 6.2.2)."""
    return b"\0" + b"".join(bytes(encode_integer(len(text), 7)) + text for text in (name.encode(), value.encode()))


def frame(kind: int, flags: int, stream: int, payload: bytes = b"") -> bytes:
    return HEAD.pack(len(payload) >> 8, len(payload) & 255, kind, flags, stream) + payload


def without_padding(flags: int, payload: bytes) -> bytes:
    if not flags & PADDED:
        return payload
    if not payload or payload[0] >= len(payload):
        raise Broken("more padding than there is of a frame")
    return payload[1 : len(payload) - payload[0]]


def word(payload: bytes) -> int:
    if len(payload) < WORD.size:
        raise Broken("a frame that is too short")
    return int(WORD.unpack_from(payload)[0])


def grown(window: int, more: int) -> int:
    if not more or window + more > MOST:
        raise Broken(f"a window of {window} bytes that is to grow by {more}")
    return window + more
