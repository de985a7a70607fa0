"""The agent as the chart starts it, in a network of its own, with the two capabilities that the chart gives it.

this machine                                    network namespace
kube-apiserver, API server's pod   10.209.N.1 ══ 10.209.N.2   agent's pod: hosts-init, agent; node w1
"""

from __future__ import annotations

import asyncio
import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from chart_bed import MISSING, merged, named
from kube_bed import KubeBed
from pod_bed import Pod, missing
from processes import child
from test_chart_runs import installed, running, values

from agent.bpf.bpffs import cgroup2_root
from agent.process import find_listener
from agent.wireguard.kernel import find_lack
from clustermesh.joining.node_cleanup import cleanup_of
from clustermesh.kube.hosts import hosts_text

pytestmark = pytest.mark.skipif(bool(MISSING or missing()), reason=MISSING or missing())

NAME = f"cmchart{os.getpid() % 100000}"
_NUMBER = os.getpid() % (1 << 14)  # of a /30 in 10.209.0.0/16
HERE, THERE = (f"10.209.{_NUMBER >> 6}.{(_NUMBER & 63) * 4 + host}" for host in (1, 2))
NODE = {
    "apiVersion": "v1",
    "kind": "Node",
    "metadata": {"name": "w1"},
    "spec": {"podCIDR": "10.1.0.0/24"},
    "status": {"addresses": [{"type": "InternalIP", "address": THERE}]},
}
_ASK = "import sys, urllib.request; sys.stdout.write(urllib.request.urlopen(sys.argv[1], timeout=5).read().decode())"


def ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True)


@pytest.fixture
def node(bed: KubeBed) -> Iterator[None]:
    bed.create(NODE)
    yield
    bed.delete(NODE)


@pytest.fixture
def network() -> Iterator[Path]:
    """The network namespace NAME, and a cgroup for what is attached there."""
    root = cgroup2_root()
    if root is None or shutil.which("nsenter") is None:
        pytest.skip("cgroup2 or nsenter is missing")
    cgroup = root / NAME
    try:
        ip("netns", "add", NAME)
        ip("link", "add", NAME, "type", "veth", "peer", "name", "eth0", "netns", NAME)
        ip("addr", "add", f"{HERE}/30", "dev", NAME)
        ip("link", "set", NAME, "up")
        for line in (
            "link set lo up",
            f"addr add {THERE}/30 dev eth0",
            "link set eth0 up",
            f"route add default via {HERE}",
        ):
            ip("-n", NAME, *line.split())
        cgroup.mkdir()
        yield cgroup
    finally:
        inside = subprocess.run(["ip", "netns", "pids", NAME], capture_output=True, text=True, check=False).stdout
        for pid in inside.split():
            os.kill(int(pid), 9)  # wireguard-go, which outlives who started it
        subprocess.run(["ip", "netns", "del", NAME], check=False)
        subprocess.run(["ip", "link", "del", NAME], check=False, stderr=subprocess.DEVNULL)
        if cgroup.exists():
            cgroup.rmdir()


def node_of(folder: Path, cgroup: Path) -> list[str]:
    """What a node has and its agent's pod mounts: a bpf filesystem, and its cgroup."""
    for name in ("bpf", "cgroup"):
        (folder / name).mkdir(exist_ok=True)
    return [
        f"mount -t bpf bpf {folder}/bpf",
        f"mount --bind {cgroup} {folder}/cgroup",
        "umount -R -l /sys/fs/cgroup",
        "mkdir -p /sys/fs/cgroup /sys/fs/bpf",
    ]


async def test_the_agent_is_ready_with_the_capabilities_that_the_chart_names(
    bed: KubeBed, namespace: str, tmp_path: Path, network: Path, node: None
) -> None:
    alone: dict[str, Any] = {"clustermesh": {"config": {"enabled": False, "clusters": []}}}
    said = merged(values(), alone)  # an agent waits a while for clusters that it knows of
    objects = installed(bed, namespace, said)
    agents = named(objects, "DaemonSet", "clustermesh-agent")
    daemons = [agents, named(objects, "DaemonSet", "clustermesh-wireguard")]
    templates = [each["spec"]["template"] for each in daemons]
    templates += [{"spec": cleanup_of(agents)}, probing(templates[1])]
    async with running(bed, tmp_path, namespace, said, HERE):
        pod, wireguard, cleanup, probe = (Pod(bed, tmp_path / "agent", namespace, each, THERE) for each in templates)
        async with pod.run("hosts-init") as init:
            assert await init.wait() == 0
        hosts = pod.path("hosts") / "hosts"
        hosts.write_text(hosts_text(hosts.read_text(), f"clustermesh-apiserver.{namespace}.svc", [HERE]))
        pod.path("tun").rmdir()
        pod.path("tun").symlink_to("/dev/net/tun")
        async with probe.run("wireguard", NAME) as early:
            assert await early.wait() == 1
        async with wireguard.run("wireguard", NAME):
            async with pod.run("agent", NAME, node_of(tmp_path / "agent", network)) as agent:
                assert await until_ready(agent) == "ok\n"
            assert await find_lack() is None or find_listener(pod.path("wireguard") / "cm-wg0.sock") is not None
            async with probe.run("wireguard", NAME) as late:
                assert await late.wait() == 0
    async with child("ip", "-n", NAME, "link", "show", "cm-wg0") as looking:
        assert await looking.wait() == 0
    for _ in range(2):  # the same again finds nothing
        async with cleanup.run("cleanup", NAME, node_of(tmp_path / "agent", network)) as cleaning:
            assert await cleaning.wait() == 0
        async with child("ip", "-n", NAME, "link", "show", "cm-wg0") as looking:
            assert await looking.wait() == 1


def probing(template: dict[str, Any]) -> dict[str, Any]:
    """Its container, which runs the command of its readinessProbe."""
    (container,) = template["spec"]["containers"]
    command = container["readinessProbe"]["exec"]["command"]
    return {"spec": template["spec"] | {"containers": [container | {"command": command}]}}


async def until_ready(agent: Any) -> str:
    """What the agent's /readyz says in the end."""
    said = ""
    for _ in range(300):
        assert agent.returncode is None, "it has ended"
        argv = ["nsenter", f"--net=/run/netns/{NAME}", "/usr/bin/python3", "-c", _ASK, "http://127.0.0.1:9962/readyz"]
        done = await asyncio.to_thread(subprocess.run, argv, capture_output=True, text=True, check=False)
        if done.returncode == 0:
            return done.stdout
        said = done.stderr[-200:]
        await asyncio.sleep(0.2)
    raise AssertionError(said)
