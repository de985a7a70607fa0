"""What can go wrong with etcd, and the one seam where gRPC's statuses become our errors."""

from __future__ import annotations

import re
from typing import Final

from clustermesh.errors import ClusterMeshError, Refused, Unavailable
from clustermesh.store.status import Code


class Compacted(Unavailable):
    """The revision asked for is gone from etcd's history: list again."""


class Replaced(Unavailable):
    """The store at this address is not the one known before (started empty, or restored): nothing known of it holds."""


class ClusterIdChanged(Replaced):
    """An answer came from another etcd cluster than the one this client had been talking to."""


class NobodyListens(Unavailable):
    """The connection was refused where etcd should be: nobody there has any work of it."""


class LeaseLost(Unavailable):
    """The lease named in a write has expired or was revoked: get another one and write again."""


class Fenced(Unavailable):
    """Nothing was written: this process is not, or no longer, the one that writes here."""


class AuthChanged(Unavailable):
    """Users or roles changed while etcd looked at the call, which it therefore did not carry out: ask again."""


class TokenEnded(Unavailable):
    """The token of our login is not, or no longer, known, so the call was not carried out: log in anew, ask again."""


class AuthDisabled(Refused):
    """etcd asks nobody who he is, and gives no tokens."""


class TooLarge(Unavailable):
    """An answer is larger than one message may be: ask for less at a time."""


class Oversized(Refused):
    """A list is larger than its reader was told to take in."""


# etcd puts the kind of an error into its sentence, and uses one code for several kinds; the first match counts.
_BY_SENTENCE: Final[tuple[tuple[re.Pattern[str], type[ClusterMeshError]], ...]] = tuple(
    (re.compile(pattern), error)
    for pattern, error in (
        (r"has been compacted", Compacted),
        (r"is a future revision", Replaced),
        (r"requested lease not found", LeaseLost),
        (r"Received message larger than max", TooLarge),
        (r"revision of auth store is old", AuthChanged),
        (r"invalid auth token", TokenEnded),
        (r"authentication is not enabled", AuthDisabled),
        (r"permission denied|user name is empty", Refused),
    )
)
_BY_CODE: Final[dict[Code, type[ClusterMeshError]]] = {
    Code.PERMISSION_DENIED: Refused,
    Code.UNAUTHENTICATED: Refused,
    Code.INVALID_ARGUMENT: Refused,
    Code.FAILED_PRECONDITION: Refused,
    Code.UNIMPLEMENTED: Refused,
}

# After these the next call is better made on a new connection: the server is gone, silent, or no longer takes us for
# whom it took us (a new handshake shows the certificate again, re-read from its file).
_SEVERING: Final = frozenset({Code.UNAVAILABLE, Code.DEADLINE_EXCEEDED, Code.UNAUTHENTICATED})


def fault(code: Code, details: str | None, where: str) -> ClusterMeshError:
    """The error of ours for a gRPC status; `where` names the endpoint."""
    sentence = details or "no reason given"
    if code is Code.DEADLINE_EXCEEDED:
        return Unavailable(f"etcd at {where} gave no answer in time")
    return _kind(code, sentence)(f"etcd at {where}: {sentence.removeprefix('etcdserver: ')}")


def refusal(reason: str, where: str) -> ClusterMeshError:
    """The error of ours for a watch that etcd cancelled with `reason`, which holds a gRPC status as text."""
    return fault(Code.UNKNOWN, reason, where)


def is_severing(code: Code) -> bool:
    """True where the connection that brought this status should not be used again."""
    return code in _SEVERING


def _kind(code: Code, sentence: str) -> type[ClusterMeshError]:
    for pattern, kind in _BY_SENTENCE:
        if pattern.search(sentence):
            return kind
    return _BY_CODE.get(code, Unavailable)
