"""Readers that begin together do so a few at a time, and none that hangs keeps the others from it."""

from __future__ import annotations

import asyncio

import pytest

from clustermesh.mesh.pace import Pace


async def test_only_so_many_begin_at_once_and_the_next_when_one_is_done() -> None:
    pace = Pace()
    ends = [await pace.begin() for _ in range(8)]
    ninth = asyncio.create_task(pace.begin())
    await asyncio.sleep(0)
    assert not ninth.done()
    ends[0]()
    ends[0]()
    await ninth
    tenth = asyncio.create_task(pace.begin())
    await asyncio.sleep(0)
    assert not tenth.done(), "an end counts once"
    ends[1]()
    await tenth


async def test_whoever_hangs_gives_way_after_a_while(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("clustermesh.mesh.pace._HOLD", 0.01)
    pace = Pace()
    for _ in range(50):
        await pace.begin()
