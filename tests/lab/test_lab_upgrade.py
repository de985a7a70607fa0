"""From the version before the layout of the maps changed to this one and back, under load: no request fails.

alpha-1   the client, and the agent that is exchanged        beta-1   the other half of the service
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path

import older_version
import pytest

from clustermesh.errors import Unavailable
from lab import bring_up, teardown
from lab.lab import Lab
from lab.plan import make_plan

_FOLDER = "/run/clustermesh-lab-upgrade"


@pytest.fixture(scope="module")
def older(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("older")
    try:
        older_version.build(folder)
    except Unavailable as e:
        pytest.skip(str(e))
    return folder


@pytest.fixture(scope="module")
def pair(older: Path) -> Iterator[Lab]:
    """Two connected clusters of one node, with one web pod each."""
    try:
        yield asyncio.run(bring_up.up(make_plan(nodes=1, pods=1, folder=_FOLDER), print, bound=True))
    finally:
        left = teardown.down(Path(_FOLDER))
    assert left == []


async def test_no_request_fails_on_the_way_back_to_the_version_before_and_up_again(pair: Lab, older: Path) -> None:
    async with older_version.under_load(pair) as found:
        await older_version.downgrade(pair, "alpha-1", older)
    async with older_version.under_load(pair) as found_up:
        await older_version.upgrade(pair, "alpha-1")
    for way, traffic in (("back", *found), ("up", *found_up)):
        assert traffic.requests >= older_version.LEAST
        assert traffic.failed == 0, (way, traffic)
    links = (await pair.run("alpha-1", "ls", "/sys/fs/bpf/clustermesh/links")).split()
    assert not [name for name in links if name.startswith("late")]
