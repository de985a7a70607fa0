"""Labs for all tests of this folder that leave them as they were, and nodes of their own for those that break things.

Their folders differ from the default one, so that a lab someone explores stays as it is.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from clustermesh.errors import Refused
from lab import bring_up, cgroups, own_folder, preconditions, teardown
from lab.lab import Lab
from lab.plan import LabPlan, make_plan

SHARED_FOLDER = f"/run/clustermesh-lab-tests-{os.getpid()}"
PAIR_FOLDER = f"/run/clustermesh-lab-pair-{os.getpid()}"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Everything here needs root and the kernel; where that is missing it is skipped, saying what is missing."""
    here = [item for item in items if Path(__file__).parent in item.path.parents]
    if not here:
        return
    try:
        preconditions.check()
    except Refused as error:
        for item in here:
            item.add_marker(pytest.mark.skip(reason=f"the lab: {error}"))


@pytest.fixture(scope="session")
def lab() -> Iterator[Lab]:
    """Two clusters of two nodes, not connected."""
    yield from _standing(make_plan(folder=SHARED_FOLDER), connected=False)


@pytest.fixture(scope="session")
def pair() -> Iterator[Lab]:
    """Two connected clusters of one node, with one web pod each: who takes something from them gives it back."""
    yield from _standing(make_plan(nodes=1, pods=1, folder=PAIR_FOLDER), connected=True)


def _standing(plan: LabPlan, connected: bool) -> Iterator[Lab]:
    """It must leave nothing behind."""
    try:
        yield asyncio.run(bring_up.up(plan, print, connected=connected, bound=True))
    finally:
        left = teardown.down(Path(plan.folder))
    assert left == []


@pytest.fixture
def folder() -> Iterator[Path]:
    """A folder (and cgroup) for machines of one test, gone with all of them afterwards."""
    path = Path(f"/run/clustermesh-lab-test-{os.getpid()}")
    own_folder.take(path)
    cgroups.lab_cgroup(path).mkdir()
    try:
        yield path
    finally:
        left = teardown.down(path)
    assert left == []
