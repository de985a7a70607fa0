"""The chart taken out of a cluster with all that it has left on its nodes: the last of all, when alpha is connected to
nobody any more."""

from __future__ import annotations

import subprocess
from contextlib import suppress
from pathlib import Path

from mesh_web import Both

from agent.targets.routes import PROTOCOL
from lab.kubernetes.cluster import MESH, clustermesh
from lab.kubernetes.node import Node
from lab.kubernetes.workloads import run_client

_PLACES = (
    *("sys/fs/bpf/clustermesh", "run/clustermesh/agent.sock", "etc/cni/net.d/05-clustermesh.conflist"),
    *("opt/cni/bin/clustermesh-cni", "opt/cni/bin/clustermesh-cni.d"),
)


def test_nothing_of_an_agent_is_left_on_nodes_that_pods_have_cleaned(both: Both) -> None:
    alpha, _ = both
    run_client(alpha, "left")
    alpha.until_running("left")
    assert all(len(_left_on(node)) > len(_PLACES) for node in alpha.nodes)
    said = clustermesh("uninstall", "--context=alpha", "--cleanup-nodes")
    assert f"off {len(alpha.nodes)} nodes" in said
    assert [_left_on(node) for node in alpha.nodes] == [[] for _ in alpha.nodes]
    alpha.until(lambda: not alpha.pods("kube-system", MESH), "pods of the chart are gone")
    assert "no node is looked at" in clustermesh("uninstall", "--context=alpha", "--cleanup-nodes")


def _left_on(node: Node) -> list[str]:
    """Pins, files, devices and routes of ours, but for devices of pods that run."""
    root = _root(node)
    found = [each for each in _PLACES if (root / each).exists()]
    enter = ["nsenter", f"--net={root.parent / 'ns/net'}"]
    for words in ("-o link show cm-wg0", f"route show table all proto {PROTOCOL}"):
        argv = [*enter, "ip", *words.split()]
        found += subprocess.run(argv, capture_output=True, text=True, check=False).stdout.splitlines()
    return found


def _root(node: Node) -> Path:
    """As its kubelet sees it."""
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        with suppress(OSError):  # ended meanwhile
            if f"--hostname-override\0{node.name}\0" in path.read_text(errors="replace"):
                return path.parent / "root"
    raise AssertionError(f"no kubelet of {node.name}")
