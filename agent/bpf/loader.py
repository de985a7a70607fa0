"""The datapath as the agent holds it: maps and programs loaded, pinned, attached; found again after a restart.

    <pin_dir>/v2/lb_services ...     maps, below the version of their layout
    <pin_dir>/links/connect4 ...     links to the cgroup; strict_ingress_eth0 ... links to devices

Everything pinned outlives this process. `Datapath.open` makes maps or adopts what it finds, and attaches nothing:
programs of the version before go on over their own maps until these are filled. `attach_sockets` then puts the new
programs in place, so that no socket ever meets a hook without one, and maps of another layout go last of all.
"""

from __future__ import annotations

import os
import re
import socket
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from threading import Lock
from types import MappingProxyType
from typing import TYPE_CHECKING, Final, Self

from agent.bpf import clsact, probe
from agent.bpf.bpffs import is_bpffs
from agent.bpf.device_hooks import DeviceHooks, doing
from agent.bpf.exchange import exchange, remove_surplus
from agent.bpf.hooks import PROGRAMS, Kind, Program
from agent.bpf.layouts import LAYOUT_VERSION, Reason
from agent.bpf.libbpf import Object
from agent.bpf.links import Hook, Mechanism, detach_link, is_attached
from agent.bpf.pins import PinnedMap, check_fits, copy_entries, copy_missing, per_cpu_size, pin_in_place, pinned_map
from agent.bpf.programs import map_info
from agent.bpf.sizes import by_memory
from agent.bpf.syscalls import MapType, map_lookup
from agent.bpf.xdp_hooks import XdpHooks
from agent.older import layout_v1
from clustermesh.errors import Invalid, Refused

if TYPE_CHECKING:
    from agent.bpf.bcc import BccObject

OBJECT_VARIABLE: Final = "CLUSTERMESH_BPF_OBJECT"
_OBJECT_NAME: Final = "clustermesh.bpf.o"
_LINKS: Final = "links"
_EARLY: Final = (Kind.SOCKETS, Kind.UNDERLAY)
_FIRST: Final = [program.name for program in PROGRAMS if program.kind in _EARLY]
_FRAMES: Final = [program.name for program in PROGRAMS if program.kind is Kind.FRAMES]
_OWN: Final = [program.name for program in PROGRAMS if program.kind is Kind.AGENT]
_LATER: Final = [program.name for program in PROGRAMS if program.name not in (*_FIRST, *_FRAMES, *_OWN)]
_SO_NETNS_COOKIE: Final = 71
_VERSION: Final = re.compile(r"v\d+")


def find_object() -> Path:
    """The compiled programs: $CLUSTERMESH_BPF_OBJECT, else build/ of this checkout, else beside this module."""
    named = os.environ.get(OBJECT_VARIABLE)
    here = Path(__file__).resolve().parent
    places = [Path(named)] if named else [here.parents[1] / "build" / _OBJECT_NAME, here / _OBJECT_NAME]
    for place in places:
        if place.is_file():
            return place
    looked = " nor ".join(map(str, places))
    raise Refused(f"no compiled eBPF programs at {looked}: run `make -C bpf`, or set {OBJECT_VARIABLE}")


class Programs(dict[str, int]):
    """Descriptors by name. `rest` loads what was not loaded at once: of its groups the one with what is asked for."""

    def __init__(self, loaded: Mapping[str, int]) -> None:
        super().__init__(loaded)
        self.rest: Callable[[str], dict[str, int]] | None = None
        self._loading = Lock()

    def __missing__(self, name: str) -> int:
        with self._loading:
            if name not in self and self.rest is not None:
                self.update(self.rest(name))
        found = self.get(name)
        if found is None:
            raise KeyError(name)
        return found

    def close(self) -> None:
        """Let go of all of them; nobody loads any more."""
        with self._loading:
            self.rest = None
            for fd in self.values():
                with suppress(OSError):
                    os.close(fd)
            self.clear()


