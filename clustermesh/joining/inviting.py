"""The side that invites: answers newcomers who show an invitation, over HTTPS.

GET  /v1/authority   what signed the certificate that is shown here, PEM: who asks knows its fingerprint
POST /v1/join        an `Ask` in JSON; the answer is an `Offer`, or {"problems": [...]} with 400, 403, 408, 409, 413,
                     429 or 503
"""

from __future__ import annotations

import asyncio
import logging
import ssl
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from functools import partial
from typing import Final, ParamSpec, TypeVar

import msgspec
from aiohttp import web
from cryptography import x509
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding
from msgspec.structs import replace
from prometheus_client import Metric
from prometheus_client.registry import Collector

from certs.check import check_leaf, check_server, is_signed_by, read_certificates, read_pair
from certs.errors import CertsError
from clustermesh.errors import ClusterMeshError, DecodeError, Refused, printable
from clustermesh.health import serve_health
from clustermesh.joining import audit, names
from clustermesh.joining.checks import find_problems
from clustermesh.joining.connect import (
    AuthorityReplaced,
    Site,
    begin_reading,
    check_unreplaced,
    disconnect,
    find_declared,
    let_in,
    read_site,
)
from clustermesh.joining.door import TOO_MANY, Door, Hearing, NotHeard, Rates, listen
from clustermesh.joining.invitations import Uninvited, is_revoked, read, use_up
from clustermesh.joining.links import Link, Mode, is_named, known_peers
from clustermesh.joining.member import Member, mesh_name
from clustermesh.joining.objects import Named, Objects
from clustermesh.joining.offers import (
    MOST_BYTES,
    MOST_LETTERS,
    MOST_SENTENCES,
    Ask,
    Offer,
    decode_ask,
    join_again,
    offer,
    offered_link,
)
from clustermesh.joining.probe import probe
from clustermesh.kube.access import load_pair
from clustermesh.mesh.peer_files import PeerFile
from clustermesh.metrics import INVITATIONS, make_registry
from clustermesh.standalone.connect import Outcome

P = ParamSpec("P")
T = TypeVar("T")
_LOG: Final = logging.getLogger(__name__)
_BESIDE: Final = ThreadPoolExecutor(1, "invitations")
_STATUSES: Final = (200, 400, 403, 404, 408, 409, 413, 429, 503)
_AT_ONCE: Final = 4
_HEARD: Final = 32
"""Who is heard at once: so many times `MOST_BYTES`, which the pod CIDRs of thousands of nodes need, are in memory."""
_READING: Final = 5.0
"""Seconds that who asks has to say it."""
_PATIENCE: Final = 60.0
_REREAD: Final = 30.0
"""Seconds after which the certificate is looked for anew, and the log says who was sent away."""


class Problems(ClusterMeshError):
    """Why the two clusters cannot be in one mesh, a sentence each."""

    def __init__(self, found: list[ClusterMeshError]) -> None:
        self.sentences = [str(each) for each in found]
        super().__init__("; ".join(self.sentences))


async def admit(objects: Objects, ask: Ask, said: Offer, key: bytes, now: datetime) -> tuple[bytes, Outcome]:
    """Join the newcomer, as far as that is to be done here; what it is told. The invitation is used up right before
    the first write. Raises ClusterMeshError."""

    def used(data: Mapping[str, bytes]) -> dict[str, bytes]:
        return use_up(data, (ask.id, ask.secret), said.name, key, now.timestamp())

    held = await objects.secret(names.INVITATIONS)
    used(held)
    site = await read_site(objects, "")
    again = (invited := read(held[ask.id])) is not None and invited.again
    link = await _beside(offered_link, site.member, said, now, keep=not again)
    await _check(site, link, held[ask.id], now)
    answer = replace(await _beside(offer, site.member, said.name, now), keep=not again)
    await objects.change_secret(names.INVITATIONS, used)
    outcome = Outcome([], [])
    # In this order: where that is not written, whoever is told so has not been let in, and may use the same token.
    await begin_reading(objects, link, now, outcome, before=site.member.entries)
    try:
        await check_unreplaced(site, join_again(said.name))
    except AuthorityReplaced:
        if not is_named(site.member, said.name):
            await disconnect(site, said.name, None, Mode.BIDIRECTIONAL)
        raise
    await let_in(site, said.name, outcome)
    if is_revoked(await objects.secret(names.INVITATIONS), ask.id):  # meanwhile: whoever did has not seen these writes
        await disconnect(site, said.name, None, Mode.BIDIRECTIONAL)
        raise Refused(f"the invitation was revoked: {site.member.name} has disconnected {said.name} again")
    return msgspec.json.encode(answer), outcome


async def _beside(call: Callable[P, T], *given: P.args, **named: P.kwargs) -> T:
    """What thousands of pod CIDRs or long keys take: beside the event loop, and one after the other, as several at once
    would hold it up."""
    return await asyncio.get_running_loop().run_in_executor(_BESIDE, partial(call, *given, **named))


