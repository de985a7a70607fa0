"""Programs put on their hooks by pinned links, which outlive the agent; a link found pinned is adopted."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from enum import StrEnum
from pathlib import Path
from typing import Final, NamedTuple

from agent.bpf.hooks import Kind, Program
from agent.bpf.programs import ProgramInfo, link_info, program_info, program_of_id
from agent.bpf.syscalls import AttachType, link_create, link_detach, link_update, object_get, object_pin


class Outcome(StrEnum):
    """What attaching did. After all three the hook runs the program asked for."""

    ATTACHED = "attached"  # there was nothing of ours on the hook
    ADOPTED = "adopted"  # the very same program over the same maps was there, and stays
    REPLACED = "replaced"  # another program of ours was there: exchanged in place


class Mechanism(StrEnum):
    CGROUP = "cgroup link"
    TCX = "tcx link"
    CLSACT = "clsact filter"
    XDP = "xdp link"
    XDP_GENERIC = "generic xdp link"


class Hook(NamedTuple):
    """One program where it runs. `target` is a cgroup's path or a device's name; clsact filters have the link id 0."""

    name: str
    target: str
    outcome: Outcome
    mechanism: Mechanism
    link_id: int


class Point(NamedTuple):
    """Where to attach: `target` is what BPF_LINK_CREATE wants (a cgroup's descriptor, a device's index), `target_id`
    what the link then says of itself (the cgroup's id, the device's index), `after` the link before it, by its id."""

    target: int
    target_id: int
    attach_type: AttachType
    flags: int = 0
    after: int = 0


class LinkState(NamedTuple):
    outcome: Outcome
    link_id: int


_ESCAPED: Final = str.maketrans({"%": "%25", ".": "%2e"})


def pin_name(*parts: str) -> str:
    """A name the bpf filesystem takes: it knows no dots, which a device's name (eth0.100) may have."""
    return "_".join(parts).translate(_ESCAPED)


def pinned_by(name: str, program: Program) -> bool:
    """Whether a pin of this name is one of `program`'s: its name alone, or with the device's after it."""
    if program.kind is Kind.SOCKETS:
        return name == program.name
    return name.startswith(f"{program.name}_")


def device_of(name: str, program: Program) -> str | None:
    """The device that a pin of this name is about, None where it is not one of `program`'s."""
    if not name.startswith(f"{program.name}_"):
        return None
    return name.removeprefix(f"{program.name}_").replace("%2e", ".").replace("%25", "%")


def is_same_program(running: int, program: int, shared_maps: frozenset[int]) -> bool:
    """Whether the running program (by id) is what loading `program` would give again: same code, same shared maps."""
    try:
        fd = program_of_id(running)
    except OSError:
        return False
    try:
        return _essence(program_info(fd), shared_maps) == _essence(program_info(program), shared_maps)
    finally:
        os.close(fd)


def _essence(info: ProgramInfo, shared_maps: frozenset[int]) -> tuple[str, frozenset[int], int]:
    # Constants get a new map at each load, so maps that are not shared are only counted.
    return info.tag, info.map_ids & shared_maps, len(info.map_ids)


@contextmanager
def pinned_link(pin: Path) -> Iterator[int | None]:
    """A descriptor of the link pinned at `pin`, or None."""
    try:
        link = object_get(pin)
    except FileNotFoundError:
        yield None
        return
    try:
        yield link
    finally:
        os.close(link)


def is_attached(pin: Path) -> bool:
    """Whether a link is pinned there that is attached to anything."""
    with pinned_link(pin) as link:
        return link is not None and link_info(link).target != 0


def follow_rename(pin: Path, program: Program, index: int) -> None:
    """Have `pin` be the name of the link of `program` on the device `index`, whose pin has the name that the device had
    before: so the link that is there is found, and the old name's going takes nothing off it."""
    with pinned_link(pin) as link:
        if link is not None and link_info(link).target:
            return
    for other in [each for each in pin.parent.iterdir() if device_of(each.name, program) is not None]:
        with pinned_link(other) as link:
            if link is not None and link_info(link).target == index:
                other.rename(pin)


def attach_link(pin: Path, program: int, point: Point, shared_maps: frozenset[int]) -> LinkState:
    """Make `program` run at `point` through the link pinned at `pin`. OSError where the kernel refuses."""
    with pinned_link(pin) as link:
        if link is not None:
            found = link_info(link)
            if (found.target, found.attach_type) == (point.target_id, point.attach_type):
                if is_same_program(found.program_id, program, shared_maps):
                    return LinkState(Outcome.ADOPTED, found.id)
                link_update(link, program)
                return LinkState(Outcome.REPLACED, found.id)
    # A pinned link to another place (a device made anew under its old name) goes only after the new one is there.
    new = attach_beside(program, point)
    try:
        return LinkState(Outcome.ATTACHED, take_place(pin, new))
    finally:
        os.close(new)


def attach_beside(program: int, point: Point) -> int:
    """Make `program` run at `point` after whatever runs there; it goes with the descriptor that is returned."""
    return link_create(program, point.target, point.attach_type, point.flags, point.after)


def take_place(pin: Path, link: int) -> int:
    """Pin `link`, and detach the one that was pinned there; returns its id."""
    with pinned_link(pin) as old:
        with suppress(FileNotFoundError):
            pin.unlink()
        object_pin(link, pin)
        if old is not None:
            _detach(old)
    return link_info(link).id


def detach_link(pin: Path) -> None:
    """Detach and unpin; absent is success."""
    with pinned_link(pin) as link:
        if link is not None:
            _detach(link)
            pin.unlink()


def _detach(link: int) -> None:
    with suppress(OSError):  # ENOLINK and its like: what it was attached to is gone, and the attachment with it
        link_detach(link)