class Datapath:
    """Maps, programs and hooks of one node. Made by `open`; `close` leaves everything running in the kernel."""

    def __init__(
        self,
        pin_dir: Path,
        maps: Mapping[str, int],
        programs: Mapping[str, int],
        table: Sequence[Program] = PROGRAMS,
    ) -> None:
        self.pin_dir = pin_dir
        self.maps = MappingProxyType(dict(maps))
        self.sizes = MappingProxyType({name: map_info(fd).max_entries for name, fd in maps.items()})
        self.hooks: dict[str, Hook] = {}  # on sockets
        self.loader = ""
        self._programs = Programs(programs)
        self._outgrown: list[tuple[PinnedMap, int]] = []
        self.map_ids = MappingProxyType({name: map_info(fd).id for name, fd in maps.items()})
        shared = frozenset(self.map_ids.values())
        self.devices = DeviceHooks(pin_dir / _LINKS, self._programs, shared, table)
        self.frames = XdpHooks(pin_dir / _LINKS, self._programs, shared, self.maps.get("xdp_devices", -1))

    @classmethod
    def open(
        cls,
        object_path: Path | None,
        pin_dir: Path,
        max_entries: Mapping[str, int] | None = None,
        lru_memory: int = 0,
        bcc_cache: Path | None = None,
    ) -> Self:
        """Load the programs over the maps pinned below `pin_dir`, made where absent. Nothing is attached.

        `max_entries` gives sizes by map name; the other maps that programs fill have `lru_memory` bytes together,
        unless that is 0. Entries move to a map of the new size where one of another size is pinned. With a folder
        `bcc_cache` the programs are compiled by BCC, and kept there. Who is behind an address is taken over from the
        layout before this one.
        Refused: no object, no bpf filesystem, another layout, too many entries for a smaller size, a program the
        kernel rejects (with the verifier's log). Unavailable: no memory just now.
        """
        _check_pin_dir(pin_dir)
        with (
            doing(f"load the datapath at {pin_dir}"),
            ExitStack() as undo,
            _object(object_path, bcc_cache) as elf,
        ):
            sizes = by_memory({name: elf.shape(name) for name in elf.maps}, lru_memory) if lru_memory else {}
            outgrown = _choose_maps(elf, pin_dir / LAYOUT_VERSION, sizes | dict(max_entries or {}), undo)
            elf.load(_FIRST)
            datapath = cls(
                pin_dir,
                {name: _duplicate(elf.map_fd(name), undo) for name in sorted(elf.maps)},
                {name: _duplicate(elf.program_fd(name), undo) for name in _FIRST},
            )
            datapath._programs.rest = lambda name: datapath._load_rest(name, object_path, bcc_cache)
            datapath._pin_maps(outgrown)
            datapath._take_over()
            datapath.loader = "libbpf" if bcc_cache is None else "bcc"
            undo.pop_all()
        return datapath

    def _load_rest(self, name: str, object_path: Path | None, bcc_cache: Path | None) -> dict[str, int]:
        """Programs of packets are large: an agent is ready before they are verified. Few nodes have that of frames."""
        group = next((each for each in (_LATER, _FRAMES, _OWN) if name in each), [])
        with doing("load the programs of devices"), _object(object_path, bcc_cache) as elf, ExitStack() as undo:
            for each, fd in self.maps.items():
                elf.reuse(each, fd)
            elf.load(group)
            found = {each: _duplicate(elf.program_fd(each), undo) for each in group}
            if group is _LATER:
                self._carry_connections()
            undo.pop_all()
        return found

    def _carry_connections(self) -> None:
        """Those that programs of devices have made in maps of another size until now, when others are to run."""
        for old, new in self._outgrown:
            if old.shape.type == MapType.LRU_HASH:
                copy_missing(old, new, "ct")
        if self.hooks:
            self._let_go(lambda _: True)

    def _let_go(self, chosen: Callable[[PinnedMap], bool]) -> None:
        for old, _ in self._outgrown:
            if chosen(old):
                os.close(old.fd)
        self._outgrown = [each for each in self._outgrown if not chosen(each[0])]

    @property
    def has_predecessor(self) -> bool:
        """Whether programs of another layout may run still: what is attached now must know all that they do."""
        return any(_other_versions(self.pin_dir))

    def _pin_maps(self, outgrown: Mapping[str, PinnedMap]) -> None:
        for name, old in outgrown.items():
            copy_entries(old, self.maps[name], self.sizes[name], name)
        folder = self.pin_dir / LAYOUT_VERSION
        for name, fd in self.maps.items():
            if name in outgrown or not (folder / name).exists():
                pin_in_place(fd, folder / name)
        for path in folder.iterdir():
            if path.name not in self.maps:  # of an attempt that was cut off
                path.unlink()
        self._outgrown = [(old, self.maps[name]) for name, old in outgrown.items()]

    def _take_over(self) -> None:
        """Strict mode goes on with what the layout before knew, until all is planned."""
        for (before, name), translation in layout_v1.TO_V2.items():
            with _pinned_before(self.pin_dir, before) as old:
                if old is not None:
                    copy_missing(old, self.maps[name], name, translation)

    def attach_sockets(self, cgroup: Path) -> None:
        """Translate services for every socket of `cgroup` and below: each hook attached, adopted or replaced."""
        with doing(f"attach to the cgroup {cgroup}"), _pinned_before(self.pin_dir, layout_v1.REVERSE[0]) as before:
            carry = None
            moved = [(old, new) for old, new in self._outgrown if old.shape.type == MapType.LRU_HASH]
            if moved or before is not None:

                def carry() -> None:
                    for old, new in moved:
                        copy_missing(old, new, "lb_reverse_sk")
                    if before is not None:
                        copy_missing(before, self.maps["lb_reverse_sk"], "lb_reverse_sk", layout_v1.reverse_to_v2)

            links = self.pin_dir / _LINKS
            states = exchange(cgroup, links, self._programs, frozenset(self.map_ids.values()), carry)
            for name, state in states.items():
                self.hooks[name] = Hook(name, str(cgroup), state.outcome, Mechanism.CGROUP, state.link_id)
            remove_surplus(links)
            for folder in list(_other_versions(self.pin_dir)):
                _remove_folder(folder)
        # Programs of devices run still that fill the others.
        self._let_go(lambda old: self._programs.keys() >= {*_LATER} or old.shape.type != MapType.LRU_HASH)

    def has_sockets(self) -> bool:
        """Whether every link that `attach_sockets` made is pinned and attached still: without its pin it is gone."""
        return all(is_attached(self.pin_dir / _LINKS / name) for name in self.hooks)

    def has_links_folder(self) -> bool:
        return (self.pin_dir / _LINKS).is_dir()

    def pin_lost(self) -> list[str]:
        """Pin the maps again that have no pin any more; returns their names."""
        folder = self.pin_dir / LAYOUT_VERSION
        lost = [name for name in self.maps if not (folder / name).exists()]
        with doing(f"pin maps at {folder}"):
            for name in lost:
                folder.mkdir(exist_ok=True)
                pin_in_place(self.maps[name], folder / name)
        return lost

    def counters(self) -> dict[Reason, int]:
        """What the programs have counted since the maps were made, summed over the CPUs."""
        size = per_cpu_size(8)
        with doing("read the counters"):
            found = {each: map_lookup(self.maps["metrics"], each.to_bytes(4, sys.byteorder), size) for each in Reason}
        return {each: sum(memoryview(value).cast("Q")) if value else 0 for each, value in found.items()}

    def program_fd(self, name: str) -> int:
        """The program `name`, for a test run. The descriptor stays this object's."""
        return self._programs[name]

    def close(self) -> None:
        """Let go of every descriptor. What is pinned goes on working."""
        with self.devices.at_rest(), self.frames.at_rest():
            for fd in [*self.maps.values(), *(old.fd for old, _ in self._outgrown)]:
                with suppress(OSError):
                    os.close(fd)
            self._programs.close()
            self._outgrown = []

    @staticmethod
    def remove(pin_dir: Path) -> None:
        """Take the datapath out of the kernel: links, our clsact filters in this network namespace, maps, folders.

        Nothing there is success.
        """
        with doing(f"remove the datapath at {pin_dir}"):
            clsact.detach()
            with suppress(FileNotFoundError):
                for pin in list((pin_dir / _LINKS).iterdir()):
                    detach_link(pin)
            with suppress(FileNotFoundError):
                for folder in list(pin_dir.iterdir()):
                    _remove_folder(folder)
                pin_dir.rmdir()


