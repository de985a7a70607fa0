"""Finds out the facts: every peer at the same time, up to _AT_ONCE, and no step of any without a time limit."""

from __future__ import annotations

import asyncio
import email.utils
import ipaddress
import os
import socket
import ssl
import time
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any, Final, TypeVar

from cryptography import x509
from msgspec.structs import replace

from certs.check import facts as facts_of
from certs.check import read_certificates
from certs.errors import CertsError
from clustermesh.errors import ClusterMeshError, Invalid, Refused, sentence
from clustermesh.mesh.peer_files import PeerFile, PeersFolder
from clustermesh.mesh.shared_clients import client_of
from clustermesh.store.channel import try_out
from clustermesh.store.client import EtcdClient, Tls
from clustermesh.store.endpoint import Endpoint, parse
from clustermesh.troubleshoot.checks import COUNTED
from clustermesh.troubleshoot.facts import CertificateFacts, EndpointFacts, EtcdFacts, Facts
from clustermesh.wire import cluster_config, keys
from clustermesh.yaml_file import read_bytes

T = TypeVar("T")
_Seen = tuple[CertificateFacts | None, float | None]
_AT_ONCE: Final = 128  # peers
_STEPS: Final = 6  # times the patience that all that one peer's etcd is asked may take
_ASK: Final = b"GET /version HTTP/1.1\r\nHost: etcd\r\nConnection: close\r\n\r\n"
_HEAD: Final = 8192  # bytes of an answer
_CONFIGS: Final = 1 << 20  # bytes of the configurations of 511 clusters, at the very most
_ADDRESSES: Final = 8  # of one host that are tried, all at once


async def gather(folder: PeersFolder, names: Iterable[str], patience: float) -> list[Facts]:
    """The facts of each of `names`; `patience` is how many seconds each step may take. Raises nothing foreseen."""
    places = asyncio.Semaphore(_AT_ONCE)
    resolvers = ThreadPoolExecutor(_AT_ONCE, "dns")  # asyncio's own are so few that names would wait for each other

    async def one(name: str) -> Facts:
        async with places:
            problems = tuple(str(each.error) for each in folder.problems if each.name == name)
            known = Facts(name=name, now=time.time(), file=folder.peers.get(name), problems=problems)
            return known if known.file is None else await _look(known, known.file, resolvers, patience)

    try:
        return await asyncio.gather(*map(one, names))
    finally:
        resolvers.shutdown(wait=False)  # a name server that says nothing holds up nobody's answer


async def cached_counts(client: EtcdClient, own: str, names: Iterable[str]) -> dict[str, dict[str, int]]:
    """How many keys a mirror holds of each of `names` in the etcd of `own`; empty where there is no mirror.

    Raises Unavailable, Refused.
    """
    configs = await client.range(keys.CLUSTER_CONFIGS, most_bytes=_CONFIGS)
    if all(kv.key == keys.cluster_config_key(own) for kv in configs.kvs):
        return {}
    return {name: await _count(client, name, cached=True) for name in names}


async def _look(known: Facts, file: PeerFile, resolvers: Executor, patience: float) -> Facts:
    tls = file.tls
    own, own_error = _certificate(file.cert)
    found = await asyncio.gather(*(_probe(parse(url), file, tls, resolvers, patience) for url in file.endpoints))
    known = replace(
        known, endpoints=tuple(found), own=own, own_error=own_error, trusted=_authorities(file.ca), now=time.time()
    )
    works = [each for each in found if not (each.dns_error or each.tcp_error or each.tls_error)]
    if not works:
        return known
    return replace(known, etcd=await _ask_etcd(file, works, patience))


async def _probe(
    endpoint: Endpoint, file: PeerFile, tls: Tls | None, resolvers: Executor, patience: float
) -> EndpointFacts:
    known = EndpointFacts(url=str(endpoint), host=endpoint.host)
    try:
        addresses = file.host_aliases.get(endpoint.host) or await _resolve(endpoint.host, resolvers, patience)
    except (OSError, UnicodeError) as e:
        return replace(known, dns_error=f"{endpoint.host} has no address: {_reason(e, patience)}")
    # An agent takes the aliases in turn, and whichever works of what DNS tells.
    tried = addresses if endpoint.host in file.host_aliases else addresses[:_ADDRESSES]
    found = await asyncio.gather(*(_try(known, endpoint, each, tls, patience) for each in tried))
    working = [each for each in found if not (each.tcp_error or each.tls_error)]
    best = (working or [each for each in found if not each.tcp_error] or found)[0]
    if best.tcp_error:
        return replace(best, addresses=tuple(tried), tcp_error=f"{endpoint}: {_named(found)}")
    answering = tuple(each.addresses[0] for each in working)
    dead = _named([each for each in found if each.tcp_error or (each.tls_error and working)])
    return replace(best, addresses=tuple(tried), answering=answering, dead=dead)


