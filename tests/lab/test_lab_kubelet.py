"""The lab's kubelet on one node, with a CNI plugin that is a veth pair: Pods from YAML, status back into it."""

from __future__ import annotations

import json
import os
import shutil
import signal
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import yaml
from lab_nodes import TestNode, eventually

from lab import cgroups, machine, manifests, node_spec
from lab.plan import PodPlan

PLUGIN = Path(__file__).with_name("cni_for_tests.py")
CLIENT = Path(manifests.__file__).with_name("client.py")


class KubeletNode:
    """A node with a kubelet and a manifests folder; the plugin refuses its first `fail` ADDs of each Pod."""

    def __init__(self, node: TestNode, bin_folder: Path, fail: int) -> None:
        self.node, self.manifests = node, node.home / "manifests"
        self.manifests.mkdir()
        shutil.copy(PLUGIN, bin_folder / "cni-for-tests")  # not below /run, where Debian lets nothing be executed
        (bin_folder / "cni-for-tests").chmod(0o755)
        (node.home / "cni.conf").write_text(json.dumps({"type": "cni-for-tests", "fail": fail}))
        options = {
            "--node": "one",
            "--host-ips": "172.20.1.11",
            "--manifests": self.manifests,
            "--cni-conf": node.home / "cni.conf",
            "--cni-bin": bin_folder,
            "--cgroup2": cgroups.cgroup2_root(),
        }
        words = [str(word) for pair in options.items() for word in pair]
        machine.keep(node.home, "kubelet", [str(machine.bin_folder() / "python"), "-m", "lab.kubelet", *words])

    def apply(self, name: str, role: str = "web", **changes: Any) -> None:
        document = manifests.pod(PodPlan(name=name, cluster="alpha", node="one", role=role))
        document["spec"] |= changes
        manifests.write(self.manifests, {manifests.pod_file(name): document})

    def status(self, name: str) -> dict[str, Any]:
        try:
            document = yaml.safe_load((self.manifests / manifests.pod_file(name)).read_text())
        except FileNotFoundError:
            return {}
        status: dict[str, Any] = document.get("status") or {}
        return status

    def ready(self, name: str) -> bool:
        return {"type": "Ready", "status": "True"}.items() <= self._condition(name).items()

    def _condition(self, name: str) -> dict[str, Any]:
        conditions = self.status(name).get("conditions", [])
        return next((condition for condition in conditions if condition["type"] == "Ready"), {})

    async def calls(self, name: str) -> list[str]:
        """What the plugin was called with for a Pod."""
        return [line.strip() for line in (await self.node.run(f"cat /run/cni-calls/{name}")).splitlines()]

    def processes(self, name: str) -> list[int]:
        return cgroups.processes(self.node.cgroup / "kubepods" / f"default_{name}")


@pytest.fixture
async def start(folder: Path, tmp_path: Path) -> Any:
    async def started(fail: int = 0) -> KubeletNode:
        node = await TestNode(folder, "one").start()
        await node.run("ip link set lo up")
        return KubeletNode(node, tmp_path, fail)

    return started


async def test_a_pod_gets_an_address_runs_and_is_reported_ready(start: Any) -> None:
    kubelet = await start()
    kubelet.apply("web-1")
    await eventually(lambda: kubelet.ready("web-1"), "it is Ready")
    status = kubelet.status("web-1")
    assert status["phase"] == "Running"
    assert status["podIPs"] == [{"ip": status["podIP"]}]
    assert status["hostIP"] == "172.20.1.11"
    assert await kubelet.calls("web-1") == ["ADD", "CHECK with result"]


async def test_pods_reach_each_other_and_live_in_cgroups_below_the_node(start: Any) -> None:
    kubelet = await start()
    kubelet.apply("web-1")
    kubelet.apply("client", "client")
    await eventually(lambda: kubelet.ready("web-1") and kubelet.ready("client"), "both are Ready")
    address = kubelet.status("web-1")["podIP"]
    said = await kubelet.node.run(
        f"python3 -IS {CLIENT} {address} 8080 --kinds all --rate 60 --seconds 0.2 && cat /proc/self/cgroup",
        pod="default_client",
    )
    records = [record for line in said.splitlines()[:-1] if "records" in line for record in json.loads(line)["records"]]
    assert len(records) == 12
    assert {(cluster, error) for _, _, cluster, error, _ in records} == {("alpha", None)}
    assert "0::/kubepods/default_client" in said


