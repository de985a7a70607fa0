"""The way back to an agent of layout v1: its maps written from ours, before it starts.

That agent attaches its programs before it knows anything, so they must find their maps filled. What was asked through
our programs and is answered later is shown by our readers, left beside its own until an agent of this version comes
again (or `rm /sys/fs/bpf/clustermesh/links/late_*`). What it knew of the mesh and its peers are left to it as it would
have left them (agent.older.last_good_v1), and the services of its own cluster where it looks for them
(agent.older.own_services). It knows no IPv6: services and tunnels for it end here.

    systemctl stop clustermesh-agent && clustermesh node prepare-downgrade
"""

from __future__ import annotations

import asyncio
import base64
import os
import socket
import sys
from argparse import ArgumentParser
from collections.abc import Callable, Mapping
from contextlib import ExitStack, suppress
from itertools import starmap
from pathlib import Path
from typing import Final

from agent.api import alone
from agent.bpf.bpffs import cgroup2_root
from agent.bpf.device_hooks import detach_everywhere
from agent.bpf.exchange import LATE
from agent.bpf.hooks import SOCKET_PROGRAMS, Kind, Program
from agent.bpf.layouts import (
    LAYOUT_VERSION,
    LB_FULL,
    BackendValue,
    Number,
    Reduced,
    ServiceKey,
    pack,
    unpack,
    unpack_each,
    unpack_numbers,
)
from agent.bpf.libbpf import Object
from agent.bpf.links import Point, attach_beside, detach_link, pin_name, pinned_link, take_place
from agent.bpf.loader import find_object
from agent.bpf.programs import link_info, program_of_id
from agent.bpf.syscalls import MapType, map_create, map_update_batch, object_get, object_pin
from agent.bpf.walk import groups_behind
from agent.older import last_good_v1, layout_v1, own_services
from agent.targets.maps import MapTarget
from agent.wireguard.device import NAME, Device, open_device
from agent.wireguard.keys import generate
from agent.wireguard.peer import Peer, sort_allowed_ips
from clustermesh.address import is_ipv4
from clustermesh.errors import ClusterMeshError, Refused, Unavailable
from clustermesh.standalone.context import Context, load
from clustermesh.store.client import EtcdClient
from clustermesh.store.tls import Tls

Entries = dict[bytes, bytes]

_ONE_BY_ONE: Final[Mapping[str, tuple[str, Callable[[bytes, bytes], tuple[bytes, bytes] | None]]]] = {
    "lb4_reverse_sk": ("lb_reverse_sk", layout_v1.reverse_to_v1),
    "ipcache4": ("ipcache", layout_v1.address_to_v1),
    "ipcache4_cidr": ("ipcache_cidr", layout_v1.cidr_to_v1),
}

_READ: Final = ("lb_services", "lb_groups", "lb_slots", "lb_backends", "lb_clusters", *dict(_ONE_BY_ONE.values()))


def main(arguments: list[str] | None = None) -> None:
    """`clustermesh node prepare-downgrade`. Exit codes: 0 done, 1 failed."""
    parser = ArgumentParser(prog="clustermesh node prepare-downgrade", description=__doc__.splitlines()[0])
    parser.add_argument("--context", type=Path, required=True, metavar="DIR")
    parser.add_argument("--node", default=socket.gethostname())
    parser.add_argument("--bpffs", type=Path, default=Path("/sys/fs/bpf"), metavar="DIR")
    parser.add_argument("--state-dir", type=Path, default=Path("/var/lib/clustermesh"), metavar="DIR")
    parser.add_argument("--run-dir", type=Path, default=Path("/run/clustermesh"), metavar="DIR")
    parser.add_argument("--device", default=NAME)
    options = parser.parse_args(arguments)
    pin_dir = options.bpffs / "clustermesh"
    try:
        with alone(options.run_dir, options.state_dir):
            context = load(options.context)
            asyncio.run(_ask_for_own_services(context, options.node))
            prepare(pin_dir)
            last_good_v1.rewrite(options.state_dir / "clusters", context.name)
            asyncio.run(_narrow_peers(options.device, options.state_dir))
    except (ClusterMeshError, OSError) as e:
        print(f"clustermesh node prepare-downgrade: {e}", file=sys.stderr)
        sys.exit(1)
    print(f"{pin_dir / layout_v1.VERSION} is filled: start the older agent now")


async def _ask_for_own_services(context: Context, node: str) -> None:
    tls = Tls(context.ca, context.certificate("local"), context.key("local"))
    async with EtcdClient([context.endpoint], tls) as client:
        await own_services.ask_for(client, context.name, node)


def prepare(pin_dir: Path) -> None:
    """Write the maps of layout v1 from those pinned below `pin_dir`; the agent must be stopped. Refused, OSError."""
    found = asyncio.run(_read(pin_dir / LAYOUT_VERSION))
    folder = pin_dir / layout_v1.VERSION
    folder.mkdir(exist_ok=True)
    written = {
        "lb4_backends": backends_of(found["lb_backends"]),
        "lb4_services": services_of(found),
        **{
            name: dict(filter(None, starmap(to_v1, found[ours].items()))) for name, (ours, to_v1) in _ONE_BY_ONE.items()
        },
    }
    for name, entries in written.items():
        _make(folder / name, name, entries)
    _leave_readers(pin_dir)
    # Nobody would keep up to date what these read.
    detach_link(pin_dir / "links" / "sendmsg6")
    detach_everywhere(pin_dir / "links", set(Kind) - {Kind.SOCKETS, Kind.UNDERLAY})


