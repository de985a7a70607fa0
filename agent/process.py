"""A helper process (wireguard-go): started so that it outlives the agent, adopted by the next one, watched.

What a helper serves goes on while no agent runs. The one thing that two agents have in common is the unix socket it
listens on: whoever listens there is the helper, and the kernel says which process that is. A helper that hangs listens
as well: it lives, and whoever talks to it has to notice that no answer comes.
"""

from __future__ import annotations

import asyncio
import errno
import os
import signal
import socket
import subprocess
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import BinaryIO, Final

from clustermesh.errors import Unavailable

START_SECONDS: Final = 10.0
ASK_SECONDS: Final = 5.0  # until whoever is asked to start one has done so
_POLL_SECONDS: Final = 0.01
_LOOK_SECONDS: Final = 1.0  # between looks at a helper that has no process id here
# The socket file appears before its process listens: for this long a refusal does not mean that the process is dead.
_LISTEN_GRACE: Final = 0.05  # seconds
_SOMEBODY: Final = 0  # a listener whose process id cannot be known: of another pid namespace, or too busy to be asked

# The shell leaves the daemon to init and tells its process id: no zombie, and nothing for the agent to wait for.
_LAUNCHER: Final = '"$@" </dev/null >&2 & echo $!'


class Helper(ABC):
    """The process that listens at `socket`, whoever started it."""

    def __init__(self, socket: Path) -> None:
        self._socket = socket

    @property
    def unlogged(self) -> str:
        """Why the one that was started here has no log, "" where it has, or the next one could have."""
        return ""

    async def adopt(self) -> bool:
        """Whether one runs already. The socket of a dead one is removed: it would stop the next."""
        deadline = asyncio.get_running_loop().time() + _LISTEN_GRACE
        while self._socket.exists():
            if find_listener(self._socket) is not None:
                return True
            if asyncio.get_running_loop().time() > deadline:
                self._socket.unlink(missing_ok=True)
            await asyncio.sleep(_POLL_SECONDS)
        return False

    @abstractmethod
    async def start(self, seconds: float = START_SECONDS) -> None:
        """Have one started and wait until it listens. Unavailable, with the reason, where it does not in time."""

    async def died(self) -> None:
        """Return once nobody listens any more; at once where nobody does."""
        while (pid := find_listener(self._socket)) is not None:
            if pid == _SOMEBODY:
                await asyncio.sleep(_LOOK_SECONDS)
            else:
                await self._ended(pid)

    async def _ended(self, pid: int) -> None:
        try:
            process = os.pidfd_open(pid)
        except ProcessLookupError:
            return
        try:
            if find_listener(self._socket) in (pid, _SOMEBODY):  # or it ended, and its number may be another's by now
                await _readable(process)
        finally:
            os.close(process)


class AskedHelper(Helper):
    """One that another container starts when it reads a line of the pipe `starter`: it ends with that one, not ours."""

    def __init__(self, *, socket: Path, starter: Path) -> None:
        super().__init__(socket)
        self._starter = starter

    async def start(self, seconds: float = ASK_SECONDS) -> None:
        deadline, asked = asyncio.get_running_loop().time() + seconds, False
        while find_listener(self._socket) is None:
            asked = asked or self._ask()
            if asyncio.get_running_loop().time() > deadline:
                why = f"who reads {self._starter} was asked" if asked else f"nobody reads {self._starter}"
                raise Unavailable(f"nobody listens at {self._socket} after {seconds:g} s: {why} to start who does")
            await asyncio.sleep(_POLL_SECONDS)

    def _ask(self) -> bool:
        """Whether somebody was there to hear it."""
        try:
            pipe = os.open(self._starter, os.O_WRONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        except OSError as e:
            if e.errno in (errno.ENOENT, errno.ENXIO):
                return False
            raise Unavailable(f"{self._starter}: {e.strerror}") from e
        try:
            os.write(pipe, b"\n")
        except OSError:  # gone just now
            return False
        finally:
            os.close(pipe)
        return True


class HelperProcess(Helper):
    """One that is started here. `argv` starts it in the foreground; what it prints is added to `log`."""

    def __init__(
        self, argv: Sequence[str], *, socket: Path, log: Path, environment: Mapping[str, str] | None = None
    ) -> None:
        super().__init__(socket)
        self._argv, self._log, self._environment = argv, log, environment or {}
        self._unlogged = ""

    @property
    def unlogged(self) -> str:
        if self._unlogged and os.access(self._log.parent, os.W_OK | os.X_OK):
            self._unlogged = ""
        return self._unlogged

    async def start(self, seconds: float = START_SECONDS) -> None:
        try:
            pid = await asyncio.to_thread(self._launch)
        except (OSError, subprocess.SubprocessError) as e:  # no memory for a process ...
            raise Unavailable(f"{self._argv[0]} cannot be started: {e}") from e
        deadline = asyncio.get_running_loop().time() + seconds
        while find_listener(self._socket) is None:
            if not runs(pid):
                raise Unavailable(f"{' '.join(self._argv)} ended at once: {self._last_words()}")
            if asyncio.get_running_loop().time() > deadline:
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
                raise Unavailable(f"{' '.join(self._argv)} does not listen after {seconds:g} s")
            await asyncio.sleep(_POLL_SECONDS)

    def _launch(self) -> int:
        """In a session of its own, with no file of ours open but its log; returns its process id."""
        self._socket.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        with self._open_log() as log:
            shell = subprocess.run(
                ["/bin/sh", "-c", _LAUNCHER, "sh", *self._argv],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=log,
                env={**os.environ, **self._environment},
                cwd="/",
                start_new_session=True,
                timeout=START_SECONDS,
                check=True,
            )
        return int(shell.stdout)

    def _open_log(self) -> BinaryIO:
        """Its log; nowhere, where it cannot have one: a full or read-only disk is no reason to be without a helper."""
        try:
            self._log.parent.mkdir(parents=True, exist_ok=True)
            log = self._log.open("ab")
        except OSError as e:
            self._unlogged = f"{self._log}: {e.strerror or e}"
            return open(os.devnull, "ab")
        self._unlogged = ""
        return log

    def _last_words(self) -> str:
        if self._unlogged:
            return f"it has no log ({self._unlogged})"
        lines = self._log.read_text(errors="replace").strip().splitlines()
        return lines[-1] if lines else f"nothing in {self._log}"


def find_listener(path: Path) -> int | None:
    """The process id of whoever listens at a unix socket, 0 where it cannot be known; None where nobody listens."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as asking:
        asking.setblocking(False)
        try:
            asking.connect(str(path))
            credentials = asking.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12)
        except BlockingIOError:  # its backlog is full
            return _SOMEBODY
        except OSError:
            return None
    return int.from_bytes(credentials[:4], "little", signed=True)


def runs(pid: int) -> bool:
    """Whether the process is there and not a zombie, which it stays where no init reaps."""
    try:
        state = Path("/proc", str(pid), "stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return False
    return state not in ("Z", "X")


async def _readable(descriptor: int) -> None:
    loop, ready = asyncio.get_running_loop(), asyncio.Event()
    loop.add_reader(descriptor, ready.set)
    try:
        await ready.wait()
    finally:
        loop.remove_reader(descriptor)
