"""The side that invites: answers newcomers who show an invitation, over HTTPS.

POST /v1/join   an `Ask` in JSON; the answer is an `Offer`, or {"problems": [...]} with 400, 403, 409, 429 or 503
"""

from __future__ import annotations

import asyncio
import logging
import ssl
import time
from datetime import UTC, datetime
from typing import Final

import msgspec
from aiohttp import web

from certs.check import read_certificates, read_pair
from certs.errors import CertsError
from clustermesh.errors import ClusterMeshError, DecodeError, Refused, Unavailable
from clustermesh.joining import audit, names
from clustermesh.joining.checks import find_problems
from clustermesh.joining.connect import Site, begin_reading, let_in, read_site
from clustermesh.joining.invitations import read, take
from clustermesh.joining.links import Link, known_peers
from clustermesh.joining.member import Member
from clustermesh.joining.objects import Objects
from clustermesh.joining.offers import MOST_BYTES, Ask, decode_ask, offer, taken
from clustermesh.joining.probe import probe
from clustermesh.kube.access import load_pair
from clustermesh.listen import parse_address
from clustermesh.mesh.peer_files import PeerFile
from clustermesh.standalone.connect import Outcome

_LOG: Final = logging.getLogger(__name__)
_PER_SECOND, _BURST = 0.5, 10
_AT_ONCE: Final = 4
_PATIENCE: Final = 60.0
_REREAD: Final = 30.0
"""Seconds after which the certificate is looked for anew."""


class Rate:
    """So many at once, and so many a second after that: a token bucket."""

    def __init__(self, per_second: float = _PER_SECOND, burst: int = _BURST) -> None:
        self._per_second, self._burst, self._level, self._at = per_second, burst, float(burst), 0.0

    def admits(self, now: float) -> bool:
        """Whether one more is admitted at `now`, which never goes back."""
        self._level = min(self._burst, self._level + (now - self._at) * self._per_second)
        self._at = now
        if self._level < 1:
            return False
        self._level -= 1
        return True


class Problems(ClusterMeshError):
    """Why the two clusters cannot be in one mesh, a sentence each."""

    def __init__(self, found: list[ClusterMeshError]) -> None:
        self.sentences = [str(each) for each in found]
        super().__init__("; ".join(self.sentences))


async def admit(objects: Objects, ask: Ask, now: datetime) -> tuple[bytes, Outcome]:
    """Join the newcomer, as far as that is to be done here; what it is told. The invitation is used up right before
    the first write. Raises ClusterMeshError."""
    said, authority = ask.offer, ask.offer.signer.encode()
    held = await objects.secret(names.INVITATIONS)
    take(held, (ask.id, ask.secret), said.name, authority, now.timestamp())
    site = await read_site(objects, "")
    link = taken(site.member, said)
    await _check(site, link, held[ask.id], now)
    answer = offer(site.member, said.name, now)
    await objects.change_secret(
        names.INVITATIONS,
        lambda data: take(data, (ask.id, ask.secret), said.name, authority, now.timestamp()),
    )
    outcome = Outcome([], [])
    await let_in(site, said.name, outcome)
    await begin_reading(objects, link, now, outcome)
    return msgspec.json.encode(answer), outcome


async def _check(site: Site, link: Link, invitation: bytes, now: datetime) -> None:
    """Raises Problems."""
    own, newcomer = site.member, link.owner
    found = list[ClusterMeshError]()
    before, held = read(invitation), known_peers(own.entries).get(newcomer.name)
    if before and held and before.again:
        found += await _another(own, held, link)
    elif held and not (before and newcomer.name in before.joined):
        found.append(
            Refused(
                f"{own.name} is connected to a cluster {newcomer.name} already: "
                "`clustermesh invite create --again` there lets it have "
                "new certificates, `clustermesh disconnect` makes room for another one"
            )
        )
    links = [link] if own.entrance is None else [link, Link(newcomer, own, own.entrance)]
    found += find_problems([own, newcomer], links, now)
    if error := await probe(link.entrance, newcomer.name, newcomer.trusted):
        found.append(error)
    if found:
        raise Problems(found)