def _check_pin_dir(pin_dir: Path) -> None:
    if not is_bpffs(pin_dir):
        raise Refused(f"{pin_dir} is in no bpf filesystem: mount -t bpf bpf /sys/fs/bpf, or choose another place")
    if "." in pin_dir.name:
        raise Refused(f"{pin_dir} cannot hold pins: names in a bpf filesystem have no dots")
    with doing(f"make the folder {pin_dir}"):
        for folder in (pin_dir / LAYOUT_VERSION, pin_dir / _LINKS):
            folder.mkdir(parents=True, exist_ok=True)


def constants() -> dict[str, int]:
    """Those of the programs, on this node."""
    return {"has_set_retval": int(probe.has_set_retval()), "node_netns": _netns_cookie()}


def _object(path: Path | None, bcc_cache: Path | None) -> Object | BccObject:
    if bcc_cache is not None:
        from agent.bpf.bcc import BccObject, find_sources  # for few nodes

        return BccObject(find_sources(), constants(), bcc_cache)
    elf = Object(path or find_object())
    try:
        elf.set_constants(constants())
    except BaseException:
        elf.close()
        raise
    return elf


def _choose_maps(elf: Object | BccObject, folder: Path, sizes: dict[str, int], undo: ExitStack) -> dict[str, PinnedMap]:
    """Have the object use the pinned maps that fit it; returns those whose entries are to move to a new map."""
    unknown = sizes.keys() - elf.maps
    if unknown:
        raise Invalid("max_entries", sorted(unknown), f"the maps are {', '.join(sorted(elf.maps))}")
    outgrown = {}
    for name in elf.maps:
        if name in sizes:
            elf.resize(name, sizes[name])
        found = pinned_map(folder / name)
        if found is None:
            continue
        with ExitStack() as closing:
            closing.callback(os.close, found.fd)
            check_fits(folder / name, found.shape, elf.shape(name))
            if found.shape == elf.shape(name):
                elf.reuse(name, found.fd)
            else:
                outgrown[name] = found
                undo.push(closing.pop_all())
    return outgrown