async def _narrow_peers(name: str, state_dir: Path) -> None:
    """As that agent wants them, so that it writes none anew. Where no device answers there is nothing to keep up."""
    device = await open_device(name, log=state_dir / "wireguard-go.log")
    with suppress(Unavailable):
        await keep_ipv4_only(device)


async def keep_ipv4_only(device: Device) -> None:
    """Take every IPv6 network from the peers of `device`: given to a peer made for that, they go with it.

    The peers' own are otherwise replaced as a whole, and wireguard-go drops what arrives between the two steps.
    """
    held = [cidr for state in (await device.peers()).values() for cidr in state.allowed_ips]
    taken = sort_allowed_ips(cidr for cidr in held if not is_ipv4(cidr.address))
    if taken:
        nobody = base64.b64encode(generate()).decode()
        await device.set_peers({nobody: Peer(public_key=nobody, endpoint=None, port=0, allowed_ips=taken, keepalive=0)})
        await device.remove_peers([nobody])


async def _read(folder: Path) -> dict[str, Entries]:
    tables = {}
    for name in _READ:
        try:
            fd = object_get(folder / name)
        except FileNotFoundError as e:
            raise Refused(f"there is no map {folder / name}: no agent of this version has run here") from e
        try:
            tables[name] = await MapTarget(name, fd).dump()
        finally:
            os.close(fd)
    return tables


def backends_of(entries: Entries) -> Entries:
    """lb4_backends."""
    held = {number: unpack(BackendValue, value) for number, value in entries.items()}
    return {
        number: layout_v1.BACKEND.pack(each.address[12:], _port(each.port), each.protocol, each.state, each.cluster_id)
        for number, each in held.items()
        if layout_v1.is_ipv4(each.address)
    }


def services_of(maps: Mapping[str, Entries]) -> Entries:
    """lb4_services: slot 0 with the number of backends, then one slot for each. Clusters that are out are left out."""
    reduced = unpack_each(Reduced, maps["lb_clusters"][pack(Number(0))])
    out = {cluster for cluster, each in enumerate(reduced) if each.part == LB_FULL}
    entries = {}
    for key, head in maps["lb_services"].items():
        at = unpack(ServiceKey, key)
        if not layout_v1.is_ipv4(at.address):
            continue
        where = at.address[12:], _port(at.port)
        groups = groups_behind(head, maps["lb_groups"].get, maps["lb_slots"].get)
        ids = [number for group, ids in groups if group.cluster_id not in out for number in unpack_numbers(ids)]
        entries[layout_v1.SERVICE_KEY.pack(*where, 0, at.protocol)] = layout_v1.SERVICE.pack(0, len(ids), 0)
        for slot, number in enumerate(ids, start=1):
            entries[layout_v1.SERVICE_KEY.pack(*where, slot, at.protocol)] = layout_v1.SERVICE.pack(number, 0, 0)
    return entries


def _port(number: int) -> bytes:
    return number.to_bytes(2, "big")


def _make(path: Path, name: str, entries: Entries) -> None:
    shape = layout_v1.SHAPES[name]
    fd = map_create(MapType(shape.type), shape.key_size, shape.value_size, shape.max_entries, shape.flags)
    try:
        if entries:
            done = map_update_batch(fd, b"".join(entries), b"".join(entries.values()), len(entries))
            if done.error:
                raise Unavailable(
                    f"the map {name} takes {done.done} of {len(entries)} entries: {os.strerror(done.error)}"
                )
        with suppress(FileNotFoundError):
            path.unlink()
        object_pin(fd, path)
    finally:
        os.close(fd)


def _leave_readers(pin_dir: Path) -> None:
    """Ours, and such as read what the older agent's programs will write, until it has exchanged them all."""
    root, links = cgroup2_root(), pin_dir / "links"
    if root is None:
        return
    with ExitStack() as closing:
        cgroup = os.open(root, os.O_RDONLY | os.O_DIRECTORY)
        closing.callback(os.close, cgroup)
        elf = closing.enter_context(Object(find_object().with_name("downgrade.bpf.o")))
        older = object_get(pin_dir / layout_v1.VERSION / layout_v1.REVERSE[0])
        closing.callback(os.close, older)
        elf.reuse(layout_v1.REVERSE[0], older)
        elf.load()

        def leave(program: Program, running: int, name: str) -> None:
            beside = attach_beside(running, Point(cgroup, os.fstat(cgroup).st_ino, program.attach_type))
            closing.callback(os.close, beside)
            take_place(links / pin_name(LATE, name), beside)

        for program in (each for each in SOCKET_PROGRAMS if each.reads_back):
            leave(program, elf.program_fd(program.name), f"{program.name}_{layout_v1.VERSION}")
            with pinned_link(links / program.name) as link:
                if link is not None:
                    running = program_of_id(link_info(link).program_id)
                    closing.callback(os.close, running)
                    leave(program, running, program.name)


if __name__ == "__main__":
    main()
