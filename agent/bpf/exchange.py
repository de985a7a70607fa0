"""Socket programs put in the place of those that run, so that no socket meets a mixture of the two.

What a socket meant is written down by one program (connect, sendmsg) and read by another (recvmsg, getpeername). Where
the new readers find what both generations write, each hook is exchanged in place, readers first. Where the old writers
have a map of their own, the new readers run beside the old ones until every writer is exchanged and all that was
written is carried over: an entry is in one of the two maps at each moment, and whichever reader finds it shows the
service.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from pathlib import Path

from agent.bpf.hooks import PROGRAMS, SOCKET_PROGRAMS, Program
from agent.bpf.links import (
    LinkState,
    Outcome,
    Point,
    attach_beside,
    attach_link,
    detach_link,
    pin_name,
    pinned_by,
    take_place,
)

LATE = "late"
"""What pins of a downgrade begin with: readers of ours, left beside those of the version before."""


def exchange(
    cgroup: Path,
    pins: Path,
    programs: Mapping[str, int],
    shared_maps: frozenset[int],
    carry: Callable[[], None] | None,
) -> dict[str, LinkState]:
    """Have `programs` run for the sockets of `cgroup`, by links pinned in the folder `pins`. `carry` copies what the
    programs that ran before have written since it was last called; None where there is no other map. OSError."""
    with ExitStack() as closing:
        descriptor = os.open(cgroup, os.O_RDONLY | os.O_DIRECTORY)
        closing.callback(os.close, descriptor)
        inode = os.fstat(descriptor).st_ino  # a cgroup's id is the inode number of its folder

        def put(program: Program) -> LinkState:
            point = Point(descriptor, inode, program.attach_type)
            return attach_link(pins / pin_name(program.name), programs[program.name], point, shared_maps)

        if carry is None:
            return {each.name: put(each) for each in sorted(SOCKET_PROGRAMS, key=lambda each: not each.reads_back)}
        carry()
        readers = [program for program in SOCKET_PROGRAMS if program.reads_back]
        beside = {}
        for program in readers:
            point = Point(descriptor, inode, program.attach_type)
            beside[program.name] = attach_beside(programs[program.name], point)
            closing.callback(os.close, beside[program.name])
        states = {program.name: put(program) for program in SOCKET_PROGRAMS if not program.reads_back}
        carry()
        for name, link in beside.items():
            states[name] = LinkState(Outcome.REPLACED, take_place(pins / pin_name(name), link))
        return states


def remove_surplus(pins: Path) -> None:
    """Take away what this version has no program for: what a version with more of them attached to sockets and devices,
    and the readers that a downgrade left; the programs that run now have their entries."""
    for pin in [each for each in pins.iterdir() if not any(pinned_by(each.name, program) for program in PROGRAMS)]:
        if not pin.is_dir():  # somebody's: no link is
            detach_link(pin)
