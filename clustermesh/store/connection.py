"""gRPC connections to etcd: one at a time, replaced when it fails, always to the same etcd cluster.

A connection that failed is retired: no new call uses it, those under way end by themselves, the last one closes it. The
next call dials the next endpoint, with the certificate files as they are then. Who logs in does so on each connection.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from functools import partial
from typing import Any, Final, TypeAlias

import grpc
import grpc.aio

from clustermesh.errors import ClusterMeshError, Invalid, Refused, Unavailable
from clustermesh.store import methods
from clustermesh.store import tls as tls_files
from clustermesh.store.endpoint import Endpoint, parse
from clustermesh.store.faults import AuthChanged, AuthDisabled, ClusterIdChanged, TokenEnded, fault, is_severing
from clustermesh.store.login import Login
from clustermesh.store.methods import Method
from clustermesh.store.silence import Pulse
from clustermesh.store.stream import Stream, is_cancelled
from clustermesh.store.tls import Tls

MAX_MESSAGE: Final = 16 << 20
Metadata: TypeAlias = tuple[tuple[str, str], ...]

# A member cut off from its majority answers with an error instead of stale data and silence.
_REQUIRE_LEADER: Final[Metadata] = (("hasleader", "true"),)
_OPTIONS: Final = (
    ("grpc.max_receive_message_length", MAX_MESSAGE),
    ("grpc.max_send_message_length", MAX_MESSAGE),
    ("grpc.keepalive_time_ms", 10_000),  # etcd ends connections that ping more often than every 5 s
    ("grpc.keepalive_timeout_ms", 5_000),
    ("grpc.http2.ping_timeout_ms", 5_000),  # in grpcio 1.85 this one counts, and is 60 s by default
    ("grpc.http2.max_pings_without_data", 0),  # by default two pings, then none: an idle watch would die unnoticed
    ("grpc.use_local_subchannel_pool", 1),  # else a new channel shares the broken connection of the old one
    ("grpc.enable_http_proxy", 0),
    ("grpc.service_config_disable_resolution", 1),
)


class Connection:
    """One gRPC channel. `proven` once etcd has answered on it."""

    def __init__(self, endpoint: Endpoint, address: str, tls: Tls | None) -> None:
        self.endpoint, self.address, self.tls = endpoint, address, tls
        self.proven = False
        self.retired = False
        self.users = 0
        self.pulse = Pulse()
        self.metadata: Metadata | None = None  # of every call, once it is known
        self.logging_in = asyncio.Lock()
        self._calls: dict[str, Any] = {}
        self._channel = _open_channel(endpoint, address, tls)

    def unary(self, method: Method) -> Any:
        if method.path not in self._calls:
            self._calls[method.path] = self._channel.unary_unary(
                method.path,
                request_serializer=method.request.SerializeToString,
                response_deserializer=method.response.FromString,
            )
        return self._calls[method.path]

    def stream(self, method: Method) -> Any:
        return self._channel.stream_stream(
            method.path,
            request_serializer=method.request.SerializeToString,
            response_deserializer=method.response.FromString,
        )

    async def close(self) -> None:
        await self._channel.close()


def _open_channel(endpoint: Endpoint, address: str, tls: Tls | None) -> Any:
    options: tuple[tuple[str, int | str], ...] = _OPTIONS
    target = Endpoint(address, endpoint.port, endpoint.secure).target
    if address != endpoint.host:
        options += (("grpc.ssl_target_name_override", endpoint.host), ("grpc.default_authority", endpoint.target))
    if tls is None:
        return grpc.aio.insecure_channel(target, options=options)
    return grpc.aio.secure_channel(target, tls_files.credentials(tls), options=options)


class Dialer:
    """Makes and replaces connections to one etcd cluster, and watches that it stays that one.

    `aliases` maps a host to the address to dial for it; its certificate must still be the host's.
    """

    def __init__(
        self,
        urls: Sequence[str],
        tls: Tls | None,
        aliases: Mapping[str, Sequence[str]],
        timeout: float,
        login: Login | None = None,
    ) -> None:
        self._endpoints = [
            (checked, address)
            for checked in (_checked(parse(url), tls) for url in urls)
            for address in aliases.get(checked.host) or (checked.host,)
        ]
        if not self._endpoints:
            raise Invalid("endpoints", list(urls), "must name at least one")
        self._tls, self._timeout, self._login = tls, timeout, login
        self._turn = random.randrange(len(self._endpoints))
        self._current: Connection | None = None
        self._open: set[Connection] = set()
        self._cluster_id = 0
        self._closed = False

    @asynccontextmanager
    async def _connection(self) -> AsyncIterator[Connection]:
        if self._closed:
            raise Unavailable("this etcd client is closed")
        if self._current is None:
            self._current = self._dial()
        connection = self._current
        connection.users += 1
        try:
            yield connection
        finally:
            connection.users -= 1
            if connection.retired and not connection.users:
                self._open.discard(connection)
                await connection.close()

    def _dial(self) -> Connection:
        endpoint, address = self._endpoints[self._turn % len(self._endpoints)]
        tls = self._tls if endpoint.secure else None
        connection = Connection(endpoint, address, tls)
        self._open.add(connection)
        return connection

    def retire(self, connection: Connection) -> None:
        """Let the next call dial anew, at the next endpoint."""
        connection.retired = True
        if self._current is connection:
            self._current = None
            self._turn += 1

    async def unary(self, method: Method, request: Any, patience: float) -> Any:
        """One call, one answer. Raises ClusterMeshError."""
        async with self._connection() as connection:
            return await self._call(connection, method, request, patience, await self._metadata(connection))

    async def _call(
        self, connection: Connection, method: Method, request: Any, patience: float, metadata: Metadata
    ) -> Any:
        try:
            response = await connection.unary(method)(request, timeout=patience, metadata=metadata)
        except grpc.aio.AioRpcError as e:
            raise await self.failure(connection, e.code(), e.details()) from e
        except asyncio.CancelledError as e:
            if is_cancelled():
                raise
            raise Unavailable("the connection to etcd was closed") from e
        self.observe(connection, response.header)
        return response

    async def _metadata(self, connection: Connection) -> Metadata:
        if self._login is None:
            return _REQUIRE_LEADER
        async with connection.logging_in:
            if connection.metadata is None:
                connection.metadata = await self._log_in(connection, self._login)
            return connection.metadata

    async def _log_in(self, connection: Connection, login: Login) -> Metadata:
        request = methods.AUTHENTICATE.request(name=login.name, password=login.password)
        try:
            response = await self._call(connection, methods.AUTHENTICATE, request, self._timeout, _REQUIRE_LEADER)
        except AuthDisabled:
            return _REQUIRE_LEADER
        except Refused as e:
            raise Refused(f"user {login.name!r}: {e}") from e
        return (*_REQUIRE_LEADER, ("token", response.token))

    @asynccontextmanager
    async def stream(self, method: Method) -> AsyncIterator[Stream]:
        """A call that goes on: write requests, read responses. Ended when the block is left."""
        async with self._connection() as connection:
            call = connection.stream(method)(metadata=await self._metadata(connection))
            stream = Stream(
                call, connection.pulse, partial(self.observe, connection), partial(self.failure, connection)
            )
            try:
                yield stream
            finally:
                await stream.close()

    def observe(self, connection: Connection, header: Any) -> None:
        """Check that an answer comes from the cluster all earlier ones came from."""
        found, known = header.cluster_id, self._cluster_id
        connection.proven, connection.pulse.heard = True, asyncio.get_running_loop().time()
        if found and found == known:
            return
        if not found:
            self.retire(connection)
            raise Unavailable(f"etcd at {connection.endpoint} does not say which cluster it belongs to")
        self._cluster_id = 0 if known else found
        if known:
            self.retire(connection)
            raise ClusterIdChanged(f"etcd at {connection.endpoint} is cluster {found:x}, not {known:x} as before")

    async def failure(self, connection: Connection, code: grpc.StatusCode, details: str | None) -> ClusterMeshError:
        """The error for a failed call, with the cause looked for where the connection never worked."""
        reason = None
        if is_severing(code):
            self.retire(connection)
            if not connection.proven:
                reason = await tls_files.explain(connection.endpoint, connection.address, connection.tls, self._timeout)
        error = reason or fault(code, details, str(connection.endpoint))
        if self._login is not None and isinstance(error, TokenEnded | AuthChanged):
            self.retire(connection)  # the next one has a token of its own
        return error

    async def close(self) -> None:
        self._closed = True
        self._current = None
        while self._open:
            await self._open.pop().close()


def _checked(endpoint: Endpoint, tls: Tls | None) -> Endpoint:
    if endpoint.secure and tls is None:
        raise Invalid("endpoint", str(endpoint), "https needs a CA, a certificate and a key")
    if not endpoint.secure and tls is not None:
        raise Invalid("endpoint", str(endpoint), "must be https where certificates are given")
    return endpoint
