"""A lab that was interrupted at any point can be taken down, and what is left is counted, not assumed."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
from pathlib import Path

from lab_nodes import TestNode, eventually

from lab import cgroups, machine, state, teardown
from lab.plan import make_plan
from lab.processes import Process, exists, identify, lives, start_time
from lab.state import LabState


async def test_down_ends_every_process_also_one_nobody_remembers(folder: Path) -> None:
    node = await TestNode(folder, "one").start()
    machine.keep(node.home, "sleeper", ["sleep", "1000"])
    await node.run("setsid sleep 1001 >/dev/null 2>&1 &")
    pids = cgroups.processes(node.cgroup)
    assert len(pids) >= 2
    assert teardown.down(folder) == []  # there is no state.json at all
    assert [pid for pid in pids if start_time(pid) is not None] == []


async def test_a_machine_that_is_killed_does_not_live_though_its_last_process_is_not_collected(folder: Path) -> None:
    """Whose parent is outside, as that of what `clustermesh lab exec` runs, and is stopped."""
    node = await TestNode(folder, "one").start()
    assert lives(node.process)
    parent = await asyncio.create_subprocess_exec("nsenter", f"--target={node.process.pid}", "--pid", "sleep", "1000")
    children = Path(f"/proc/{parent.pid}/task/{parent.pid}/children")
    try:
        await eventually(lambda: bool(children.read_text()), "the process is there")
        (pid,) = map(int, children.read_text().split())
        parent.send_signal(signal.SIGSTOP)
        await eventually(lambda: " T " in Path(f"/proc/{parent.pid}/stat").read_text(), "it is stopped")
        os.kill(node.process.pid, signal.SIGKILL)
        await eventually(lambda: start_time(pid) is None, "all in it have ended")
        assert exists(node.process)
        assert not lives(node.process)
    finally:
        parent.send_signal(signal.SIGCONT)
        await parent.wait()
    await eventually(lambda: not exists(node.process), "it has ended")


async def test_down_twice_and_down_of_nothing_is_fine(folder: Path) -> None:
    await TestNode(folder, "one").start()
    assert teardown.down(folder) == []
    assert teardown.down(folder) == []


async def test_down_works_with_a_broken_state_file(folder: Path) -> None:
    await TestNode(folder, "one").start()
    (folder / "state.json").write_text('{"plan": ')
    assert teardown.down(folder) == []


async def test_everything_that_is_left_is_named(folder: Path) -> None:
    node = await TestNode(folder, "one").start()
    names = machine.namespaces(node.process)
    plan = make_plan(folder=str(folder))
    known = LabState(plan=plan, processes={"one": node.process}, namespaces=names, host=teardown.host_network())
    left = teardown.left_behind(folder, known, set())
    assert f"process {node.process.pid}" in left
    assert f"cgroup {node.cgroup}" in left
    assert f"file {node.home}/node.json" in left
    assert {f"namespace {name}" for name in names} <= set(left)


def test_a_link_or_rule_that_appeared_on_the_host_is_named(folder: Path) -> None:
    """Tried on what was there "before": an empty host, so that everything of the lab's names seems new."""
    plan = make_plan(folder=str(folder))
    known = LabState(plan=plan, host=[])
    rules = [line for line in teardown.left_behind(folder, known, set()) if line.startswith("rule ")]
    assert rules  # every host has the three default ones
    known.host = teardown.host_network()
    assert [line for line in teardown.left_behind(folder, known, set()) if line.startswith(("rule ", "link "))] == []


def test_a_pid_given_to_someone_else_is_never_killed(folder: Path) -> None:
    bystander = subprocess.Popen(["sleep", "1000"])
    try:
        real = identify(bystander.pid)
        assert real is not None
        stale = Process(pid=real.pid, start=real.start - 1)
        plan, host = make_plan(folder=str(folder)), teardown.host_network()
        state.save(LabState(plan=plan, processes={"alpha-1": stale}, host=host))
        assert teardown.down(folder) == []
        assert lives(real)
    finally:
        bystander.kill()
        bystander.wait()


def test_a_lab_whose_owner_died_is_not_standing(folder: Path) -> None:
    plan, me = make_plan(folder=str(folder)), identify(os.getpid())
    assert me is not None
    machines = {planned.name: me for planned in plan.machines}
    dead = Process(pid=me.pid, start=me.start - 1)
    assert LabState(plan=plan, complete=True, processes=machines).standing()
    assert LabState(plan=plan, complete=True, processes=machines, owner=me).standing()
    assert not LabState(plan=plan, complete=True, processes=machines, owner=dead).standing()
    assert not LabState(plan=plan, complete=False, processes=machines).standing()
    assert not LabState(plan=plan, complete=True, processes=machines | {"alpha-1": dead}).standing()
