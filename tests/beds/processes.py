"""Programs that a test starts and ends, and the pages that they serve."""

from __future__ import annotations

import asyncio
import os
import signal
import urllib.error
import urllib.request
from collections.abc import AsyncIterator, Coroutine
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

PATIENCE = 60.0  # seconds that any one thing may take before a test gives up
_ROOT = Path(__file__).parents[2]


@asynccontextmanager
async def child(*argv: str | Path) -> AsyncIterator[asyncio.subprocess.Process]:
    """A process of its own in the checkout, killed at the end if it still runs."""
    process = await asyncio.create_subprocess_exec(*argv, cwd=_ROOT)
    try:
        yield process
    finally:
        await kill(process)


async def kill(process: asyncio.subprocess.Process) -> None:
    if process.returncode is None:
        process.kill()
    await process.wait()


@asynccontextmanager
async def serving(work: Coroutine[Any, Any, None]) -> AsyncIterator[None]:
    """A server in this process, stopped as by SIGTERM."""
    task = asyncio.create_task(work)
    await asyncio.sleep(0)  # until it listens for the signal that is to end it, and not all of us
    try:
        yield
    finally:
        if not task.done() and signal.getsignal(signal.SIGTERM) is not signal.SIG_DFL:  # else it is ending by itself
            os.kill(os.getpid(), signal.SIGTERM)
        await task


async def page(at: str, path: str) -> tuple[int, str]:
    """Status and text of what is served at `at` (HOST:PORT); 0 and nothing where nobody listens yet."""
    return await asyncio.to_thread(_get, f"http://{at}{path}")


async def until_page(at: str, path: str, text: str) -> str:
    """The page, once `text` is in it."""
    async with asyncio.timeout(PATIENCE):
        while text not in (body := (await page(at, path))[1]):
            await asyncio.sleep(0.02)
    return body


def _get(url: str) -> tuple[int, str]:
    try:
        with urllib.request.urlopen(url, timeout=PATIENCE) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.read().decode()
    except OSError:
        return 0, ""