async def _try(
    known: EndpointFacts, endpoint: Endpoint, address: str, tls: Tls | None, patience: float
) -> EndpointFacts:
    known = replace(known, addresses=(address,))
    if error := await _connects(address, endpoint.port, patience):
        return replace(known, tcp_error=error)
    return await _secured(known, endpoint, address, tls if endpoint.secure else None, patience)


def _named(dead: Sequence[EndpointFacts]) -> str:
    return ", ".join(f"{each.tcp_error or each.tls_error} ({each.addresses[0]})" for each in dead)


async def _connects(address: str, port: int, patience: float) -> str:
    """Why nothing takes a connection there, "" where something does."""
    try:
        async with asyncio.timeout(patience):
            _, writer = await asyncio.open_connection(address, port)
    except OSError as e:
        return _reason(e, patience)
    writer.close()
    return ""


async def _secured(
    known: EndpointFacts, endpoint: Endpoint, address: str, tls: Tls | None, patience: float
) -> EndpointFacts:
    error, (shown, ahead) = await asyncio.gather(
        _explained(endpoint, address, tls, patience), _look_at(endpoint, address, tls, patience)
    )
    return replace(known, tls_error=error, shown=shown, ahead=ahead)


async def _explained(endpoint: Endpoint, address: str, tls: Tls | None, patience: float) -> str:
    """Why no secure connection can be made, our own files included, or ""."""
    if tls is None:
        return ""
    try:
        error = await try_out(endpoint, address, tls, patience)
    except ClusterMeshError as e:
        error = e
    return sentence(error) if error else ""


async def _look_at(endpoint: Endpoint, address: str, tls: Tls | None, patience: float) -> _Seen:
    with suppress(OSError, ClusterMeshError, CertsError, ValueError, OverflowError):
        async with asyncio.timeout(patience):
            return await _greet(endpoint, address, tls)
    return None, None


async def _greet(endpoint: Endpoint, address: str, tls: Tls | None) -> _Seen:
    """The certificate that the other side shows, whoever it is, and how far its clock is ahead."""
    context = None if tls is None else _credulous(tls)
    reader, writer = await asyncio.open_connection(
        address, endpoint.port, ssl=context, server_hostname=None if context is None else endpoint.host
    )
    try:
        shown = _from_der(writer.get_extra_info("ssl_object"))
        with suppress(OSError, ValueError, asyncio.IncompleteReadError, asyncio.LimitOverrunError):
            writer.write(_ASK)
            head = await reader.readuntil(b"\r\n\r\n")
            return shown, _ahead(head[:_HEAD], time.time())
        return shown, None
    finally:
        writer.transport.abort()


def _credulous(tls: Tls) -> ssl.SSLContext:
    """Takes any certificate, as it is only looked at: nothing is sent but a question that anyone may ask."""
    made = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    made.check_hostname, made.verify_mode = False, ssl.CERT_NONE
    if tls.cert is not None:
        made.load_cert_chain(str(tls.cert), str(tls.key))
    return made


def _from_der(secured: Any) -> CertificateFacts | None:
    der = None if secured is None else secured.getpeercert(binary_form=True)
    return None if der is None else _told(x509.load_der_x509_certificate(der))


def _told(certificate: x509.Certificate) -> CertificateFacts:
    found = facts_of(certificate)
    return CertificateFacts(found.common_name, found.issuer, found.not_after.timestamp(), found.hosts)


def _ahead(head: bytes, now: float) -> float | None:
    for line in head.decode("latin-1").split("\r\n"):
        name, _, value = line.partition(":")
        if name.lower() == "date":
            return email.utils.parsedate_to_datetime(value.strip()).timestamp() + 0.5 - now
    return None


