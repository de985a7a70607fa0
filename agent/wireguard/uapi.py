"""WireGuard's cross-platform configuration protocol over a unix socket: pure encode and parse, then one small client.

Format: https://www.wireguard.com/xplatform/ - lines of key=value, a blank line ends a request and an answer. A `set` is
not atomic: what precedes a bad line stays. So requests are checked before they are sent, and callers re-read after an
error. Keys travel as hex, addresses of IPv6 endpoints in brackets.
"""

from __future__ import annotations

import asyncio
import base64
import time
from collections.abc import Callable, Collection, Iterable, Mapping
from pathlib import Path
from typing import Final

from agent.wireguard.keys import clamp, decode_public_key
from agent.wireguard.peer import DeviceState, Peer, PeerState, Settings, check_peer, endpoint_text, sort_allowed_ips
from clustermesh.address import Address, parse, parse_prefix, prefix_text
from clustermesh.errors import DecodeError, Invalid, Refused, Unavailable

TIMEOUT: Final = 3.0  # seconds, for a request that is no work
PEER_TIMEOUT: Final = 0.005  # seconds more for each peer: the key agreement of 5,000 new ones takes 1.4 to 3.6 s
_GET: Final = b"get=1\n\n"
_MAX_ANSWER: Final = 256 << 20


class UapiError(Refused):
    """The device refused a request with `errno` (positive). Lines before the bad one were applied: read again."""

    def __init__(self, errno: int) -> None:
        self.errno = errno
        super().__init__(f"the WireGuard device refused a request (errno {errno})")


def encode_set(
    settings: Settings | None = None,
    peers: Mapping[str, Peer] | None = None,
    removals: Collection[str] = (),
    extended: Collection[str] = (),
) -> bytes:
    """A `set` request. Each peer given has its allowed IPs replaced, those `extended` have more of them; other peers
    are left alone. Raises Invalid."""
    lines = ["set=1"]
    if settings is not None:
        lines += _settings_lines(settings)
    for key in removals:
        lines += [f"public_key={decode_public_key(key).hex()}", "remove=true"]
    for key, peer in (peers or {}).items():
        check_peer(key, peer)
        lines += _peer_lines(decode_public_key(key), peer, extends=key in extended)
    return ("\n".join(lines) + "\n\n").encode()


def encode_keepalives(seconds: Mapping[str, int]) -> bytes:
    """A `set` request that changes the keepalive of peers that are there, and makes none. Raises Invalid."""
    lines = ["set=1"]
    for key, keepalive in seconds.items():
        lines += [f"public_key={decode_public_key(key).hex()}", "update_only=true"]
        lines.append(f"persistent_keepalive_interval={keepalive}")
    return ("\n".join(lines) + "\n\n").encode()


def _settings_lines(settings: Settings) -> list[str]:
    return [
        f"private_key={clamp(settings.private_key).hex()}",
        f"listen_port={settings.listen_port}",
        f"fwmark={settings.fwmark}",
    ]


def _peer_lines(key: bytes, peer: Peer, *, extends: bool) -> Iterable[str]:
    yield f"public_key={key.hex()}"
    if peer.endpoint is not None:
        yield f"endpoint={endpoint_text(peer.endpoint, peer.port)}"
    if not extends:
        yield "replace_allowed_ips=true"
    yield from (f"allowed_ip={prefix_text(cidr)}" for cidr in peer.allowed_ips)
    # After the allowed IPs: setting it sends a keepalive, whose answer may already carry traffic from those addresses.
    yield f"persistent_keepalive_interval={peer.keepalive}"


def parse_answer(data: bytes) -> list[tuple[str, str]]:
    """The key=value pairs of an answer, without its errno. Raises DecodeError, and UapiError if its errno is not 0."""
    try:
        lines = data.decode("ascii").split("\n")
    except UnicodeDecodeError as e:
        raise DecodeError("WireGuard answer", data[:64], "must be ASCII") from e
    pairs = []
    for line in filter(None, lines):
        key, equals, value = line.partition("=")
        if not equals:
            raise DecodeError("WireGuard answer", line, "must be key=value lines")
        pairs.append((key, value))
    if not pairs or pairs[-1][0] != "errno":
        raise DecodeError("WireGuard answer", data[-64:], "must end with errno=")
    errno = abs(_number(*pairs.pop()))
    if errno:
        raise UapiError(errno)
    return pairs


def parse_get(data: bytes) -> DeviceState:
    """The answer to `get`. Keys this client does not know are skipped. Raises DecodeError and UapiError only."""
    sections: list[tuple[str, list[tuple[str, str]]]] = [("", [])]
    for name, value in parse_answer(data):
        if name == "public_key":
            sections.append((_key(value), []))
        else:
            sections[-1][1].append((name, value))
    return DeviceState(
        settings=_parse_settings(dict(sections[0][1])), peers={key: _parse_peer(pairs) for key, pairs in sections[1:]}
    )


