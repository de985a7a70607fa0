"""WireGuard in user space: a wireguard-go process of its own, started or adopted, driven over its UAPI socket.

The process outlives the agent, killed or upgraded: traffic goes on, and the next agent adopts it by its socket. Sockets
lie in the mount namespace, not the network namespace: two nodes need two /run folders or two device names.
"""

from __future__ import annotations

import asyncio
import os
import shutil
import subprocess
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Final

from agent import netlink
from agent.wireguard import tun, uapi
from agent.wireguard.peer import DeviceState, Peer, PeerState, Settings
from clustermesh.errors import Refused, Unavailable

SOCKETS: Final = Path("/var/run/wireguard")  # compiled into wireguard-go
BINARY: Final = "wireguard-go"
_START_TIMEOUT: Final = 10.0  # seconds
# The socket file appears before its process listens: for this long a refusal does not mean that the process is dead.
_LISTEN_GRACE: Final = 0.05  # seconds
_PEERS_PER_REQUEST: Final = 500  # about 0.3 s of key agreement, during which the device answers nobody else

# The shell leaves the daemon to init and tells its process id: no zombie, and nothing for the agent to wait for.
_LAUNCHER: Final = '"$@" </dev/null >&2 & echo $!'


class UserspaceDevice:
    """A device made by wireguard-go. `why` says in a sentence why it is not the kernel's."""

    kind = "userspace"

    def __init__(self, name: str, why: str, *, log: Path, sockets: Path = SOCKETS, binary: str = BINARY) -> None:
        self.name, self.why = name, why
        self._log, self._binary = log, binary
        self._socket = sockets / f"{name}.sock"
        self._client = uapi.UapiClient(self._socket)
        self._ensuring = asyncio.Lock()

    async def ensure(self, private_key: bytes, listen_port: int, fwmark: int, mtu: int) -> bool:
        """Make the device run with these settings and be up. True if it had to be started: its peers are gone."""
        wanted = Settings(private_key=private_key, listen_port=listen_port, fwmark=fwmark)
        async with self._ensuring:
            state = await self._find_running()
            started = state is None
            if state is None:
                state = await self._start()
            # Setting a key again would make every peer shake hands again.
            if state.settings != wanted:
                await self._client.set(uapi.encode_set(wanted))
            await netlink.set_link(self.name, mtu=mtu, up=True)
            netlink.set_rp_filter(self.name)
        return started

    async def peers(self) -> dict[str, PeerState]:
        return dict((await self._client.get()).peers)

    async def set_peers(self, peers: Mapping[str, Peer]) -> None:
        """Add or change peers. Nothing is sent if one of them is Invalid; a UapiError leaves some of them applied."""
        keys = list(peers)
        parts = [keys[i : i + _PEERS_PER_REQUEST] for i in range(0, len(keys), _PEERS_PER_REQUEST)]
        for request in [uapi.encode_set(peers={key: peers[key] for key in part}) for part in parts]:
            await self._client.set(request)

    async def set_keepalives(self, seconds: Mapping[str, int]) -> None:
        """Change only the keepalive of peers. A peer that is absent stays absent."""
        await self._client.set(uapi.encode_keepalives(seconds))

    async def remove_peers(self, keys: Collection[str]) -> None:
        if keys:
            await self._client.set(uapi.encode_set(removals=keys))

    async def died(self) -> None:
        """Return once no process serves the device any more; `ensure` brings it back."""
        await self._client.closed()

    async def _find_running(self) -> DeviceState | None:
        """What a process that serves the device says. The socket of a dead one is removed: it would stop the next."""
        deadline = asyncio.get_running_loop().time() + _LISTEN_GRACE
        while self._socket.exists():
            try:
                return await self._client.get()
            except uapi.NobodyListens:
                if asyncio.get_running_loop().time() > deadline:
                    self._socket.unlink(missing_ok=True)
            await asyncio.sleep(0.01)
        return None

    async def _start(self) -> DeviceState:
        if shutil.which(self._binary) is None:
            raise Refused(f"{self._binary} is not installed, and {self.why}")
        tun.make_persistent(self.name)
        try:
            pid = await asyncio.to_thread(self._launch)
        except (OSError, subprocess.SubprocessError) as e:  # no room for its log, no memory for a process ...
            raise Unavailable(f"{self._binary} cannot be started: {e}") from e
        deadline = asyncio.get_running_loop().time() + _START_TIMEOUT
        while True:
            try:
                return await self._client.get()
            except uapi.NobodyListens:
                await asyncio.sleep(0.01)
            if not _runs(pid):
                raise Unavailable(f"{self._binary} {self.name} ended at once: {self._last_words()}")
            if asyncio.get_running_loop().time() > deadline:
                raise Unavailable(f"{self._binary} {self.name} does not listen after {_START_TIMEOUT:g} s")

    def _launch(self) -> int:
        """Start the daemon in a session of its own, with no file of ours open but its log; returns its process id."""
        self._log.parent.mkdir(parents=True, exist_ok=True)
        self._socket.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        with self._log.open("ab") as log:
            shell = subprocess.run(
                ["/bin/sh", "-c", _LAUNCHER, "sh", self._binary, "-f", self.name],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=log,
                env=os.environ | {"LOG_LEVEL": "error"},
                cwd="/",
                start_new_session=True,
                timeout=_START_TIMEOUT,
                check=True,
            )
        return int(shell.stdout)

    def _last_words(self) -> str:
        lines = self._log.read_text(errors="replace").strip().splitlines()
        return lines[-1] if lines else f"nothing in {self._log}"


def _runs(pid: int) -> bool:
    """Whether the process is there and not a zombie, which it stays where no init reaps."""
    try:
        state = Path("/proc", str(pid), "stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return False
    return state not in ("Z", "X")