async def _check(site: Site, link: Link, invitation: bytes, now: datetime) -> None:
    """Raises Problems."""
    own, newcomer = site.member, link.owner
    found = list[ClusterMeshError]()
    invited, held = read(invitation), known_peers(own.entries).get(newcomer.name)
    again = invited is not None and (invited.again or newcomer.name in invited.joined)
    to = invited.to if invited is not None else ""
    if held and again:
        if impostor := await _beside(find_impostor, own, held, newcomer, now):
            found.append(impostor)
    elif held:
        found.append(
            Refused(
                f"{own.name} is connected to a cluster {newcomer.name} already: "
                "`clustermesh invite create --again` there lets it have "
                "new certificates, `clustermesh disconnect` makes room for another one"
            )
        )
    elif (
        not again and newcomer.name != to and not is_one_of_ours(own, newcomer, now) and await _is_named(site, newcomer)
    ):
        found.append(
            Refused(
                f"{own.name} has a cluster {newcomer.name} already, that reads it or is to be read, and nothing tells "
                f"that this is the one: `clustermesh invite create --to {newcomer.name}` there says so, `clustermesh "
                "disconnect` makes room for another one"
            )
        )
    if declared := await find_declared(site.objects, own, newcomer.name):
        found.append(declared)
    # Which prefixes that one allows, it alone knows: it looks at them itself.
    allowed = tuple(each.prefix for each in own.pod_cidrs) if held and again else ()
    links = [link] if own.entrance is None else [link, Link(newcomer, own, own.entrance, allowed)]
    found += await _beside(find_problems, [own, newcomer], links, now)
    if error := await probe(link.entrance, newcomer.name, newcomer.trusted):
        found.append(error)
    if found:
        raise Problems(found)


async def _is_named(site: Site, newcomer: Member) -> bool:
    declared = await site.objects.list(names.declared_path(site.objects.namespace), Named)
    return is_named(site.member, newcomer.name) or newcomer.name in {each.metadata.name for each in declared}


def is_one_of_ours(own: Member, newcomer: Member, now: datetime) -> bool:
    """Whether the key that the newcomer has proved to have is of its server's certificate by this one's authority."""
    where = f"certificate of {newcomer.name}"
    try:
        leaf = read_certificates(newcomer.server.cert, where)[0]
        check_server(leaf, mesh_name(newcomer.name), where)
        check_leaf(leaf, read_certificates(own.trusted, names.SERVER_CERT), now, where)
    except CertsError:
        return False
    return True


def find_impostor(own: Member, held: PeerFile, newcomer: Member, now: datetime) -> Refused | None:
    """Refused where who comes again is not the cluster that is connected: the key that it has proved to have is of no
    certificate for that one's server (its clients have others) that the authority known of it has signed, or one that
    this has signed, as while it is being replaced."""
    where = f"certificate of {held.name}"
    try:
        known = list(read_certificates(own.entries.get(held.ca.name, b"") if held.ca is not None else b"", where))
        leaf, *chain = read_certificates(newcomer.server.cert, where)
        check_server(leaf, mesh_name(held.name), where)
        known += [each for each in chain if _is_vouched_for(each, known, now)]
        check_leaf(leaf, known, now, where)
    except CertsError as e:
        return Refused(f"{own.name} knows {held.name} by another authority, or not by this certificate: {e}")
    return None


def _is_vouched_for(signer: x509.Certificate, known: list[x509.Certificate], now: datetime) -> bool:
    try:  # that it is an authority itself is seen where a leaf is its
        check_leaf(signer, known, now, "authority")
    except CertsError:
        return False
    return True


class Answers(Collector):
    """How many were answered, by status: 0 is said of none, so that a rate has a beginning."""

    def __init__(self) -> None:
        self._counts = dict.fromkeys(_STATUSES, 0)

    def count(self, status: int) -> None:
        self._counts[status] = self._counts.get(status, 0) + 1

    def collect(self) -> Iterator[Metric]:
        counts: dict[Sequence[object], float] = {(status,): number for status, number in self._counts.items()}
        yield INVITATIONS["clustermesh_invitations_answers_total"].family(counts)