def _netns_cookie() -> int:
    """That of this network namespace, 0 where the kernel does not say (before Linux 5.14)."""
    with socket.socket(socket.AF_UNIX) as any_socket, suppress(OSError):
        return int.from_bytes(any_socket.getsockopt(socket.SOL_SOCKET, _SO_NETNS_COOKIE, 8), sys.byteorder)
    return 0


def _duplicate(fd: int, undo: ExitStack) -> int:
    copy = os.dup(fd)
    undo.callback(os.close, copy)
    return copy


def _other_versions(pin_dir: Path) -> Iterator[Path]:
    return (each for each in pin_dir.iterdir() if each.name != LAYOUT_VERSION and _VERSION.fullmatch(each.name))


@contextmanager
def _pinned_before(pin_dir: Path, name: str) -> Iterator[PinnedMap | None]:
    """The map `name` of the layout before this one, None where it is not pinned or not as it was then."""
    found = pinned_map(pin_dir / layout_v1.VERSION / name)
    try:
        wanted = layout_v1.SHAPES[name]
        fits = found is not None and found.shape._replace(max_entries=wanted.max_entries) == wanted
        yield found if fits else None
    finally:
        if found is not None:
            os.close(found.fd)


def _remove_folder(folder: Path) -> None:
    for pin in list(folder.iterdir()):
        pin.unlink()
    folder.rmdir()
