"""Whether the etcd of another cluster answers, as seen from here, and shows what it must."""

from __future__ import annotations

import asyncio
import ssl
from typing import Final

from clustermesh.errors import ClusterMeshError, Refused, Unavailable
from clustermesh.joining.member import Entrance

_PATIENCE: Final = 3.0


async def probe(entrance: Entrance, cluster: str, authority: bytes) -> ClusterMeshError | None:
    """None where one of its addresses answers with a certificate of `authority`. Unavailable: none is reached, as the
    clusters may all the same. Refused: what answers is not that cluster.
    """
    try:
        tls = ssl.create_default_context(cadata=authority.decode("ascii", "replace"))
    except (ssl.SSLError, ValueError) as e:
        return Refused(f"{cluster} has no usable certificate authority: {e}")
    found = await asyncio.gather(*(_try(host, entrance, cluster, tls) for host in entrance.hosts))
    if None in found:
        return None
    return next((error for error in found if isinstance(error, Refused)), found[0])


async def _try(host: str, entrance: Entrance, cluster: str, tls: ssl.SSLContext) -> ClusterMeshError | None:
    name, port = entrance.name(host, cluster), entrance.port
    place = f"{cluster} at {host} port {port}"
    try:
        async with asyncio.timeout(_PATIENCE):
            _, writer = await asyncio.open_connection(host, port, ssl=tls, server_hostname=name)
    except ssl.SSLCertVerificationError as e:
        return Refused(
            f"{place} shows a certificate that is not {cluster}'s ({e.verify_message}): correct the address, or issue "
            "the server's certificate again"
        )
    except TimeoutError:
        return _unreached(place, "no answer")
    except (OSError, ssl.SSLError) as e:
        return _unreached(place, getattr(e, "strerror", None) or str(e))
    # Without a goodbye: the etcd refuses who shows no certificate, and where OpenSSL reads that as it closes, the error
    # stays in the queue of its thread, and is what the next read on any other connection ends with.
    writer.transport.abort()
    return None


def _unreached(place: str, why: str) -> Unavailable:
    return Unavailable(
        f"{place} is not reached from here: {why}: does its API server run, and does the address lead there? Where "
        "only the clusters reach each other, add --allow-unreachable"
    )
