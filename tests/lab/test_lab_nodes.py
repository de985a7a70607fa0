"""A node of the lab: what it has of its own, what it cannot touch, and how it ends.

host ── node "one"  (net, mount, pid, cgroup, uts namespaces; /run, /var/lib, bpffs, cgroup2 of its own)
     └─ node "two"
"""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest
from lab_nodes import TestNode, eventually

from clustermesh.errors import Refused
from lab import cgroups, machine, node_spec
from lab.processes import exists, lives


async def test_two_nodes_share_no_namespace_with_each_other_or_the_host(folder: Path) -> None:
    one, two = await TestNode(folder, "one").start(), await TestNode(folder, "two").start()
    mine = {os.readlink(f"/proc/self/ns/{kind}") for kind in ("mnt", "net", "pid", "cgroup", "uts")}
    sets = [set(machine.namespaces(one.process)), set(machine.namespaces(two.process)), mine]
    assert [len(names) for names in sets] == [5, 5, 5]
    assert len(set.union(*sets)) == 15


async def test_a_node_sees_its_own_processes_links_and_name_only(folder: Path) -> None:
    node = await TestNode(folder, "one").start()
    assert (await node.run("hostname")).strip() == "one"
    assert (await node.run("ls /sys/class/net")).split() == ["lo"]
    pids = (await node.run("cd /proc && echo [0-9]*")).split()
    assert pids[0] == "1"
    assert len(pids) <= 4  # the first process, the shell that asked, and what that ran


async def test_its_cgroup_is_the_root_of_its_tree(folder: Path) -> None:
    node, root = await TestNode(folder, "one").start(), cgroups.cgroup2_root()
    assert "0::/\n" in await node.run("cat /proc/self/cgroup")
    await node.run(f"mkdir {root}/below")
    assert (node.cgroup / "below").is_dir()


async def test_on_a_host_with_cgroup2_alone_it_is_at_the_usual_place(folder: Path) -> None:
    node = await TestNode(folder, "one").start(cgroup2="/sys/fs/cgroup")
    assert "cgroup.procs" in (await node.run("ls /sys/fs/cgroup")).split()
    await node.run("mkdir /sys/fs/cgroup/below")
    assert (node.cgroup / "below").is_dir()


async def test_what_it_writes_below_run_var_lib_and_bpffs_is_its_own(folder: Path) -> None:
    one, two = await TestNode(folder, "one").start(), await TestNode(folder, "two").start()
    places = [f"{place}/lab-test-{os.getpid()}" for place in ("/run", "/var/lib", "/sys/fs/bpf")]
    await one.run("mkdir " + " ".join(places))
    for place in places:
        assert (await one.run(f"test -d {place} && echo there")).strip() == "there"
        assert (await two.run(f"test -d {place} || echo absent")).strip() == "absent"
        assert not Path(place).exists()


async def test_it_has_nothing_of_what_an_agent_of_the_host_keeps(folder: Path) -> None:
    kept = Path(f"/var/lib/clustermesh/lab-test-{os.getpid()}")
    had = kept.parent.exists()
    kept.mkdir(parents=True)
    try:
        node = await TestNode(folder, "one").start()
        assert (await node.run(f"test -e {kept.parent} || echo absent")).strip() == "absent"
        assert kept.exists()
    finally:
        kept.rmdir()
        if not had:
            kept.parent.rmdir()


async def test_nothing_is_mounted_on_the_host(folder: Path) -> None:
    """Of all that it mounts; whoever else mounts something meanwhile is not asked."""
    own = ("/mnt", "/proc", "/run", "/sys", "/sys/fs/bpf", "/var/lib", str(cgroups.cgroup2_root()), str(folder))
    before = _mounts()
    node = await TestNode(folder, "one").start(private=["/mnt"])
    assert " /mnt " in await node.run("cat /proc/self/mountinfo")
    assert [line for line in _mounts() - before if line.split()[4] in own or str(folder) in line] == []


async def test_it_does_not_ask_the_hosts_name_server(folder: Path) -> None:
    node = await TestNode(folder, "one").start()
    assert "nameserver" not in await node.run("cat /etc/resolv.conf")


async def test_killing_its_first_process_ends_everything_in_it(folder: Path) -> None:
    node = await TestNode(folder, "one").start()
    machine.keep(node.home, "sleeper", ["sleep", "1000"])
    await node.run("setsid sleep 1001 >/dev/null 2>&1 &")
    await eventually(lambda: len(cgroups.processes(node.cgroup)) == 3, "both run beside the first process")
    os.kill(node.process.pid, 9)
    await eventually(lambda: cgroups.processes(node.cgroup) == [], "no process is left")


async def test_it_ends_when_its_folder_is_removed(folder: Path) -> None:
    node = await TestNode(folder, "one").start()
    shutil.rmtree(node.home)
    await eventually(lambda: not exists(node.process), "the node ends")


async def test_it_ends_when_its_owner_does(folder: Path) -> None:
    reading, writing = os.pipe()
    node = await TestNode(folder, "one").start(lifeline=reading)
    os.close(reading)
    assert lives(node.process)
    os.close(writing)  # what the kernel does for an owner that was killed
    await eventually(lambda: not exists(node.process), "the node ends")


async def test_a_killed_service_is_started_again_and_a_removed_one_is_not(folder: Path) -> None:
    node = await TestNode(folder, "one").start()
    machine.keep(node.home, "sleeper", ["sleep", "1000"], restart=0.1)
    await eventually(lambda: _pid(node) > 0, "it runs")
    first = _pid(node)
    await node.run(f"kill -KILL {first}")
    await eventually(lambda: _pid(node) not in (0, first), "it runs again")
    assert node_spec.read_running(node.home)["sleeper"].starts == 2
    machine.stop(node.home, "sleeper")
    await eventually(lambda: _pid(node) == 0, "it is stopped")


async def test_a_service_that_ignores_sigterm_is_killed(folder: Path) -> None:
    node = await TestNode(folder, "one").start()
    machine.keep(node.home, "stubborn", ["sh", "-c", "trap '' TERM; echo ready; while :; do sleep 1; done"])
    log = node.home / "log" / "stubborn.log"
    await eventually(lambda: log.exists() and "ready" in log.read_text(), "it runs")
    machine.stop(node.home, "stubborn")
    await eventually(lambda: _pid(node, "stubborn") == 0, "it is stopped")


async def test_orphans_are_reaped(folder: Path) -> None:
    node = await TestNode(folder, "one").start()
    machine.keep(node.home, "idle", ["sleep", "1000"])
    await node.run("(sleep 0.05 &) ; exit 0")
    await eventually(
        lambda: len(list(Path(f"/proc/{node.process.pid}/root/proc").glob("[0-9]*"))) == 2, "only two left"
    )


async def test_a_node_that_cannot_be_made_says_why(folder: Path) -> None:
    with pytest.raises(Refused, match=r"node one cannot be made: .*no-such-folder"):
        await TestNode(folder, "one").start(private=["/no-such-folder"])


def _mounts() -> set[str]:
    return {*Path("/proc/self/mountinfo").read_text().splitlines()}


def _pid(node: TestNode, service: str = "sleeper") -> int:
    running = node_spec.read_running(node.home).get(service)
    return running.pid if running else 0
