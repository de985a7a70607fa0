"""WireGuard in user space: a wireguard-go process of its own, started or adopted, driven over its UAPI socket.

The process outlives the agent, killed or upgraded: traffic goes on, and the next agent adopts it by its socket. Of what
a container starts nothing outlives it: there another one, which stays, is asked to start the process. Sockets lie in
the mount namespace, not the network namespace: two nodes need two /run folders or two device names.
"""

from __future__ import annotations

import asyncio
import shutil
import time
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from itertools import islice
from pathlib import Path
from typing import Final, TypeVar

from agent import netlink
from agent.process import AskedHelper, Helper, HelperProcess
from agent.wireguard import tun, uapi
from agent.wireguard.peer import Peer, PeerState, Settings
from clustermesh.errors import Refused, Unavailable

SOCKETS: Final = Path("/var/run/wireguard")  # compiled into wireguard-go
BINARY: Final = "wireguard-go"
_ASK_SECONDS: Final = 5.0  # between questions whose only point is whether there is an answer
# About 0.06 s of key agreement. A device rests for as long as a part took: its packets wait behind all handshakes that
# begin at once, and behind their next tries, which are due together as well.
_PEERS_PER_REQUEST: Final = 100

T = TypeVar("T")


class UserspaceDevice:
    """A device made by wireguard-go. `why` says in a sentence why it is not the kernel's."""

    kind = "userspace"

    def __init__(
        self,
        name: str,
        why: str,
        *,
        log: Path,
        sockets: Path = SOCKETS,
        binary: str = BINARY,
        starter: Path | None = None,
        ask_every: float = _ASK_SECONDS,
    ) -> None:
        """With a `starter`, the process is another container's, who reads from that pipe that it is wanted."""
        self.name, self.why = name, why
        self._binary, self._ask_every = binary if starter is None else "", ask_every
        path = sockets / f"{name}.sock"
        argv, environment = [binary, "-f", name], {"LOG_LEVEL": "error"}
        self._process: Helper = (
            HelperProcess(argv, socket=path, log=log, environment=environment)
            if starter is None
            else AskedHelper(socket=path, starter=starter)
        )
        self._client = uapi.UapiClient(path)
        self._ensuring = asyncio.Lock()

    async def ensure(self, private_key: bytes, listen_port: int, fwmark: int, mtu: int) -> bool:
        """Make the device run with these settings and be up. True if it had to be started: its peers are gone."""
        wanted = Settings(private_key=private_key, listen_port=listen_port, fwmark=fwmark)
        async with self._ensuring:
            started = not await self._process.adopt()
            if started:
                await self._start()
            # Setting a key again would make every peer shake hands again.
            if (await self._client.get()).settings != wanted:
                await self._client.set(uapi.encode_set(wanted))
            netlink.prepare_device(self.name)
            await netlink.set_up(self.name, mtu)
        return started

    @property
    def silent_since(self) -> float | None:
        return self._client.silent_since

    @property
    def unlogged(self) -> str:
        return self._process.unlogged

    async def peers(self) -> dict[str, PeerState]:
        return dict((await self._client.get()).peers)

    async def set_peers(self, peers: Mapping[str, Peer], extended: Collection[str] = ()) -> None:
        """Add or change peers, in their order. Nothing is sent if one of them is Invalid.

        A UapiError leaves some of them applied.
        """
        parts = _parts(peers.items())
        await self._set_in_parts([uapi.encode_set(peers=dict(part), extended=extended) for part in parts])

    async def set_keepalives(self, seconds: Mapping[str, int]) -> None:
        """Change only the keepalive of peers. A peer that is absent stays absent."""
        await self._set_in_parts([uapi.encode_keepalives(dict(part)) for part in _parts(seconds.items())])

    async def remove_peers(self, keys: Collection[str]) -> None:
        if keys:
            await self._client.set(uapi.encode_set(removals=keys))

    async def _set_in_parts(self, requests: Sequence[bytes]) -> None:
        for request in requests:
            began = time.monotonic()
            await self._client.set(request)
            if request is not requests[-1]:
                await asyncio.sleep(time.monotonic() - began)

    async def died(self) -> None:
        """Return once no process serves the device any more; `ensure` brings it back.

        Meanwhile it is asked now and then, for nothing, so that its silence is known also while nothing changes.
        """
        while True:
            with suppress(TimeoutError):
                async with asyncio.timeout(self._ask_every):
                    return await self._process.died()
            with suppress(Unavailable):
                await self._client.set(uapi.encode_set())

    async def _start(self) -> None:
        if self._binary and shutil.which(self._binary) is None:
            raise Refused(f"{self._binary} is not installed, and {self.why}")
        tun.make_persistent(self.name)
        await self._process.start()


def _parts(items: Iterable[T]) -> Iterator[list[T]]:
    each = iter(items)
    while part := list(islice(each, _PEERS_PER_REQUEST)):
        yield part