async def _resolve(host: str, resolvers: Executor, patience: float) -> tuple[str, ...]:
    with suppress(ValueError):
        return (str(ipaddress.ip_address(host)),)
    async with asyncio.timeout(patience):
        ask = partial(socket.getaddrinfo, host, None, type=socket.SOCK_STREAM)
        found = await asyncio.get_running_loop().run_in_executor(resolvers, ask)
    return tuple(dict.fromkeys(str(each[4][0]) for each in found))


def _reason(error: Exception, patience: float) -> str:
    if isinstance(error, TimeoutError) and error.errno is None:
        return f"no answer within {patience:g} s"
    if isinstance(error, OSError) and error.errno and error.errno > 0:
        return os.strerror(error.errno)  # asyncio's own sentence says only that a call failed
    return str((isinstance(error, OSError) and error.strerror) or error)


def _certificate(path: Path | None) -> tuple[CertificateFacts | None, str]:
    if path is None:
        return None, ""
    try:
        return _told(read_certificates(read_bytes(path), str(path))[0]), ""
    except (CertsError, ClusterMeshError) as e:
        return None, sentence(e)


def _authorities(path: Path | None) -> tuple[str, ...]:
    try:
        found = () if path is None else read_certificates(read_bytes(path), str(path))
        return tuple(facts_of(each).common_name for each in found)
    except (CertsError, ClusterMeshError):
        return ()


async def _ask_etcd(file: PeerFile, works: Iterable[EndpointFacts], patience: float) -> EtcdFacts:
    reached = list(works)
    aliases = {each.host: each.answering for each in reached}
    file = replace(file, endpoints=tuple(each.url for each in reached), host_aliases=aliases)
    try:
        async with asyncio.timeout(patience * _STEPS), client_of(file, patience) as client:
            return await _Questions(client, file.name).ask()
    except TimeoutError:
        return EtcdFacts(error=f"etcd at {reached[0].url} answers too slowly")
    except ClusterMeshError as e:
        return EtcdFacts(error=sentence(e))


class _Questions:
    """What a reader of the cluster `name` asks its etcd; a refusal is noted, any other error ends it."""

    def __init__(self, client: EtcdClient, name: str) -> None:
        self._client, self._name = client, name
        self._refused: list[str] = []
        self._asked = 0

    async def ask(self) -> EtcdFacts:
        client, name = self._client, self._name
        status = await client.status()
        key, canaries = keys.cluster_config_key(name), keys.canary_prefix(name)
        config = await self._may(key, client.get)
        beat = await self._may(keys.HEARTBEAT, client.get) if await self._may(keys.HEARTBEAT, client.count) else None
        stand = await self._may(canaries, self._canaries)
        counts = await self._counts(config.value if config else b"")
        return EtcdFacts(
            version=status.version,
            leader=status.leader,
            alarms=status.errors,
            asked=self._asked,
            refused=tuple(self._refused),
            config=config.value if config else None,
            heartbeat=beat.value if beat else None,
            canaries=stand or frozenset(),
            counts=counts,
        )

    async def _canaries(self, prefix: bytes) -> frozenset[bytes]:
        """Those that this project knows, however many there are; the right to the prefix is what a reader needs."""
        await self._client.count(prefix)
        known = [keys.canary_key(self._name, folder, cached) for folder in COUNTED.values() for cached in (True, False)]
        return frozenset((await self._client.created(known))[1])

    async def _counts(self, config: bytes) -> Mapping[str, int]:
        try:
            cached = cluster_config.decode(config).cached
        except Invalid:
            cached = False
        counts = {}
        for kind, prefix in _places(self._name, cached).items():
            if (count := await self._may(prefix, self._client.count)) is not None:
                counts[kind] = count
        return counts

    async def _may(self, place: bytes, ask: Callable[[bytes], Awaitable[T]]) -> T | None:
        self._asked += 1
        try:
            return await ask(place)
        except Refused:
            self._refused.append(place.decode())
            return None


async def _count(client: EtcdClient, name: str, cached: bool) -> dict[str, int]:
    return {kind: await client.count(prefix) for kind, prefix in _places(name, cached).items()}


def _places(name: str, cached: bool) -> dict[str, bytes]:
    place = keys.cache_prefix if cached else keys.state_prefix
    return {kind: place(folder, name) for kind, folder in COUNTED.items()}
