"""A stupid WireGuard device: a dict of peers that behaves as wireguard-go was seen to, also in taking allowed IPs away.

`FakeDevice` is a Device without a socket; `serve` speaks the UAPI for one over a unix socket.
"""

from __future__ import annotations

import asyncio
import base64
from collections.abc import AsyncIterator, Collection, Mapping
from contextlib import asynccontextmanager
from pathlib import Path

from msgspec.structs import replace

from agent.wireguard.peer import Peer, PeerState, check_peer, sort_allowed_ips
from agent.wireguard.uapi import UapiError
from clustermesh.address import Prefix


class FakeDevice:
    """`refuse` names keys whose write fails, after whatever stood before them in the batch was applied."""

    kind, why, name = "fake", "for tests", "fake0"

    def __init__(self) -> None:
        self.silent_since: float | None = None
        self.unlogged = ""
        self.states: dict[str, PeerState] = {}
        self.refuse: set[str] = set()
        self.writes: list[list[str]] = []
        self.removed: list[str] = []
        self.emptied: list[str] = []  # keys of peers that for a moment had none of their allowed IPs

    async def ensure(self, private_key: bytes, listen_port: int, fwmark: int, mtu: int) -> bool:
        return False

    async def died(self) -> None:
        await asyncio.Event().wait()

    async def peers(self) -> dict[str, PeerState]:
        return dict(self.states)

    async def set_peers(self, peers: Mapping[str, Peer], extended: Collection[str] = ()) -> None:
        for key, peer in peers.items():
            check_peer(key, peer)
        self.writes.append(list(peers))
        for key, peer in peers.items():
            if key in self.refuse:
                raise UapiError(22)
            self._take_from_others(key, peer.allowed_ips)
            before = self.states.get(key, PeerState())
            endpoint = (peer.endpoint, peer.port) if peer.endpoint is not None else before.endpoint
            kept = before.allowed_ips if key in extended else ()
            self.emptied += [key] if before.allowed_ips != kept else []
            networks = sort_allowed_ips({*kept, *peer.allowed_ips})
            self.states[key] = replace(before, endpoint=endpoint, allowed_ips=networks, keepalive=peer.keepalive)

    def _take_from_others(self, key: str, cidrs: tuple[Prefix, ...]) -> None:
        for other, state in self.states.items():
            if other != key:
                left = sort_allowed_ips(cidr for cidr in state.allowed_ips if cidr not in cidrs)
                self.states[other] = replace(state, allowed_ips=left)

    async def set_keepalives(self, seconds: Mapping[str, int]) -> None:
        for key in seconds.keys() & self.states.keys():
            self.states[key] = replace(self.states[key], keepalive=seconds[key])

    async def remove_peers(self, keys: Collection[str]) -> None:
        self.removed += keys
        for key in keys:
            self.states.pop(key, None)


@asynccontextmanager
async def serve(socket: Path, answers: Mapping[bytes, bytes]) -> AsyncIterator[list[bytes]]:
    """Answer each request listed; for any other close the connection. Yields the requests seen."""
    seen: list[bytes] = []

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            request = await reader.readuntil(b"\n\n")
            seen.append(request)
            for byte in answers.get(request, b""):  # a byte at a time: a stream has no messages
                writer.write(bytes([byte]))
                await writer.drain()
        except asyncio.IncompleteReadError:
            pass
        finally:
            writer.close()

    server = await asyncio.start_unix_server(answer, socket)
    try:
        yield seen
    finally:
        server.close()
        await server.wait_closed()


def numbered_key(number: int) -> str:
    """A public key of no particular meaning."""
    return base64.b64encode(number.to_bytes(32, "big")).decode()
