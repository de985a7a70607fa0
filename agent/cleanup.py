"""Everything of an agent taken off a node: what it left in the kernel, and, where that is asked for, what it kept.

    systemctl disable --now clustermesh-agent && clustermesh node cleanup

Programs and maps, then the tunnels' device, its routes and the blackholes under them, and the router addresses once no
pod has them for a gateway. What is gone already is no fault, so that whatever ends this in between, another run
completes it. Pods keep their devices and routes as long as they run; with --all-state these go, too, and the node's
key, what was kept of clusters and the records of pods. Settings of the kernel (forwarding, reverse path filters) stay:
nobody knows what they were; of the ports that sockets are not given it is known, and the agent's are given again.
"""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import sys
from argparse import ArgumentParser, Namespace
from collections.abc import AsyncIterator, Iterator
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Final

from agent import netlink
from agent.api import alone, alone_in_network, alone_over
from agent.bpf.bpffs import is_bpffs
from agent.bpf.loader import Datapath
from agent.cni import veth
from agent.cni.endpoint import decode
from agent.cni.plugin import QUEUE
from agent.plan.devices import parse_device
from agent.process import find_listener, runs
from agent.reserved_ports import ReservedPorts
from agent.rtnetlink import RouteSocket
from agent.targets.routes import PROTOCOL
from agent.wireguard.device import NAME
from agent.wireguard.userspace import SOCKETS
from clustermesh.address import prefix_text, text
from clustermesh.errors import ClusterMeshError, Invalid

_KEPT: Final = ("wireguard.key", "wireguard-go.log", "clusters", "endpoints", "bcc")  # in the state folder
_BPFFS: Final = Path("/sys/fs/bpf")
_PATIENCE: Final = 5.0  # seconds for wireguard-go to end once its device is gone
_LOOK: Final = 0.02


def main(arguments: list[str] | None = None) -> None:
    """`clustermesh node cleanup`. Exit codes: 0 nothing is left, 1 failed."""
    parser = ArgumentParser(prog="clustermesh node cleanup", description=__doc__.splitlines()[0])
    parser.add_argument("--bpffs", type=Path, default=_BPFFS, metavar="DIR")
    parser.add_argument("--state-dir", type=Path, default=Path("/var/lib/clustermesh"), metavar="DIR")
    parser.add_argument("--run-dir", type=Path, default=Path("/run/clustermesh"), metavar="DIR")
    parser.add_argument("--device", default=NAME)
    parser.add_argument("--all-state", action="store_true")
    options = parser.parse_args(arguments)
    try:
        removed = asyncio.run(_clean_alone(options))
    except (ClusterMeshError, OSError) as e:
        print(f"clustermesh node cleanup: {e}", file=sys.stderr)
        sys.exit(1)
    if not removed:
        print("nothing of an agent was here")


async def _clean_alone(options: Namespace) -> int:
    """How much was removed, each thing printed. Refused beside an agent."""
    pins, removed = options.bpffs / "clustermesh", 0
    with ExitStack() as locks:
        locks.enter_context(alone(options.run_dir, options.state_dir))
        locks.enter_context(alone_in_network())
        if pins.is_dir():
            locks.enter_context(alone_over(pins))
        async for sentence in clean(options):
            print(f"removed {sentence}", flush=True)
            removed += 1
        (options.run_dir / "agent.lock").unlink(missing_ok=True)
        for folder in (options.run_dir, options.state_dir):
            with suppress(OSError):  # it is not empty, or somebody else's mount
                folder.rmdir()
    return removed


