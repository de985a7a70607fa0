"""What can go wrong with the Kubernetes API, and the one seam where HTTP's answers become our errors."""

from __future__ import annotations

from http import HTTPStatus
from typing import Final

import msgspec
from msgspec import Struct, field

from clustermesh.errors import ClusterMeshError, Refused, Unavailable

# What the API server and the etcd below it say of a resourceVersion that they have not reached.
_FUTURE: Final = ("Too large resource version", "is a future revision")
MAX_WAIT: Final = 300.0
"""The longest that a Retry-After is obeyed, in seconds."""


class Expired(Unavailable):
    """The history asked for is gone (410): list again."""


class Replaced(Unavailable):
    """The API server's resourceVersion went back: its store was restored or started empty. List again."""


class Busy(Unavailable):
    """The server asks for patience (429, or 5xx with Retry-After): for `seconds` at least."""

    def __init__(self, sentence: str, seconds: float) -> None:
        super().__init__(sentence)
        self.seconds = seconds


class Unauthorized(Refused):
    """The server does not take our credentials (401): perhaps newer ones."""


class Forbidden(Refused):
    """Who we are is known, and may not do this (403): a ClusterRole lacks a rule."""


class NotServed(Refused):
    """There is no such object, namespace or kind (404): perhaps a CustomResourceDefinition is not installed."""


class Conflict(Unavailable):
    """Somebody else changed the object, or made it, in between (409): look again."""


class Oversized(Unavailable):
    """An answer is larger than may be read at once: ask for less at a time."""


class _Details(Struct):
    retry_after: float = field(default=0, name="retryAfterSeconds")


class Status(Struct):
    """What the API says instead of an object (meta/v1 Status)."""

    code: int = 0
    reason: str = ""
    message: str = ""
    details: _Details | None = None


_STATUS: Final = msgspec.json.Decoder(Status)


_BY_CODE: Final[dict[int, tuple[type[ClusterMeshError], str]]] = {
    HTTPStatus.UNAUTHORIZED: (Unauthorized, "{what}: the API server does not accept our credentials"),
    HTTPStatus.FORBIDDEN: (Forbidden, "may not {what}: no role allows it ({message})"),
    HTTPStatus.NOT_FOUND: (NotServed, "{what}: there is nothing of that name or kind: {message}"),
    HTTPStatus.CONFLICT: (Conflict, "{what}: somebody else changes it at the same time: {message}"),
    HTTPStatus.GONE: (Expired, "{what}: the history asked for is gone: {message}"),
}


def read_status(body: bytes | msgspec.Raw) -> Status:
    """The Status in `body`; of garbage, one that quotes it."""
    try:
        return _STATUS.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return Status(message=bytes(body)[:200].decode(errors="replace").strip())


def fault(code: int, status: Status, what: str, retry_after: str = "") -> ClusterMeshError:
    """The error of ours for an answer of HTTP status `code` to `what`, as "list pods"."""
    sentence = f"{what}: {code} {status.reason}: {status.message}".replace(" : ", ": ")
    if any(text in status.message for text in _FUTURE):
        return Replaced(sentence)
    if code in _BY_CODE:
        kind, says = _BY_CODE[code]
        return kind(says.format(what=what, message=status.message))
    wait = _seconds(retry_after) or (status.details.retry_after if status.details else 0.0)
    if code == HTTPStatus.TOO_MANY_REQUESTS or wait:
        return Busy(sentence, min(wait, MAX_WAIT))
    return Refused(sentence) if 400 <= code < 500 else Unavailable(sentence)


def _seconds(text: str) -> float:
    return float(text) if text.isascii() and text.isdigit() else 0.0