def _parse_settings(found: Mapping[str, str]) -> Settings | None:
    try:
        private_key = bytes.fromhex(found.get("private_key", ""))
    except ValueError as e:
        raise DecodeError("private_key", "not shown", "must be hex") from e
    if not any(private_key):
        return None
    port, mark = (_number(name, found.get(name, "0")) for name in ("listen_port", "fwmark"))
    return Settings(private_key=private_key, listen_port=port, fwmark=mark)


def _parse_peer(pairs: Iterable[tuple[str, str]]) -> PeerState:
    allowed_ips, single = [], {}
    for name, value in pairs:
        if name == "allowed_ip":
            allowed_ips.append(value)
        else:
            single[name] = value

    def number(name: str) -> int:
        return _number(name, single.get(name, "0"))

    try:
        networks = sort_allowed_ips(map(parse_prefix, allowed_ips))
    except Invalid as e:
        raise DecodeError(e.field, e.value, e.rule) from e
    return PeerState(
        endpoint=_parse_endpoint(single["endpoint"]) if "endpoint" in single else None,
        allowed_ips=networks,
        last_handshake=number("last_handshake_time_sec") + number("last_handshake_time_nsec") / 1e9,
        rx=number("rx_bytes"),
        tx=number("tx_bytes"),
        keepalive=number("persistent_keepalive_interval"),
    )


def _parse_endpoint(value: str) -> tuple[Address, int]:
    host, _, port = value.rpartition(":")
    try:
        # Link-local ones come with the zone they were heard in.
        return parse(host.removeprefix("[").removesuffix("]").partition("%")[0]), _number("endpoint", port)
    except Invalid as e:
        raise DecodeError("endpoint", value, "must be address:port") from e


def _key(value: str) -> str:
    try:
        raw = bytes.fromhex(value)
    except ValueError as e:
        raise DecodeError("public_key", value, "must be hex") from e
    if len(raw) != 32:
        raise DecodeError("public_key", value, "must be 32 bytes")
    return base64.b64encode(raw).decode()


def _number(name: str, value: str) -> int:
    # int() would also take "1_0", " 1" and digits of other scripts.
    if not (value.removeprefix("-").isdecimal() and value.isascii() and len(value) <= 20):
        raise DecodeError(name, value, "must be a decimal number")
    return int(value)


class NobodyListens(Unavailable):
    """No process serves the socket: there is none yet, or it is dead and left its socket behind."""


class UapiClient:
    """One request per connection to the socket of one device. Raises Unavailable when nobody answers in time.

    `silent_since` is the Unix time of the first of the requests of late that were not answered in time; None after an
    answer. The process may be stopped, or wait for something: it still listens, so nothing else tells.
    """

    def __init__(self, socket: Path, timeout: float = TIMEOUT, clock: Callable[[], float] = time.time) -> None:
        self.socket, self._timeout, self._clock = socket, timeout, clock
        self._peers = 0  # as the device last said
        self.silent_since: float | None = None

    async def get(self) -> DeviceState:
        # Thousands of peers take a tenth of a second to read: in a thread, others have their turn in between.
        state = await asyncio.to_thread(parse_get, await self._ask(_GET, self._peers))
        self._peers = len(state.peers)
        return state

    async def set(self, request: bytes) -> None:
        """Send what `encode_set` made. Raises UapiError; some of it may then be applied."""
        all_anew = self._peers if b"\nprivate_key=" in request else 0
        parse_answer(await self._ask(request, request.count(b"\npublic_key=") + all_anew))

    async def _ask(self, request: bytes, peers: int) -> bytes:
        limit, asked = self._timeout + peers * PEER_TIMEOUT, self._clock()
        try:
            async with asyncio.timeout(limit):
                answer = await self._exchange(request)
        except TimeoutError as e:
            self.silent_since = self.silent_since or asked
            raise Unavailable(f"{self.socket}: no answer within {limit:g} s") from e
        except OSError as e:
            raise NobodyListens(f"{self.socket}: {e.strerror or e}") from e
        self.silent_since = None
        return answer

    async def _exchange(self, request: bytes) -> bytes:
        reader, writer = await asyncio.open_unix_connection(self.socket)
        try:
            writer.write(request)
            await writer.drain()
            answer = bytearray()
            while not answer.endswith(b"\n\n"):
                chunk = await reader.read(1 << 16)
                if not chunk or len(answer) > _MAX_ANSWER:
                    raise ConnectionResetError(f"the answer ends after {len(answer)} bytes")
                answer += chunk
            return bytes(answer)
        finally:
            writer.transport.abort()
