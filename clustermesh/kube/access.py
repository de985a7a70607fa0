"""How to reach an API server: where it is, who it has to be, and what we show it, as newest credentials say."""

from __future__ import annotations

import asyncio
import os
import ssl
import time
from collections.abc import Awaitable, Callable
from contextlib import suppress
from pathlib import Path
from typing import Final
from urllib.parse import urlsplit

from msgspec import Struct

from clustermesh.errors import ClusterMeshError, Refused, Unavailable

_EARLY: Final = 30.0
"""Seconds before they expire that credentials are asked for again."""


class Grant(Struct, frozen=True, kw_only=True):
    """What was read last. `header` is the Authorization to send, "" for none; `expires` is Unix time, 0 for never.
    `impersonate` are the headers that say as whom everything is done, if not as who we are.

    `files` are those it was read from: one that has changed makes it stale.
    """

    server: str
    tls: ssl.SSLContext | None = None
    server_name: str = ""
    proxy: str = ""
    header: str = ""
    impersonate: tuple[tuple[str, str], ...] = ()
    expires: float = 0.0
    files: tuple[Path, ...] = ()

    @property
    def headers(self) -> list[tuple[str, str]]:
        """What each request shows."""
        return [*([("Authorization", self.header)] if self.header else []), *self.impersonate]


class Access:
    """Credentials that are read with `read` when there are none, when they expire, or when a file of theirs changes."""

    def __init__(self, read: Callable[[], Awaitable[Grant]], clock: Callable[[], float] = time.time) -> None:
        self._read, self._clock = read, clock
        self._grant: Grant | None = None
        self._marks: tuple[object, ...] = ()
        self._lock = asyncio.Lock()

    async def grant(self, refused: Grant | None = None) -> Grant:
        """The newest; one that the server `refused` is read again, once for all who hold it. Raises as `read` does,
        Unavailable for its OSError, and Refused for what cannot be used."""
        async with self._lock:
            if self._grant is None or self._grant is refused or self._is_stale(self._grant):
                try:
                    self._grant = _checked(await self._read())
                except OSError as e:  # no process can be started, or no file opened
                    raise Unavailable(f"credentials of the Kubernetes API: {e.strerror or e}") from e
                self._marks = _marks(self._grant.files)
            return self._grant

    async def prefetch(self) -> None:
        """Read them now: whoever asks first then waits less. What goes wrong, who asks is told."""
        with suppress(ClusterMeshError):
            await self.grant()

    def _is_stale(self, grant: Grant) -> bool:
        expired = grant.expires and self._clock() > grant.expires - _EARLY
        return bool(expired) or self._marks != _marks(grant.files)


def _checked(grant: Grant) -> Grant:
    """What would otherwise be found out inside the library, with each request anew, and in its words."""
    if not _is_url(grant.server):
        raise Refused(
            f"server of the Kubernetes API: {grant.server[:120]!r}: must be https://HOST or https://HOST:PORT"
        )
    if grant.proxy and not _is_url(grant.proxy):  # which may have a password
        raise Refused("proxy of the Kubernetes API: must be http://HOST:PORT")
    if not grant.header.isprintable():
        raise Refused("token of the Kubernetes API: must be one line without control characters")
    if not all(value.isprintable() and value.isascii() for _, value in grant.impersonate):
        raise Refused("impersonation in the kubeconfig (as, as-groups, as-uid): must be printable ASCII")
    if grant.header and not grant.header.partition(" ")[2]:
        raise Refused("token of the Kubernetes API: is empty")
    return grant


def _is_url(text: str) -> bool:
    try:
        url = urlsplit(text)
        _ = url.port, (url.hostname or "").encode("idna")
    except ValueError:  # UnicodeError is one
        return False
    return url.scheme in ("http", "https") and bool(url.hostname) and " " not in text and text.isprintable()


def tls_context(ca: str, cert: str = "", key: str = "", *, verify: bool = True) -> ssl.SSLContext:
    """A client's context from PEM texts; without `ca` the system's. Refused where they are no good."""
    try:
        made = ssl.create_default_context(cadata=ca or None)
        if not verify:
            made.check_hostname, made.verify_mode = False, ssl.CERT_NONE
        if cert:
            load_pair(made, cert, key)
    except (ssl.SSLError, ValueError) as e:
        raise Refused(f"certificates of the Kubernetes API: {e}") from e
    return made


def load_pair(made: ssl.SSLContext, cert: str, key: str) -> None:
    """The pair by way of memory: Python reads it from files only, and a private key has no business in one of ours."""
    memory = os.memfd_create("pair", os.MFD_CLOEXEC)
    try:
        os.write(memory, f"{key}\n{cert}".encode())
        made.load_cert_chain(f"/proc/self/fd/{memory}")
    finally:
        os.close(memory)


def _marks(files: tuple[Path, ...]) -> tuple[object, ...]:
    return tuple(_mark(file) for file in files)


def _mark(file: Path) -> object:
    with suppress(OSError):
        found = file.stat()
        return found.st_ino, found.st_mtime_ns, found.st_size
    return None