async def clean(options: Namespace) -> AsyncIterator[str]:
    """Says of each thing that it is gone. Ending this after any of them leaves what another run completes.

    Invalid, before the first, where an option names what is no agent's.
    """
    if options.bpffs != _BPFFS and not is_bpffs(options.bpffs):
        raise Invalid("--bpffs", str(options.bpffs), "must be a mounted bpf file system; nothing was removed")
    await _check_device(options.device)
    for sentence in _remove_datapath(options.bpffs / "clustermesh"):
        yield sentence
    async for sentence in _remove_device(options.device):
        yield sentence
    for sentence in await asyncio.to_thread(lambda: [*_remove_routes()]):
        yield sentence
    if ports := ReservedPorts(options.run_dir).hold(()):
        yield f"ports {ports} from net.ipv4.ip_local_reserved_ports"
    if options.all_state:
        async for sentence in _remove_pods(options.state_dir):
            yield sentence
    if not await veth.routed_addresses():
        for address in await netlink.remove_addresses("lo"):
            yield f"address {text(address)} from lo"
    for sentence in _remove_files(options):
        yield sentence


def _remove_datapath(pins: Path) -> Iterator[str]:
    if not pins.is_dir() or not is_bpffs(pins):
        return
    found = [*(pins / "links").glob("*")], [each for each in pins.glob("*/*") if each.parent.name != "links"]
    Datapath.remove(pins)
    yield f"{pins}: {len(found[0])} programs from their hooks, {len(found[1])} maps and notes"


async def _check_device(name: str) -> None:
    """WireGuard's: the kernel's own, or that of a wireguard-go that runs, or, as the usual name tells, that ran."""
    parse_device(name)
    kinds = {"wireguard", "tun"} if name == NAME or find_listener(SOCKETS / f"{name}.sock") else {"wireguard"}
    link = await netlink.find_link(name)
    if link is not None and link.kind not in kinds:
        said = f"is a device of kind {link.kind or 'hardware'}, and no WireGuard device; nothing was removed"
        raise Invalid("--device", name, said)
    listens = find_listener(SOCKETS / f"{name}.sock") is not None
    if link is None and not listens and await netlink.find_link(NAME) is not None:
        raise Invalid("--device", name, f"is not here, and {NAME} is; nothing was removed")


async def _remove_device(name: str) -> AsyncIterator[str]:
    path = SOCKETS / f"{name}.sock"
    pid = find_listener(path)
    if await netlink.find_link(name) is not None:
        await netlink.delete_link(name)
        yield f"device {name}, and every tunnel with it"
    if pid:
        await _end(pid)
        yield f"wireguard-go, process {pid}"
    path.unlink(missing_ok=True)


async def _end(pid: int) -> None:
    """It ends by itself once its device is gone, unless it hangs."""
    deadline = asyncio.get_running_loop().time() + _PATIENCE
    while runs(pid):
        if asyncio.get_running_loop().time() > deadline:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        await asyncio.sleep(_LOOK)


def _remove_routes() -> Iterator[str]:
    with RouteSocket() as kernel:
        routes = kernel.dump(PROTOCOL)
        kernel.delete(routes)
        left = kernel.dump(PROTOCOL)
    if left:
        raise OSError(f"{len(left)} routes of protocol {PROTOCOL} cannot be deleted: {prefix_text(left[0].dst)} ...")
    if routes:
        yield f"{len(routes)} routes to pods of other nodes, blackholes among them"


async def _remove_pods(state_dir: Path) -> AsyncIterator[str]:
    for path in sorted((state_dir / "endpoints").glob("*.json")):
        with suppress(Invalid):
            record = decode(path)
            if await veth.is_attached(record.host_ifname):
                await veth.detach(record.host_ifname)
                yield f"device {record.host_ifname} of pod {record.pod_namespace}/{record.pod_name}"


def _remove_files(options: Namespace) -> Iterator[str]:
    kept = [options.state_dir / name for name in _KEPT] if options.all_state else []
    for path in (options.run_dir / "agent.sock", options.run_dir / QUEUE, *kept):
        if path.is_dir():
            shutil.rmtree(path)
            yield str(path)
        elif path.exists() or path.is_socket():
            path.unlink()
            yield str(path)


if __name__ == "__main__":
    main()
