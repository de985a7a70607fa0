"""What is read of a cluster that is a folder, and of this machine, where its agent runs."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Final

from clustermesh.standalone.context import CLUSTER_FILE, Context
from clustermesh.sysdump.gather import Bounds, Gathering, Source, run
from clustermesh.sysdump.kubernetes import NODE_COMMANDS
from clustermesh.sysdump.redact import Redactor

_OF_FOLDER: Final[Sequence[Sequence[str]]] = (
    ("status", "-o", "json"),
    ("certs", "status", "-o", "json"),
    ("peers", "-o", "json"),
)
_OF_MACHINE: Final[Sequence[Sequence[str]]] = (
    ("ip", "-d", "link"),
    ("ip", "address"),
    ("ip", "route", "show", "table", "all"),
    ("uname", "-a"),
)


class FolderDump:
    """Reads the folder `cluster`, and asks the agent at `socket`, where it is named."""

    def __init__(self, cluster: Context, socket: Path | None, bounds: Bounds) -> None:
        self._cluster, self._socket = cluster, socket
        self.redactor, self.gathering = Redactor(), Gathering(bounds)

    async def read(self) -> None:
        """Never raises: what cannot be read is noted."""
        for folder in (self._cluster.certs, self._cluster.peers):
            for path in sorted(folder.glob("*.key")) if folder.is_dir() else ():
                try:
                    self.redactor.learn(path.read_bytes())
                except OSError as e:
                    self.gathering.found.missing[str(path)] = (
                        f"{e.strerror}: what looks like a key is taken out all the same"
                    )
        await self.gathering.ask(self._sources())

    def _sources(self) -> Iterator[Source]:
        for path in (*self._files(), Path("users.yaml"), Path(CLUSTER_FILE)):
            yield Source(f"folder/{path}", partial(_read, self._cluster.path / path))
        for words in _OF_FOLDER:
            yield Source(f"{'-'.join(words[:-2])}.json", partial(_ours, words, "--context", str(self._cluster.path)))
        for command in NODE_COMMANDS:
            at = () if self._socket is None else ("--socket", str(self._socket))
            yield Source(f"nodes/here/{'-'.join(command[1:])}.json", partial(_ours, command, "-o", "json", *at))
        for argv in _OF_MACHINE:
            yield Source(f"nodes/here/{'-'.join(argv)}.txt", partial(run, argv))

    def _files(self) -> Iterator[Path]:
        """All but keys and the etcd's data."""
        for folder in ("certs", "peers", "manifests"):
            for path in sorted((self._cluster.path / folder).rglob("*")):
                if path.is_file() and path.suffix != ".key":
                    yield path.relative_to(self._cluster.path)


async def _read(path: Path) -> bytes:
    return await asyncio.to_thread(path.read_bytes)


async def _ours(words: Sequence[str], *more: str) -> bytes:
    return await run([sys.executable, "-P", "-m", "clustermesh.cli", *words, *more])
