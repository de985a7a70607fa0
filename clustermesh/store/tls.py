"""Mutual TLS towards etcd: the files, read anew for every connection, and the reason when a connection ends."""

from __future__ import annotations

import re
import ssl
from collections.abc import Callable
from contextlib import suppress
from errno import EADDRNOTAVAIL, ECONNREFUSED, EHOSTUNREACH, ENETUNREACH
from pathlib import Path
from typing import Final

from msgspec import Struct

from clustermesh.errors import ClusterMeshError, Refused, Unavailable
from clustermesh.store.endpoint import Endpoint
from clustermesh.store.faults import NobodyListens

_RECORD: Final = 1 << 14  # as much as one has
_ABOUT_US: Final = ("CERTIFICATE", "UNKNOWN_CA", "ACCESS_DENIED", "DECRYPT_ERROR")  # alerts (RFC 8446, 6.2)
_NO_WAY: Final = frozenset({EADDRNOTAVAIL, EHOSTUNREACH, ENETUNREACH})  # as to IPv6 where there is none


class Tls(Struct, frozen=True):
    """PEM files: the CA that the other side's certificate must come from, our certificate (with its chain), our key.

    Who shows no certificate has neither of the last two.
    """

    ca: Path
    cert: Path | None = None
    key: Path | None = None


def context(tls: Tls) -> ssl.SSLContext:
    """A client's context for `tls`. Refused, naming the file, where the files cannot be used."""
    made = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)  # verifies, by our CA alone; to read the system's takes 30 ms
    made.set_alpn_protocols(["h2"])
    for path in (tls.ca, tls.cert, tls.key):
        if path is not None:
            _check_readable(path)
    try:
        made.load_verify_locations(cafile=str(tls.ca))
    except ssl.SSLError as e:
        raise Refused(f"certificate file {tls.ca}: holds no CA certificate in PEM form") from e
    if tls.cert is None:
        return made
    try:
        made.load_cert_chain(str(tls.cert), str(tls.key))
    except ssl.SSLError as e:
        raise Refused(f"certificate file {tls.cert} and key {tls.key}: {_reason(e)}") from e
    return made


def _check_readable(path: Path) -> None:
    try:
        with path.open("rb"):
            pass
    except OSError as e:
        raise Refused(f"certificate file {path}: {e.strerror}") from e


def explain(endpoint: Endpoint, error: Exception) -> ClusterMeshError:
    """What a connection to `endpoint` ended with, as ours."""
    if isinstance(error, ssl.SSLCertVerificationError):
        return Refused(f"etcd at {endpoint}: its certificate is not accepted: {error.verify_message}")
    if isinstance(error, ssl.SSLError):
        reason = error.reason or ""
        if "ALERT" in reason and any(each in reason for each in _ABOUT_US):
            return Refused(f"etcd at {endpoint} does not accept our certificate: {_reason(error)}")
        return Unavailable(f"etcd at {endpoint}: TLS failed: {_reason(error)}")
    if isinstance(error, OSError):
        kind = NobodyListens if _is_refused(error) else Unavailable
        return kind(f"etcd at {endpoint}: {error.strerror or error}")
    return Unavailable(f"etcd at {endpoint}: {error}")


class Tunnel:
    """TLS over bytes that somebody else carries. asyncio's own keeps 256 KiB for each connection."""

    def __init__(self, tls: Tls, host: str) -> None:
        self._incoming, self._outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        self._session = context(tls).wrap_bio(self._incoming, self._outgoing, server_hostname=host)
        self.shaken = self.ended = False

    def begin(self) -> bytes:
        """What to send first."""
        self._shake_hands()
        return self.take()

    def receive(self, data: bytes) -> bytes:
        """What `data` says. Raises ssl.SSLError. Once the server has `ended` it, nothing more is to be given."""
        self._incoming.write(data)
        if not self.shaken:
            self._shake_hands()
        said = []
        with suppress(ssl.SSLWantReadError):
            while self.shaken and not self.ended:
                piece = self._session.read(_RECORD)
                self.ended = not piece  # nothing behind that is ever read
                said.append(piece)
        return b"".join(said)

    def wrap(self, take: Callable[[], bytes]) -> bytes:
        """What is to be sent now; once hands are shaken, what `take` gives is part of it. Raises ssl.SSLError."""
        if self.shaken and (data := take()):
            self._session.write(data)
        return self.take()

    def take(self) -> bytes:
        """What is to be sent by now."""
        return self._outgoing.read()

    def _shake_hands(self) -> None:
        with suppress(ssl.SSLWantReadError):
            self._session.do_handshake()
            self.shaken = True


def _is_refused(error: OSError) -> bool:
    """Of a name with several addresses asyncio tells only in words what became of each (`all_errors` is Python 3.12's):
    "Multiple exceptions: [Errno 111] ..., [Errno 101] ..."."""
    became = {error.errno} if error.errno else set(map(int, re.findall(r"\[Errno (\d+)\]", str(error))))
    return ECONNREFUSED in became and became <= {ECONNREFUSED} | _NO_WAY


def _reason(error: ssl.SSLError) -> str:
    return (error.reason or str(error)).lower().replace("_", " ")
