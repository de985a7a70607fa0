"""Every error this project raises, sorted by what the caller does next: try again, give up on one input, or give up.

Foreign errors (msgspec, OSError, netlink) are translated into these at the seam where the library is called.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping


class ClusterMeshError(Exception):
    """The one root: `except ClusterMeshError` catches whatever this project can foresee."""


class Unavailable(ClusterMeshError):
    """Something outside is not there now (etcd, a peer, a socket): try again later, keep the last state."""


class Refused(ClusterMeshError):
    """Trying again changes nothing until a person acts: no permission, a missing kernel feature, a taken name."""


class Invalid(ClusterMeshError):
    """One input breaks a rule. It is dropped and shown; everything beside it goes on.

    `field` says where, `value` what was found (shortened), `rule` what holds there.
    """

    def __init__(self, field: str, value: object, rule: str) -> None:
        self.field, self.value, self.rule = field, value, rule
        shown = repr(value)
        super().__init__(f"{field}: {shown if len(shown) <= 120 else shown[:117] + '...'}: {rule}")


class DecodeError(Invalid):
    """Bytes from etcd, a file or the kernel do not hold what their place says. The only error a decoder raises."""


class ApplyError(ClusterMeshError):
    """A target took some of the entries it was given: `failed` maps each key left out to the reason."""

    def __init__(self, failed: Mapping[Hashable, str]) -> None:
        self.failed = dict(failed)
        key, reason = next(iter(self.failed.items()))
        more = f" (and {len(self.failed) - 1} more)" if len(self.failed) > 1 else ""
        super().__init__(f"{key}: {reason}{more}")


def first_of(group: BaseExceptionGroup[BaseException]) -> BaseException:
    """The first error inside `group`, however deep: what is said where there is room for one sentence."""
    first: BaseException = group
    while isinstance(first, BaseExceptionGroup):
        first = first.exceptions[0]
    return first


def sentence(error: BaseException) -> str:
    """`error` as one line for a terminal."""
    if isinstance(error, OSError) and error.strerror:
        said = f"{error.filename}: {error.strerror}" if error.filename else error.strerror
    else:
        said = " ".join(str(error).split()) or type(error).__name__
    return printable(said)


def printable(text: str) -> str:
    """`text` with what a terminal would take as commands spelled out: it may come from a file, or from a peer."""
    return text if text.isprintable() else "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)
