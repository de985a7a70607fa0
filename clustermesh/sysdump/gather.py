"""Sources asked side by side, each with its limit, and what they answer packed into one archive.

What fails is written down beside the rest, and so is what there was no time or room for.
"""

from __future__ import annotations

import asyncio
import io
import tarfile
import time
from collections.abc import Awaitable, Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, Final

import msgspec
from msgspec import Struct

from certs.files import write_atomically
from clustermesh.errors import Unavailable, first_of, sentence
from clustermesh.sysdump.redact import Redactor

_AT_ONCE: Final = 16
_EACH: Final = 15.0
"""Seconds for one source."""


class Source(Struct, frozen=True):
    """What goes into the archive as `path`. `ask` raises what it likes, and has `seconds`."""

    path: str
    ask: Callable[[], Awaitable[bytes]]
    seconds: float = _EACH


class Bounds(Struct, frozen=True, kw_only=True):
    """Seconds in all, bytes of one file and of all, before they are packed."""

    seconds: float = 120.0
    file: int = 2 << 20
    whole: int = 64 << 20


class Gathered(Struct):
    """The files by path, and why others are missing, or are not whole."""

    files: dict[str, bytes]
    missing: dict[str, str]


class Gathering:
    """Asks sources until time or room is over."""

    def __init__(self, bounds: Bounds) -> None:
        self.found, self._bounds = Gathered({}, {}), bounds
        self._deadline, self._room = time.monotonic() + bounds.seconds, bounds.whole
        self._free = asyncio.Semaphore(_AT_ONCE)

    async def ask(self, sources: Iterable[Source]) -> None:
        """All of them; never raises for one."""
        await asyncio.gather(*(self._ask(source) for source in sources))

    async def _ask(self, source: Source) -> None:
        async with self._free:
            left = self._deadline - time.monotonic()
            if left <= 0 or self._room <= 0:
                self.found.missing[source.path] = "not asked: " + ("time is over" if left <= 0 else "there is no room")
                return
            try:
                async with asyncio.timeout(min(left, source.seconds)):
                    data = await source.ask()
            except TimeoutError:
                self.found.missing[source.path] = f"no answer within {min(left, source.seconds):.0f} s"
            except Exception as e:  # whatever one source does, the others are worth having
                first = first_of(e) if isinstance(e, ExceptionGroup) else e
                self.found.missing[source.path] = f"{type(first).__name__}: {sentence(first)}"
            else:
                self.add(source.path, data)

    @property
    def most(self) -> int:
        """Bytes that there is room for in the next file."""
        return max(0, min(self._bounds.file, self._room))

    def add(self, path: str, data: bytes) -> None:
        """One file, as much of its end as there is room for: of a log that is the newest."""
        most = self.most
        if len(data) > most:
            self.found.missing[path] = f"its last {most} of {len(data)} bytes are here"
            data = data[-most:] if most else b""
        self._room -= len(data)
        self.found.files[path] = data


def pack(found: Gathered, redactor: Redactor, top: str, index: dict[str, Any]) -> bytes:
    """The archive, gzip: everything below `top`, with an index of it."""
    out = io.BytesIO()
    files = {path: redactor.clean(data) for path, data in sorted(found.files.items())}
    said = {**index, "missing": dict(sorted(found.missing.items())), "files": {k: len(v) for k, v in files.items()}}
    with tarfile.open(fileobj=out, mode="w:gz", compresslevel=6) as archive:
        for path, data in (("index.json", redactor.clean(as_json(said))), *files.items()):
            entry = tarfile.TarInfo(f"{top}/{path}")
            entry.size, entry.mtime, entry.mode = len(data), int(time.time()), 0o600
            archive.addfile(entry, io.BytesIO(data))
    return out.getvalue()


def write_private(path: Path, data: bytes) -> None:
    """For its owner alone, whole or not at all. Raises Unavailable."""
    try:
        write_atomically(path, data, 0o600)
    except OSError as e:
        raise Unavailable(f"{path}: {e.strerror or e}") from e


def as_list(items: Sequence[Any], room: int) -> tuple[bytes, int]:
    """A JSON list of the `items`, but for those that do not fit into what is left of `room` bytes, and of how many."""
    pieces, size = list[bytes](), 4
    for each in items:
        piece = as_json(each)
        if size + len(piece) + 2 <= room:
            size += len(piece) + 2
            pieces.append(piece)
    return b"[\n" + b",\n".join(pieces) + b"\n]", len(pieces)


def as_json(found: Any) -> bytes:
    return msgspec.json.format(msgspec.json.encode(found, enc_hook=str), indent=1)


async def run(argv: Sequence[str], room: int = 8 << 20) -> bytes:
    """What a program prints, both ways. Raises OSError, ClusterMeshError where it fails and prints nothing."""
    process = await asyncio.create_subprocess_exec(
        *argv, stdin=asyncio.subprocess.DEVNULL, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE
    )
    try:
        said, complaints = await process.communicate()
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    if process.returncode and not said:
        raise Unavailable(complaints.decode(errors="replace").strip()[-500:] or f"it exits with {process.returncode}")
    return said[:room]