async def _another(own: Member, held: PeerFile, link: Link) -> list[ClusterMeshError]:
    """Why who comes again is not the cluster that is connected: what it shows, that one's authority has signed."""
    trusted = own.entries.get(held.ca.name, b"") if held.ca is not None else b""
    error = await probe(link.entrance, held.name, trusted)
    return (
        [Refused(f"{own.name} knows {held.name} by another authority: {error}")] if isinstance(error, Refused) else []
    )


class Server:
    """Answers at `listen` until it is cancelled."""

    def __init__(self, objects: Objects, listen: str) -> None:
        self._objects, self._listen, self._rate = objects, listen, Rate()
        self._busy = asyncio.Semaphore(_AT_ONCE)
        self._tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self._tls.minimum_version = ssl.TLSVersion.TLSv1_3
        self._shown = b""

    async def run(self) -> None:
        """Raises Refused where there is no certificate, Unavailable where it cannot listen."""
        await self._take_certificate()
        app = web.Application(client_max_size=MOST_BYTES)
        app.router.add_post("/v1/join", self._join)
        runner = web.AppRunner(app, access_log=None)
        await runner.setup()
        try:
            host, port = parse_address(self._listen)
            await web.TCPSite(runner, host, port, ssl_context=self._tls).start()
            _LOG.info("invitations are answered at %s", self._listen)
            while True:
                await asyncio.sleep(_REREAD)
                try:
                    await self._take_certificate()
                except ClusterMeshError as e:
                    _LOG.warning("the certificate is not renewed: %s", e)
        except OSError as e:
            raise Unavailable(f"{self._listen}: {e.strerror or e}") from e
        finally:
            await runner.cleanup()

    async def _take_certificate(self) -> None:
        found = await self._objects.secret(names.SERVER_CERT)
        cert, key = found.get("tls.crt", b""), found.get("tls.key", b"")
        if cert == self._shown:
            return
        try:
            read_pair(cert, key, f"Secret {names.SERVER_CERT}")
        except CertsError as e:
            raise Refused(str(e)) from e
        load_pair(self._tls, cert.decode(), key.decode())
        self._shown = cert

    async def _join(self, request: web.Request) -> web.Response:
        if not self._rate.admits(time.monotonic()):
            return _problems(429, ["too many try to join: try again in a minute"])
        name = "somebody"
        try:
            async with self._busy, asyncio.timeout(_PATIENCE):
                ask = decode_ask(await request.read())
                name = ask.offer.name[:40]
                answer, outcome = await admit(self._objects, ask, datetime.now(UTC))
        except TimeoutError:
            return _problems(503, ["the inviting cluster has not answered in time: try again"])
        except ClusterMeshError as e:
            await audit.record(self._objects, "JoinRefused", f"{name!r} from {request.remote}: {e}", warning=True)
            status = {Problems: 409, DecodeError: 400, Refused: 403}.get(type(e), 503)
            return _problems(status, e.sentences if isinstance(e, Problems) else [str(e)])
        done = "; ".join([*outcome.done, *outcome.warnings]) or "nothing changed"
        await audit.record(self._objects, "ClusterJoined", f"{name} by the invitation {ask.id}: {done}")
        return web.Response(body=answer, content_type="application/json")


def _problems(status: int, sentences: list[str]) -> web.Response:
    body = msgspec.json.encode({"problems": sentences})
    return web.Response(status=status, body=body, content_type="application/json")


def fingerprint(cert: bytes) -> str:
    """Of the certificate that is shown: SHA-256 of it, in hex. Raises Refused."""
    try:
        from cryptography.hazmat.primitives import hashes

        return read_certificates(cert, f"Secret {names.SERVER_CERT}")[0].fingerprint(hashes.SHA256()).hex()
    except CertsError as e:
        raise Refused(str(e)) from e
