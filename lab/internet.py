"""The bridge that joins all machines, in a network namespace of its own: the host's gets nothing at all."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from lab import machine
from lab.plan import INTERNET, UNDERLAY_LENGTH, LabPlan, family_of
from lab.processes import Process


def bridge_batch(plan: LabPlan, processes: Mapping[str, Process]) -> str:
    """Commands for `ip -batch` in the internet's namespace: a bridge, and a cable into each machine, named after it."""
    lines = ["link set lo up", "link add br0 type bridge forward_delay 0 mcast_snooping 0", "link set br0 up"]
    for planned in plan.machines:
        lines.append(f"link add {planned.name} type veth peer name eth0 netns {processes[planned.name].pid}")
        lines.append(f"link set {planned.name} master br0 up")
    return "\n".join(lines) + "\n"


def machine_batch(addresses: Sequence[str]) -> str:
    """Commands for `ip -batch` in a machine's namespace. The underlay is one link; there is no default route."""
    lines = ["link set lo up", "link set eth0 addrgenmode none"]
    for address in addresses:
        nodad = " nodad" if family_of(address) == "ipv6" else ""
        lines.append(f"address add {address}/{UNDERLAY_LENGTH[family_of(address)]} dev eth0{nodad}")
    return "\n".join([*lines, "link set eth0 up"]) + "\n"


async def wire(plan: LabPlan, processes: Mapping[str, Process]) -> None:
    """Plug every machine in. Refused with the words of `ip` where that fails."""
    await _ip(processes[INTERNET], bridge_batch(plan, processes))
    for planned in plan.machines:
        await _ip(processes[planned.name], machine_batch(planned.addresses))


async def _ip(process: Process, batch: str) -> None:
    await machine.run(["nsenter", f"--net=/proc/{process.pid}/ns/net", "--", "ip", "-batch", "-"], stdin=batch)
