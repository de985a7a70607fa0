"""A bpf filesystem that is unmounted while the agent runs is a problem until it is there again."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest
from fake_kernel import Bed

from agent.bpf import pin_folder
from agent.domains import domains, pinned
from agent.problems import find
from clustermesh.errors import Refused


class FakeFolder:
    """Stands for agent.bpf.pin_folder.PinFolder."""

    there, refusal, made, closed = True, "", 0, 0

    def is_there(self) -> bool:
        return self.there

    def put_back(self) -> int:
        if self.refusal:
            raise Refused(self.refusal)
        self.there = True
        self.made += 1
        return 3

    def close(self) -> None:
        self.closed += 1


async def until(condition: Callable[[], object]) -> None:
    async with asyncio.timeout(10):
        while not condition():
            await asyncio.sleep(0.001)


async def test_it_is_put_back_and_a_problem_where_it_cannot_be(monkeypatch: pytest.MonkeyPatch) -> None:
    bed, folder = Bed(), FakeFolder()
    monkeypatch.setattr(pin_folder, "PinFolder", lambda path, bpffs: folder)
    monkeypatch.setattr(pinned, "_PERIOD", 0)
    running = asyncio.create_task(bed.domains.pinned.run())
    folder.there = False
    await until(lambda: folder.made)
    assert bed.domains.pinned.error == ""
    folder.refusal, folder.there = "cannot mount a bpf filesystem", False
    await until(lambda: bed.domains.pinned.error)
    pods = SimpleNamespace(problems={}, unwritable="")
    first = next(iter(find(bed.domains, pods, {}, bed.peers, bed.state)))  # type: ignore[arg-type]
    assert str(first) == (
        "/sys/fs/bpf/x was unmounted or removed, and cannot be made again: cannot mount a bpf filesystem; "
        "mend that, and do not stop the agent before: programs and maps would go with it"
    )
    folder.refusal = ""
    await until(lambda: not bed.domains.pinned.error)
    assert folder.made == 2
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)
    assert folder.closed == 1


async def test_one_that_was_emptied_ends_the_agent_once_its_maps_are_pinned_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Its programs are off their hooks: the next one attaches all of them anew, over the maps of this one."""
    folder, bed, journal = FakeFolder(), Bed(), list[str]()
    monkeypatch.setattr(pin_folder, "PinFolder", lambda path, bpffs: folder)
    bed.datapath.has_links_folder, bed.datapath.has_sockets = lambda: False, lambda: False
    bed.datapath.attach_sockets = pytest.fail
    bed.datapath.pin_lost = lambda: journal.append("maps") or ["ct"]  # type: ignore[func-returns-value]
    with pytest.raises(Refused, match="has no links any more"):
        async with asyncio.timeout(10):
            await bed.domains.pinned.run()
    assert (folder.closed, journal) == (1, ["maps"])


async def test_a_folder_that_is_not_there_from_the_beginning_is_a_problem(tmp_path: Path) -> None:
    bed = Bed()
    bed.datapath.pin_dir = tmp_path / "none"
    kept = pinned.Pinned(bed.datapath, tmp_path, pytest.fail)  # type: ignore[arg-type]
    running = asyncio.create_task(kept.run())
    await until(lambda: kept.error)
    assert "No such file" in kept.error
    running.cancel()


async def test_programs_of_sockets_that_were_taken_off_are_put_back(monkeypatch: pytest.MonkeyPatch) -> None:
    bed, cgroup = Bed(), Path("/sys/fs/cgroup/x")
    monkeypatch.setattr(pin_folder, "PinFolder", lambda path, bpffs: FakeFolder())
    monkeypatch.setattr(pinned, "_PERIOD", 0)
    monkeypatch.setattr(domains, "cgroup2_root", lambda: cgroup)
    refused = True

    def attach(where: Path) -> None:
        if refused:
            raise Refused("no")
        bed.attached.append(where)

    bed.datapath.attach_sockets = attach
    bed.datapath.has_sockets = lambda: bool(bed.attached)
    watched = bed.domains.pinned
    running = asyncio.create_task(watched.run())
    await until(lambda: watched.error)
    assert watched.error == "programs of sockets are gone from /sys/fs/bpf/x, and cannot be attached again: no"
    refused = False
    await until(lambda: bed.attached and not watched.error)
    assert bed.attached == [cgroup]
    running.cancel()
