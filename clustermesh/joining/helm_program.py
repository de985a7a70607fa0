"""Which Helm is called (the user's own where it is new enough, else the one that this program came with), and how."""

from __future__ import annotations

import asyncio
import os
import re
import shutil
import signal
from collections.abc import Iterator, Mapping
from contextlib import suppress
from enum import Enum
from pathlib import Path
from typing import Final

from msgspec import Struct

from clustermesh.errors import ClusterMeshError, Refused, Unavailable, sentence


def places(module: Path) -> tuple[Path, ...]:
    """Where this program has its own: in the wheel of a platform, or in a checkout, which has what builds it. Elsewhere
    a folder `build` beside the package is somebody else's."""
    root = module.parents[2]
    built = (root / "build" / "helm",) if (root / "tools" / "setup-kube").exists() else ()
    return module.with_name("carried") / "helm", *built


PLACES: Final = places(Path(__file__))
_BEFORE: Final = (4, 0)
"""It applies by the server and shows objects without its own labels: where nothing changes we would see changes."""
_VERSION: Final = re.compile(rb"\bv(\d+)\.(\d+)(?:\.\d+)?")
_PATIENCE: Final = 600.0
_PATIENCE_VERSION: Final = 30.0
_FAREWELL: Final = 30.0
"""Seconds for a Helm that was told to end: it writes down that what it was at has failed."""
_WORDS: Final = 2000


class Duty(Enum):
    """What a Helm is needed for."""

    DEPLOY = "deploy"
    UNINSTALL = "uninstall"

    @property
    def since(self) -> tuple[int, int]:
        """The first that can: 3.14 brought --reset-then-reuse-values, and any 3 keeps releases as ours are."""
        return (3, 14) if self is Duty.DEPLOY else (3, 0)

    @property
    def needed(self) -> str:
        major, minor = self.since
        return f"Helm {major}.{minor} or newer (not 4)" if minor else f"Helm {major}"


class Program(Struct, frozen=True):
    """A Helm, or none where `path` is empty, for `duty`; `passed` says of each that comes before why it is not the
    one."""

    path: str = ""
    version: str = ""
    passed: tuple[str, ...] = ()
    duty: Duty = Duty.DEPLOY

    @property
    def missing(self) -> str:
        """Why there is none, and what to do."""
        looked = "; ".join(self.passed) or "there is none in PATH, and none came with this program"
        return (
            f"no Helm to render the chart with: {looked}. Put {self.duty.needed} into PATH (https://helm.sh), or "
            "install the wheel of this platform, which has one"
        )


async def find_program(duty: Duty = Duty.DEPLOY, patience: float | None = None) -> Program:
    """The first that is one for `duty`: in PATH, then where this program has its own. Each has `patience` seconds to
    say what it is, 30 where it is to be called."""
    passed = list[str]()
    for path in _places():
        try:
            return Program(path, await _read_version(path, duty, patience or _PATIENCE_VERSION), tuple(passed), duty)
        except ClusterMeshError as e:
            passed.append(f"{path} is not used: {sentence(e)}")
    return Program(passed=tuple(passed), duty=duty)


def _places() -> Iterator[str]:
    own = shutil.which("helm")
    if own is not None:
        yield own
    yield from (str(each) for each in PLACES if each.exists())


async def _read_version(program: str, duty: Duty, patience: float) -> str:
    said = await run([program, "version", "--short"], {}, patience, asked=True)
    found = _VERSION.search(said)
    if found is None:
        raise Refused(f"must print its version, and prints {said[:80]!r}")
    version = found[0].decode().removeprefix("v")
    if not duty.since <= (int(found[1]), int(found[2])) < _BEFORE:
        raise Refused(f"{duty.needed} is needed, and it is {version}")
    return version


async def run(
    argv: list[str], environment: Mapping[str, str], patience: float = _PATIENCE, *, asked: bool = False
) -> bytes:
    """What it prints. One that is only `asked` something is killed at the end of its time, with what it has started, as
    shims do. Raises Refused with its own words where it fails, or cannot be started; Unavailable."""
    try:
        process = await _start(argv, environment, asked)
    except OSError as e:
        raise Refused(f"helm: it cannot be started: {e.strerror}") from e
    try:
        async with asyncio.timeout(patience):
            said, words = await process.communicate()
    except TimeoutError as e:
        raise Unavailable(f"helm has not ended after {patience:g} s") from e
    finally:
        if process.returncode is None:
            await _end(process, asked)
    if process.returncode:
        text = words.decode(errors="replace").strip()[-_WORDS:] or f"it ends with {process.returncode}"
        raise Refused(f"helm: {text}")
    return said


async def _start(argv: list[str], environment: Mapping[str, str], asked: bool) -> asyncio.subprocess.Process:
    """One that is interrupted while it starts is ended as any other, where asyncio would kill it."""
    starting = asyncio.ensure_future(
        asyncio.create_subprocess_exec(
            *argv,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
            env={**os.environ, **environment},
            start_new_session=asked,
        )
    )
    try:
        return await asyncio.shield(starting)
    except asyncio.CancelledError:
        await _end(await starting, asked)
        raise


async def _end(process: asyncio.subprocess.Process, asked: bool) -> None:
    """As Helm is ended: killed at once, it leaves a release that is pending, and that nothing changes any more."""
    if asked:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        await process.wait()
        return
    process.terminate()
    try:
        async with asyncio.timeout(_FAREWELL):
            await process.communicate()
    except TimeoutError:
        process.kill()
        await process.wait()
