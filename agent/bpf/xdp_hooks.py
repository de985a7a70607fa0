"""The program of frames on network devices, by XDP links.

    links/xdp_outside_eth0     the program's name, then the device's

A device has one such program: where somebody else's runs, ours does not. The map xdp_devices knows a device for as long
as the program runs there; what it does not know is translated by tc. It is written after the link is there, and before
it goes, so that no frame is sent to a device that would not take it.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
import socket
import struct
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from threading import Lock
from typing import Final

from agent.bpf.device_hooks import doing
from agent.bpf.hooks import XDP_PROGRAM, Accelerated
from agent.bpf.layouts import Number, XdpDevice, XdpMode, pack, pack_xdp_device, unpack, xdp_address
from agent.bpf.links import (
    Hook,
    LinkState,
    Mechanism,
    Outcome,
    Point,
    attach_link,
    detach_link,
    device_of,
    follow_rename,
    is_same_program,
    pin_name,
    pinned_link,
)
from agent.bpf.programs import link_info
from agent.bpf.syscalls import XDP_FLAGS, AttachType, map_delete_batch, map_lookup, map_lookup_batch, map_update
from clustermesh.errors import Refused

_NAME: Final = XDP_PROGRAM.name
_VETH: Final = "veth"  # whose other end drops what its driver sends back, unless that has NAPI (GRO, or a program)
_SIOCETHTOOL: Final = 0x8946
_GDRVINFO: Final = 3
_DRVINFO_SIZE: Final = 196
_VLANS: Final = Path("/proc/thread-self/net/vlan/config")
_SIZES: Final = (4, 8)  # of a key and a value of xdp_devices
_MOST: Final = 256
_WHERE: Final = {XdpMode.NATIVE: "in its driver", XdpMode.GENERIC: "in the kernel"}
_MECHANISMS: Final = {XdpMode.NATIVE: Mechanism.XDP, XdpMode.GENERIC: Mechanism.XDP_GENERIC}


class XdpHooks:
    """The program, one of the loaded `programs`, on devices of this network namespace; pins are in the folder `links`,
    and `devices` is the map xdp_devices. Not for an event loop's thread."""

    def __init__(self, links: Path, programs: Mapping[str, int], shared_maps: frozenset[int], devices: int) -> None:
        self.hooks: dict[str, Hook] = {}  # by device
        self._links, self._programs, self._shared_maps, self._devices = links, programs, shared_maps, devices
        self._busy = Lock()

    def attach(self, device: str, wanted: Accelerated, modes: Sequence[XdpMode]) -> Hook:
        """Have the program see the frames of `device`, in the first of `modes` that works. Refused where none does."""
        with self._busy, doing(f"attach {_NAME} to {device}"):
            pin, program = self._pin(device), self._programs[_NAME]
            follow_rename(pin, XDP_PROGRAM, wanted.ifindex)
            now = self._mode(pin, wanted.ifindex)
            vlans = _vlans_on(device)
            runs = [mode for mode in modes if mode is now and not (vlans and mode is XdpMode.GENERIC)]
            if not runs:
                self._take_off(device)
            state, mode = self._try(device, pin, program, wanted.ifindex, runs or modes, vlans)
            map_update(self._devices, pack(Number(wanted.ifindex)), pack_xdp_device(wanted.address, mode))
            self._forget_others()
        self.hooks[device] = _hook(device, state, mode)
        return self.hooks[device]

    def running(self, modes: Sequence[XdpMode]) -> dict[str, Accelerated]:
        """The devices that have the program, as they should in one of `modes`, or otherwise: with the index 0."""
        with self._busy, doing("look at the programs of frames"):
            found = dict[str, Accelerated]()
            for device, pin in self._pins():
                with pinned_link(pin) as link:
                    info = None if link is None or not modes else link_info(link)
                found[device] = Accelerated(0)
                if info is None or not is_same_program(info.program_id, self._programs[_NAME], self._shared_maps):
                    continue
                value = self._value(info.target)
                if (
                    value is not None
                    and value.mode in modes
                    and not (value.mode == XdpMode.GENERIC and _vlans_on(device))
                ):
                    found[device] = Accelerated(info.target, xdp_address(value))
                    if device not in self.hooks:
                        adopted = LinkState(Outcome.ADOPTED, info.id)
                        self.hooks[device] = _hook(device, adopted, XdpMode(value.mode))
            return found

    def detach(self, device: str) -> None:
        """Absent is success."""
        with self._busy, doing(f"detach {_NAME} from {device}"):
            self._take_off(device)

    @contextmanager
    def at_rest(self) -> Iterator[None]:
        """Nobody attaches during this block."""
        with self._busy:
            yield

    def _try(
        self, device: str, pin: Path, program: int, index: int, modes: Sequence[XdpMode], vlans: Sequence[str]
    ) -> tuple[LinkState, XdpMode]:
        why = ""
        if XdpMode.GENERIC in modes and _driver(device) == _VETH:
            modes = [XdpMode.GENERIC]
        for mode in modes:
            if mode is XdpMode.GENERIC and vlans:
                # The kernel keeps a tag beside the frame, where no program sees it: it would be sent on with it.
                why = f"{why}; not by the kernel either: VLANs are on it ({', '.join(vlans)})".removeprefix("; ")
                continue
            point = Point(index, index, AttachType.XDP, XDP_FLAGS[mode])
            try:
                return attach_link(pin, program, point, self._shared_maps), mode
            except OSError as e:
                if e.errno in (errno.EBUSY, errno.EEXIST):
                    raise Refused(
                        f"another XDP program is on {device}, which stays: take it off, or name other --devices"
                    ) from e
                if e.errno in (errno.EPERM, errno.EACCES, errno.ENODEV, errno.ENOMEM):
                    raise
                why = f"{device} takes no XDP program {_WHERE[mode]}: {os.strerror(e.errno or 0)}"
        raise Refused(why)

    def _mode(self, pin: Path, index: int) -> XdpMode | None:
        """In which the device runs a program of ours, None where it does not, or that is not known."""
        with pinned_link(pin) as link:
            if link is None or link_info(link).target != index:
                return None
        value = self._value(index)
        return None if value is None else XdpMode(value.mode)

    def _value(self, index: int) -> XdpDevice | None:
        value = map_lookup(self._devices, pack(Number(index)), _SIZES[1])
        return None if value is None else unpack(XdpDevice, value)

    def _take_off(self, device: str) -> None:
        pin = self._pin(device)
        with pinned_link(pin) as link:
            if link is not None:
                map_delete_batch(self._devices, pack(Number(link_info(link).target)), 1)
        detach_link(pin)
        self.hooks.pop(device, None)
        self._forget_others()

    def _forget_others(self) -> None:
        """Devices that are gone left their entries."""
        there = set[int]()
        for _, pin in self._pins():
            with pinned_link(pin) as link:
                if link is not None:
                    there.add(link_info(link).target)
        page = map_lookup_batch(self._devices, b"", _SIZES, _MOST)
        for key, _ in page.entries(_SIZES):
            if int.from_bytes(key, sys.byteorder) not in there:
                map_delete_batch(self._devices, key, 1)

    def _pins(self) -> list[tuple[str, Path]]:
        pins = [(device_of(pin.name, XDP_PROGRAM), pin) for pin in self._links.iterdir()]
        return [(device, pin) for device, pin in pins if device is not None]

    def _pin(self, device: str) -> Path:
        return self._links / pin_name(_NAME, device)


def _hook(device: str, state: LinkState, mode: XdpMode) -> Hook:
    return Hook(_NAME, device, state.outcome, _MECHANISMS[mode], state.link_id)


def _driver(device: str) -> str:
    """The name of its driver, "" where it does not say."""
    info = ctypes.create_string_buffer(struct.pack("=I", _GDRVINFO), _DRVINFO_SIZE)
    request = struct.pack("16sP", os.fsencode(device), ctypes.addressof(info))
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as asking, suppress(OSError):
        fcntl.ioctl(asking, _SIOCETHTOOL, request)
    return info.raw[4:36].partition(b"\0")[0].decode()


def _vlans_on(device: str) -> list[str]:
    """The devices of VLANs that are on top of it, as linux/net/8021q/vlanproc.c says: name | number | device."""
    try:
        lines = _VLANS.read_text().splitlines()
    except OSError:  # the kernel has no VLANs, or none was ever made
        return []
    rows = [[field.strip() for field in line.split("|")] for line in lines]
    return [row[0] for row in rows if len(row) == 3 and row[2] == device]
