"""How a gRPC call ended, and what HTTP and HTTP/2 say instead where no gRPC server answered.

https://github.com/grpc/grpc/blob/master/doc/statuscodes.md, PROTOCOL-HTTP2.md, http-grpc-status-mapping.md
"""

from __future__ import annotations

from enum import IntEnum
from typing import Final


class Code(IntEnum):
    OK = 0
    CANCELLED = 1
    UNKNOWN = 2
    INVALID_ARGUMENT = 3
    DEADLINE_EXCEEDED = 4
    NOT_FOUND = 5
    ALREADY_EXISTS = 6
    PERMISSION_DENIED = 7
    RESOURCE_EXHAUSTED = 8
    FAILED_PRECONDITION = 9
    ABORTED = 10
    OUT_OF_RANGE = 11
    UNIMPLEMENTED = 12
    INTERNAL = 13
    UNAVAILABLE = 14
    DATA_LOSS = 15
    UNAUTHENTICATED = 16


_BY_NUMBER: Final = {str(int(code)).encode(): code for code in Code}
_BY_HTTP: Final = {
    b"400": Code.INTERNAL,
    b"401": Code.UNAUTHENTICATED,
    b"403": Code.PERMISSION_DENIED,
    b"404": Code.UNIMPLEMENTED,
    b"429": Code.UNAVAILABLE,
    b"502": Code.UNAVAILABLE,
    b"503": Code.UNAVAILABLE,
    b"504": Code.UNAVAILABLE,
}
_BY_RESET: Final = {  # RFC 9113, 7
    0x7: Code.UNAVAILABLE,  # REFUSED_STREAM
    0x8: Code.CANCELLED,
    0xB: Code.RESOURCE_EXHAUSTED,  # ENHANCE_YOUR_CALM
    0xC: Code.PERMISSION_DENIED,  # INADEQUATE_SECURITY
}


def of_grpc(text: bytes) -> Code:
    """What a `grpc-status` says."""
    return _BY_NUMBER.get(text, Code.UNKNOWN)


def of_http(status: bytes) -> Code:
    """What an HTTP status that is not 200 comes to."""
    return _BY_HTTP.get(status, Code.UNKNOWN)


def of_reset(code: int) -> Code:
    """What it comes to that one stream was ended with `code` of HTTP/2."""
    return _BY_RESET.get(code, Code.INTERNAL)
