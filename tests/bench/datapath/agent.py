"""The agent with 10,000 services of 10 backends: from desired state to the kernel, a change, its memory, its CPU."""

from __future__ import annotations

import asyncio
import json
import os
import statistics
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

from clustermesh.errors import ClusterMeshError
from lab import bring_up, machine, teardown
from lab.lab import Lab
from lab.plan import make_plan
from tests.bench.bench_agent import manifest
from tests.bench.frame import Together
from tests.bench.middle.agent import changes, inside, own_service
from tests.bench.middle.datapath import program_10000

_SERVICES, _BACKENDS = 10_000, 10
_FOLDER: Final = Path("/run/clustermesh-lab-bench")
_NODE: Final = "alpha-1"
_ROUNDS: Final = 5
_CHANGING: Final = 200  # services, in turn
_NEW: Final = "10.90."  # where endpoints move to
_RATE: Final = 100  # changes a second
_WINDOW: Final = 10.0  # seconds that CPU is read over
_WINDOWS: Final = 4  # the kernel's tables are read whole every 30 s: one of them has that in it
_TO_A_FILE: Final = 500  # objects, well below the megabyte that a file may have
_PATIENCE: Final = 120.0


async def change_one() -> list[float]:
    """p50 of each round, in ms: a service's key says another backend, until that is in the map."""
    async with inside() as bench:
        for number in range(_SERVICES):
            bench.take(*own_service(number, 0))
        await bench.settle()
        return [statistics.median(await changes(bench, round_)) for round_ in range(_ROUNDS)]


async def whole(wanted: Sequence[str]) -> dict[str, list[float]]:
    """A real agent in a lab: its memory once all is programmed, its CPU when nothing and when much changes."""
    plan = make_plan(clusters=1, nodes=1, pods=1, folder=str(_FOLDER))
    found = {}
    try:
        lab = await bring_up.up(plan, lambda _said: None, bound=True)
        await asyncio.to_thread(_write, lab, manifest(_SERVICES, _BACKENDS)["items"])
        await _until_programmed(lab)
        await asyncio.sleep(_WINDOW)  # what was heard is saved
        if "agent_rss_mb" in wanted:
            found["agent_rss_mb"] = [_resident_mb(lab)]
        if "idle_cpu_percent" in wanted:
            found["idle_cpu_percent"] = [await _cpu_percent(lab) for _ in range(_WINDOWS)]
        if "changes_cpu_percent" in wanted:
            changing = asyncio.create_task(_change(lab))
            found["changes_cpu_percent"] = [await _cpu_percent(lab) for _ in range(_WINDOWS)]
            changing.cancel()
            await _check_changed(lab)
        return found
    finally:
        teardown.down(_FOLDER)


FIGURES = {
    "program_10000_s": program_10000,
    "change_one_ms": change_one,
    **dict.fromkeys(("agent_rss_mb", "idle_cpu_percent", "changes_cpu_percent"), Together(whole)),
}


def _write(lab: Lab, items: list[dict[str, Any]]) -> None:
    """Some hundred to a file, but the slices that are to change in one each."""
    for number, each in enumerate(_slices(items)):
        _put(lab, f"slice-{number}", [each])
    kept = [each for each in items[: 2 * _CHANGING] if each["kind"] == "Service"] + items[2 * _CHANGING :]
    for begin in range(0, len(kept), _TO_A_FILE):
        _put(lab, f"services-{begin}", kept[begin : begin + _TO_A_FILE])


def _slices(items: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [each for each in items[: 2 * _CHANGING] if each["kind"] == "EndpointSlice"]


def _put(lab: Lab, name: str, items: list[dict[str, Any]]) -> None:
    """A manifest, as JSON, which is YAML as well."""
    folder = lab.plan.context("alpha") / "manifests"
    part = folder / f".{name}.part"
    part.write_text(json.dumps({"apiVersion": "v1", "kind": "List", "items": items}))
    os.replace(part, folder / f"{name}.yaml")


async def _change(lab: Lab) -> None:
    """One endpoint after the other, at the rate, until cancelled."""
    items = _slices(manifest(_CHANGING, _BACKENDS)["items"])
    began, number = time.monotonic(), 0
    while True:
        each = items[number % _CHANGING]
        each["endpoints"][0]["addresses"] = [f"{_NEW}{number // 250 % 250}.{number % 250 + 1}"]
        _put(lab, f"slice-{number % _CHANGING}", [each])
        number += 1
        await asyncio.sleep(max(began + number / _RATE - time.monotonic(), 0.0))


async def _check_changed(lab: Lab) -> None:
    """RuntimeError where the agent has not heard of the changes."""
    services = await lab.ask_agent(_NODE, "services")
    changed = [each for each in services if any(b["address"].startswith(_NEW) for b in each["backends"])]
    if len(changed) < _CHANGING:
        raise RuntimeError(f"{len(changed)} of {_CHANGING} services have another endpoint")


async def _until_programmed(lab: Lab) -> None:
    async with asyncio.timeout(_PATIENCE):
        while await _programmed(lab) < _SERVICES:
            await asyncio.sleep(0.5)


async def _programmed(lab: Lab) -> int:
    try:
        status = await lab.ask_agent(_NODE, "status")
    except ClusterMeshError:
        return 0
    services = next(each for each in status["targets"] if each["name"] == "services")
    return services["actual"] if status["ready"] and not services["pending"] else 0


def _proc(lab: Lab, name: str) -> str:
    """A file of the agent's in /proc."""
    return machine.inside(lab.process(_NODE), f"/proc/{lab.service_pid(_NODE, 'agent')}/{name}").read_text()


def _resident_mb(lab: Lab) -> float:
    line = next(line for line in _proc(lab, "status").splitlines() if line.startswith("VmRSS"))
    return int(line.split()[1]) / 1024


async def _cpu_percent(lab: Lab) -> float:
    """Of one core, over a window."""
    began, before = time.monotonic(), _ran(lab)
    await asyncio.sleep(_WINDOW)
    return (_ran(lab) - before) / 1e7 / (time.monotonic() - began)


def _ran(lab: Lab) -> int:
    """Nanoseconds of all its threads. They are few and stay."""
    folder = machine.inside(lab.process(_NODE), f"/proc/{lab.service_pid(_NODE, 'agent')}/task")
    return sum(int((each / "schedstat").read_text().split()[0]) for each in folder.iterdir())