class Server:
    """Answers at `listen` until it is cancelled, and says at `metrics`, "" for nowhere, how many."""

    def __init__(self, objects: Objects, listen: str, metrics: str = "") -> None:
        self._objects, self._listen, self._rates = objects, listen, Rates()
        self._metrics, self._answers = metrics, Answers()
        self._hearing, self._busy = Hearing(_HEARD, _READING), asyncio.Semaphore(_AT_ONCE)
        self._tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self._tls.minimum_version = ssl.TLSVersion.TLSv1_3
        self._shown, self._authority, self._sent_away = b"", b"", audit.SentAway()

    async def run(self) -> None:
        """Raises Refused where there is no certificate, or no port for metrics, Unavailable where it cannot listen."""
        await self._take_certificate()
        listeners = await listen(self._listen)
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(serve_health(self._metrics, make_registry(self._answers), lambda: (True, "ok")))
            tasks.create_task(Door(self._route, MOST_BYTES).open(listeners, self._tls))
            _LOG.info("invitations are answered at %s", self._listen)
            while True:
                await asyncio.sleep(_REREAD)
                if said := self._sent_away.tell():
                    _LOG.warning("%s", printable(said))
                try:
                    await self._take_certificate()
                except ClusterMeshError as e:
                    _LOG.warning("the certificate is not renewed: %s", e)

    async def _route(self, request: web.BaseRequest) -> web.Response:
        match request.method, request.path:
            case "GET", "/v1/authority":
                return web.Response(body=self._authority, content_type="application/x-pem-file")
            case "POST", "/v1/join":
                answer = await self._join(request)
            case _:
                answer = self._send_away(request, 404, "there is GET /v1/authority and POST /v1/join")
        self._answers.count(answer.status)
        return answer

    def _send_away(self, request: web.BaseRequest, status: int, sentence: str) -> web.Response:
        self._sent_away.note(status, request.remote or "somebody who has gone")
        return _problems(status, [sentence])

    async def _take_certificate(self) -> None:
        found = await self._objects.secret(names.SERVER_CERT)
        cert, key, trusted = (found.get(file, b"") for file in ("tls.crt", "tls.key", "ca.crt"))
        if not trusted:
            trusted = (await self._objects.secret(names.AUTHORITY)).get("ca.crt", b"")
        self._authority = _authority(cert, trusted).public_bytes(Encoding.PEM)
        if cert == self._shown:
            return
        try:
            read_pair(cert, key, f"Secret {names.SERVER_CERT}")
        except CertsError as e:
            raise Refused(str(e)) from e
        load_pair(self._tls, cert.decode(), key.decode())
        self._shown = cert

    async def _join(self, request: web.BaseRequest) -> web.Response:
        if not self._rates.admits(request.remote or "", time.monotonic()):
            return self._send_away(request, 429, TOO_MANY)
        try:
            async with self._hearing.hear(request) as data, asyncio.timeout(_PATIENCE), self._busy:
                return await self._answer(data, request.remote)
        except NotHeard as e:
            return self._send_away(request, e.status, str(e))
        except TimeoutError:
            return self._send_away(request, 503, "the inviting cluster has not answered in time: try again")

    async def _answer(self, data: bytes, source: str | None) -> web.Response:
        name = "somebody"
        try:
            ask, said, key = await _beside(decode_ask, data)
            name = said.name[:40]
            answer, outcome = await admit(self._objects, ask, said, key, datetime.now(UTC))
        except (DecodeError, Uninvited) as e:  # who has no invitation's secret writes nothing into the API
            _LOG.warning("JoinRefused: %s", printable(f"{name!r} from {source}: {e}"))
            return _problems(400 if isinstance(e, DecodeError) else 403, [str(e)])
        except ClusterMeshError as e:
            await audit.record(self._objects, "JoinRefused", f"{name!r} from {source}: {e}", warning=True)
            status = {Problems: 409, Refused: 403}.get(type(e), 503)
            return _problems(status, e.sentences if isinstance(e, Problems) else [str(e)])
        done = "; ".join([*outcome.done, *outcome.warnings]) or "nothing changed"
        await audit.record(self._objects, "ClusterJoined", f"{name} by the invitation {ask.id}: {done}")
        return web.Response(body=answer, content_type="application/json")


def _problems(status: int, sentences: list[str]) -> web.Response:
    said = [each[:MOST_LETTERS] for each in sentences[:MOST_SENTENCES]]
    if len(sentences) > len(said):
        said[-1] = f"{len(sentences) - len(said) + 1} problems more"
    body = msgspec.json.encode({"problems": said})
    return web.Response(status=status, body=body, content_type="application/json")


def fingerprint(cert: bytes, trusted: bytes) -> str:
    """Of which of the authorities `trusted` signed the certificate that is shown: SHA-256, in hex. Raises Refused."""
    return _authority(cert, trusted).fingerprint(SHA256()).hex()


def _authority(cert: bytes, trusted: bytes) -> x509.Certificate:
    where = f"Secret {names.SERVER_CERT}"
    if not cert:
        raise Refused(
            f"there is no {where}, by which newcomers know this cluster: has the certificate job run? With an etcd of "
            f"your own (etcd.enabled): put its authority, ca.crt and ca.key, into the Secret {names.AUTHORITY} and run "
            "`clustermesh certs secrets`, or use `clustermesh connect`"
        )
    try:
        shown, known = read_certificates(cert, where)[0], read_certificates(trusted, f"{where}: ca.crt")
    except CertsError as e:
        raise Refused(str(e)) from e
    for each in known:
        if is_signed_by(shown, each):
            return each
    raise Refused(f"{where}: tls.crt is signed by none of the authorities in ca.crt: issue it again")
