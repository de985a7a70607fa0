"""Mutual TLS towards etcd: the files, read anew for every connection, and the reason when a handshake fails.

gRPC says little of a failed handshake, and under TLS 1.3 nothing at all of a server that rejects our certificate: the
connection just ends. So a connection that never worked is tried once more by `explain`, with Python's own TLS.
"""

from __future__ import annotations

import asyncio
import ssl
from contextlib import suppress
from pathlib import Path
from typing import Any, Final

import grpc
from msgspec import Struct

from clustermesh.errors import ClusterMeshError, Refused, Unavailable
from clustermesh.store.endpoint import Endpoint

# RFC 9113, 3.4: what a client says first, and an empty SETTINGS frame. A server that answers took our certificate.
_HTTP2_PREFACE: Final = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + b"\0\0\0\4\0\0\0\0\0"


class Tls(Struct, frozen=True):
    """PEM files: the CA that the other side's certificate must come from, our certificate (with its chain), our key.

    Who shows no certificate has neither of the last two.
    """

    ca: Path
    cert: Path | None = None
    key: Path | None = None


def credentials(tls: Tls) -> Any:
    """What gRPC takes for `tls`, from the files as they are now. Refused, naming the file, where they are no good."""
    context(tls)  # gRPC itself would only log a bad file and fail to connect
    try:
        key, cert = (None if path is None else path.read_bytes() for path in (tls.key, tls.cert))
        return grpc.ssl_channel_credentials(tls.ca.read_bytes(), key, cert)
    except OSError as e:
        raise Refused(f"certificate file {e.filename}: {e.strerror}") from e


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


async def explain(endpoint: Endpoint, address: str, tls: Tls | None, patience: float) -> ClusterMeshError | None:
    """Why no connection to `endpoint` (dialled at `address`) can be made, or None. Takes up to `patience` seconds."""
    try:
        async with asyncio.timeout(patience):
            await _shake_hands(endpoint, address, tls)
    except TimeoutError:
        return Unavailable(f"etcd at {endpoint}: no connection within {patience:g} s")
    except ssl.SSLCertVerificationError as e:
        return Refused(f"etcd at {endpoint}: its certificate is not accepted: {e.verify_message}")
    except ssl.SSLError as e:
        if "ALERT" in (e.reason or ""):
            return Refused(f"etcd at {endpoint} does not accept our certificate: {_reason(e)}")
        return Unavailable(f"etcd at {endpoint}: TLS handshake failed: {_reason(e)}")
    except OSError as e:
        return Unavailable(f"etcd at {endpoint}: {e.strerror or e}")
    return None


async def _shake_hands(endpoint: Endpoint, address: str, tls: Tls | None) -> None:
    secured = None if tls is None else context(tls)
    name = None if tls is None else endpoint.host
    reader, writer = await asyncio.open_connection(address, endpoint.port, ssl=secured, server_hostname=name)
    try:
        writer.write(_HTTP2_PREFACE)
        if not await reader.read(1):
            raise ConnectionResetError(0, "connection closed by the server")
    finally:
        writer.close()
        with suppress(OSError, TimeoutError):
            await writer.wait_closed()


def _reason(error: ssl.SSLError) -> str:
    return (error.reason or str(error)).lower().replace("_", " ")
