"""`clustermesh why` on a node of a real mesh: its agent, its kernel's maps, its own etcd and the peer's."""

from __future__ import annotations

import json
import os
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from lab import teardown
from lab.machine import bin_folder

PROGRAM = str(bin_folder() / "clustermesh")
SECONDS = 100.0
SMALL = ["--clusters", "2", "--nodes", "1", "--pods", "1"]


@pytest.fixture(scope="module")
def folder() -> Iterator[Path]:
    path = Path(f"/run/clustermesh-lab-why-{os.getpid()}")
    try:
        assert run("lab", "up", "--folder", str(path), *SMALL).returncode == 0
        yield path
    finally:
        assert teardown.down(path) == []


def run(*words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([PROGRAM, *words], capture_output=True, text=True, timeout=SECONDS, check=False)


def why(folder: Path, subject: str, used: bool = True) -> dict[str, Any]:
    done = ask(folder, subject)
    assert done.returncode == (0 if used else 1), done.stderr
    found: dict[str, Any] = json.loads(done.stdout)
    assert found["used"] is used
    return found


def ask(folder: Path, subject: str) -> subprocess.CompletedProcess[str]:
    return run("lab", "exec", "--folder", str(folder), "alpha-1", "--", PROGRAM, "why", subject, "-o", "json")


def until_in_the_kernel(folder: Path, subject: str, words: set[str]) -> dict[str, Any]:
    """As told once the maps have all of `words` for it: a lab is up when its pods are."""
    ends = time.monotonic() + SECONDS
    while True:
        done = ask(folder, subject)
        found: dict[str, Any] = json.loads(done.stdout or "{}")
        kernel = [hop["says"] for hop in found.get("hops", ()) if hop["hop"] == "kernel"]
        if done.returncode == 0 and kernel and all(word in says for says in kernel for word in words):
            return found
        assert time.monotonic() < ends, (kernel, done.stderr)
        time.sleep(0.2)


def test_a_service_is_followed_from_its_source_to_the_kernels_maps(folder: Path) -> None:
    found = until_in_the_kernel(folder, "default/web", {"alpha", "beta"})
    assert {("source", "beta"), ("peer", "beta"), ("etcd", "alpha"), ("agent", "beta")} < {
        (hop["hop"], hop["cluster"]) for hop in found["hops"]
    }
    seen = [
        hop["seen"]["at"] for hop in found["hops"] if hop["cluster"] == "alpha" and hop["hop"] in ("source", "etcd")
    ]
    assert seen == sorted(seen)
    assert all(each["used"] for each in found["findings"])


def test_a_pod_its_node_and_its_identity_are_known_to_the_kernel(folder: Path) -> None:
    pods = json.loads(run("lab", "status", "--folder", str(folder), "-o", "json").stdout)["pods"]
    address = next(pod["address"] for pod in pods if pod["cluster"] == "beta" and pod["name"] == "web-1")
    found = until_in_the_kernel(folder, address, {"identity"})
    entry = next(hop for hop in found["hops"] if hop["hop"] == "kernel")
    number = entry["says"].split()[1]
    assert entry["what"] == f"ipcache {address}"
    assert found["findings"][0]["of"] == f"pod default/web-1 at {address} of beta"
    assert why(folder, number)["findings"][0]["of"] == f"identity {number}"
    why(folder, "203.0.113.9", used=False)
