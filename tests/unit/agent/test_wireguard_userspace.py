"""What is asked of a wireguard-go: in parts that keep it busy for a moment each, and the peers in their order."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from fake_wireguard import numbered_key

from agent.wireguard.keys import decode_public_key
from agent.wireguard.peer import Peer
from agent.wireguard.userspace import _PEERS_PER_REQUEST, UserspaceDevice
from clustermesh.address import parse


@asynccontextmanager
async def served(folder: Path) -> AsyncIterator[tuple[UserspaceDevice, list[list[str]]]]:
    """A device whose process takes everything; the public keys of each request."""
    requests: list[list[str]] = []

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        lines = (await reader.readuntil(b"\n\n")).decode().splitlines()
        requests.append([line.partition("=")[2] for line in lines if line.startswith("public_key=")])
        writer.write(b"errno=0\n\n")
        await writer.drain()
        writer.close()

    server = await asyncio.start_unix_server(answer, folder / "wg0.sock")
    try:
        yield UserspaceDevice("wg0", "a test", log=folder / "log", sockets=folder), requests
    finally:
        server.close()
        await server.wait_closed()


async def test_many_peers_are_written_in_parts_in_their_order(tmp_path: Path) -> None:
    keys = [numbered_key(number) for number in range(1, 2 * _PEERS_PER_REQUEST + 2)]
    one = Peer(endpoint=parse("192.0.2.1"), port=51871, allowed_ips=())
    async with served(tmp_path) as (device, requests):
        await device.set_peers(dict.fromkeys(keys, one))
        await device.set_keepalives(dict.fromkeys(keys, 25))
    assert [len(keys) for keys in requests] == [_PEERS_PER_REQUEST, _PEERS_PER_REQUEST, 1] * 2
    assert [key for request in requests for key in request] == [decode_public_key(key).hex() for key in keys] * 2
