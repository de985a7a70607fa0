"""The last good state of each cluster, kept on this node's disk for the next agent."""

from __future__ import annotations

import asyncio
import logging
import time
from contextlib import suppress
from pathlib import Path

from agent.outdated import Outdated
from agent.state import AgentState
from clustermesh.logs import about
from clustermesh.mesh import last_good
from clustermesh.mesh.peers import Peers
from clustermesh.mesh.reader import ClusterReader
from clustermesh.mesh.session import State

_PERIOD = 2.0  # seconds
_SOON = 0.1  # seconds, where something is gone

_log = logging.getLogger(__name__)


async def keep_saved(folder: Path, state: AgentState, own: ClusterReader, peers: Peers, outdated: Outdated) -> None:
    """Write the last good state of every cluster that changed; only a whole one is worth keeping.

    One that is stopped writes what it has not written yet: the next agent may be of an older version, which takes what
    the kernel holds for its own only where it finds here what that is for.
    """

    async def save_all() -> None:
        for name in list(state.unsaved):
            reader = own if name == state.own else peers.readers.get(name)
            if await save(folder, state, name, reader, outdated):
                peers.lost.discard(name)
                outdated.discard(name)

    saving = asyncio.create_task(save_all())
    try:
        while True:
            began = time.monotonic()
            await asyncio.shield(saving)
            # A large mesh that changes all the time must not be written all the time.
            await asyncio.sleep(max(_SOON, 50 * (time.monotonic() - began)))
            with suppress(TimeoutError):
                async with asyncio.timeout(max(began + _PERIOD - time.monotonic(), 0.0)):
                    await state.shrunk.wait()
            state.shrunk.clear()
            saving = asyncio.create_task(save_all())
    finally:
        await asyncio.wait({saving})  # or its older state might be the last to be written
        await save_all()


async def save(folder: Path, state: AgentState, name: str, reader: ClusterReader | None, outdated: Outdated) -> bool:
    """Whether what is on disk by now is what is to be kept. What was heard and cannot be kept makes that old."""
    if reader is None or reader.session.state in (State.REMOVED, State.EVICTED):  # nothing of it is to be kept
        state.unsaved.discard(name)
        state.unsavable.pop(name, None)
    if reader is None or reader.session.state is State.REMOVED:
        return True
    if reader.session.state is State.EVICTED:
        await asyncio.to_thread(last_good.forget, folder, name)  # or the next agent would begin with it
        return True
    if reader.session.complete and reader.config is not None and name in state.views:
        state.unsaved.discard(name)
        pieces, heard = list[bytes](), reader.session.heard
        for piece in last_good.encode_in_pieces(reader.config, state.good_view(name)):
            pieces.append(piece)
            await asyncio.sleep(0)
        try:
            await asyncio.to_thread(lambda: last_good.save(folder, name, b"".join(pieces)))
            state.unsavable.pop(name, None)
            return True
        except OSError as e:
            _log.error("last good state of %s is not saved: %s", name, e, extra=about(name))
            state.unsavable[name] = f"{folder}: {e.strerror or e}"  # the file has another name each time
            state.unsaved.add(name)
            if heard and not await asyncio.to_thread(lambda: last_good.holds(folder, name, b"".join(pieces))):
                outdated.add(name)
    return False