async def test_add_is_tried_again_until_the_agent_is_there_with_a_del_after_each_failure(start: Any) -> None:
    kubelet = await start(fail=2)
    kubelet.apply("web-1")
    await eventually(lambda: kubelet.ready("web-1"), "it is Ready")
    assert await kubelet.calls("web-1") == ["ADD", "DEL", "ADD", "DEL", "ADD", "CHECK with result"]


async def test_a_deleted_pod_serves_on_for_its_grace_second_and_then_ends(start: Any) -> None:
    kubelet = await start()
    kubelet.apply("web-1", terminationGracePeriodSeconds=5)
    await eventually(lambda: kubelet.ready("web-1"), "it is Ready")
    mark = await kubelet.node.run("date +%s.%N")
    manifests.remove(kubelet.manifests, manifests.pod_file("web-1"))
    assert kubelet.processes("web-1") != []
    await eventually(lambda: not (kubelet.node.cgroup / "kubepods" / "default_web-1").exists(), "it ended")
    assert float(await kubelet.node.run("date +%s.%N")) - float(mark) >= 1.0  # the preStop sleep, never less
    assert (await kubelet.calls("web-1"))[-1] == "DEL with result"
    assert (await kubelet.node.run("ls /run/netns")).split() == []
    assert kubelet.status("web-1") == {}
    assert list(kubelet.manifests.glob("*")) == []  # neither the Pod nor half a status came back


async def test_a_container_that_ends_makes_its_pod_unready_and_is_started_again(start: Any) -> None:
    kubelet = await start()
    kubelet.apply("web-1")
    await eventually(lambda: kubelet.ready("web-1"), "it is Ready")
    first = kubelet.processes("web-1")
    for pid in first:
        os.kill(pid, signal.SIGKILL)
    await eventually(lambda: not kubelet.ready("web-1"), "it is not Ready")
    await eventually(lambda: kubelet.ready("web-1"), "it is Ready again")
    assert not set(first) & set(kubelet.processes("web-1"))


async def test_a_pod_of_the_same_name_waits_until_the_old_one_ended(start: Any) -> None:
    kubelet = await start()
    kubelet.apply("web-1")
    await eventually(lambda: kubelet.ready("web-1"), "it is Ready")
    old = kubelet.processes("web-1")
    kubelet.apply("web-1")  # another uid: another Pod
    await eventually(lambda: not kubelet.ready("web-1"), "the new one is not Ready yet")
    await eventually(lambda: kubelet.ready("web-1"), "the new one is Ready")
    assert not set(old) & set(kubelet.processes("web-1"))
    assert await kubelet.calls("web-1") == ["ADD", "CHECK with result", "DEL with result", "ADD", "CHECK with result"]


async def test_a_killed_kubelet_comes_back_and_its_pods_too(start: Any) -> None:
    kubelet = await start()
    kubelet.apply("web-1")
    await eventually(lambda: kubelet.ready("web-1"), "it is Ready")
    old = kubelet.processes("web-1")
    await kubelet.node.run(f"kill -KILL {node_spec.read_running(kubelet.node.home)['kubelet'].pid}")
    await eventually(lambda: not set(old) & set(kubelet.processes("web-1")), "the old one is removed")
    await eventually(lambda: kubelet.ready("web-1") and kubelet.processes("web-1") != [], "a new one is Ready")


async def test_what_is_not_a_pod_of_this_node_or_not_yaml_is_left_alone(start: Any) -> None:
    kubelet = await start()
    (kubelet.manifests / "broken.yaml").write_text("a: [\n")
    (kubelet.manifests / "half.yaml").write_text("kind: Pod\nmetadata: {name: half}\n")
    other = manifests.pod(PodPlan(name="elsewhere", cluster="alpha", node="two", role="web"))
    manifests.write(kubelet.manifests, {"elsewhere.yaml": other})
    kubelet.apply("web-1")
    await eventually(lambda: kubelet.ready("web-1"), "the good one is Ready")
    assert "status" not in yaml.safe_load((kubelet.manifests / "elsewhere.yaml").read_text())
    assert _names(await kubelet.node.run("ls /run/cni-calls")) == ["web-1"]


def _names(listing: str) -> Sequence[str]:
    return listing.split()
