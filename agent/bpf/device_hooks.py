"""Programs on the hooks of network devices, by tcx links where the kernel has them, else by clsact filters.

    links/strict_ingress_eth0, links/from_pod_lxc0123456789ab ...     a program's name, then the device's

Of several programs on one hook the first of the table runs first, whenever each was put there: a new link goes right
behind the nearest one before it in the table, or to the head of the chain, since a program before ours could end the
chain and with it the protection; a filter has its place in the table as its priority. What runs is exchanged in place.
"""

from __future__ import annotations

import socket
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from threading import Lock

from agent.bpf import clsact, probe
from agent.bpf.hooks import PROGRAMS, Attached, Kind, Program
from agent.bpf.links import (
    Hook,
    Mechanism,
    Outcome,
    Point,
    attach_link,
    detach_link,
    device_of,
    follow_rename,
    is_same_program,
    pin_name,
    pinned_by,
    pinned_link,
)
from agent.bpf.programs import link_info, program_info
from agent.bpf.syscalls import AFTER_LINK, BEFORE
from clustermesh.errors import Invalid, Refused, Unavailable


@contextmanager
def doing(what: str) -> Iterator[None]:
    """Translate the kernel's errors."""
    try:
        yield
    except (MemoryError, BlockingIOError, InterruptedError) as e:
        raise Unavailable(f"cannot {what}: {e}") from e
    except PermissionError as e:
        raise Refused(f"cannot {what}: {e}. The agent needs CAP_BPF, CAP_NET_ADMIN and CAP_SYS_ADMIN") from e
    except OSError as e:
        raise Refused(f"cannot {what}: {e}") from e


class DeviceHooks:
    """The loaded `programs`, by name, on devices of this network namespace; pins are in the folder `links`.

    Every call may take a while: attaching waits for the kernel's network lock and for all CPUs. Not for an event loop's
    thread.
    """

    def __init__(
        self,
        links: Path,
        programs: Mapping[str, int],
        shared_maps: frozenset[int],
        table: Sequence[Program] = PROGRAMS,
    ) -> None:
        self.hooks: dict[str, Hook] = {}  # attached here or found; but those of pods, of which there are many
        self._links, self._programs, self._shared_maps = links, programs, shared_maps
        self._table = _on_devices(table)
        self._mechanism: Mechanism | None = None
        self._alone: dict[str, Mechanism] = {}  # by this process: the other one has left nothing
        self._busy = Lock()  # nobody may be waiting any more for the thread that is in here

    def attach(
        self, device: str, programs: Sequence[Program], mechanism: Mechanism | None = None, *, index: int = 0
    ) -> list[Hook]:
        """Have `programs` see the packets of `device`, which is looked up where no `index` is given; returns their
        hooks. `mechanism` forces one of the two ways.

        Whichever is chosen, what the other way left is removed afterwards, once.
        """
        names = ", ".join(program.name for program in programs)
        self._load(programs)
        with self._busy, doing(f"attach {names} to {device}"):
            index, chosen = index or _device_index(device), mechanism or self._usual()
            attach = self._attach_tcx if chosen is Mechanism.TCX else self._attach_clsact
            # A filter that moved up in the table is in its new place before another takes its old one.
            order = list(programs) if chosen is Mechanism.TCX else list(reversed(programs))
            found = {program.name: attach(program, device, index) for program in order}
            hooks = [found[program.name] for program in programs]
            if all(program.kind is Kind.POD for program in programs):
                return hooks
            names_of = [pin_name(hook.name, device) for hook in hooks]
            if any(self._alone.get(name) is not chosen for name in names_of):
                self._detach_other(chosen, hooks, index)
            self._alone.update(dict.fromkeys(names_of, chosen))
        self.hooks.update(zip(names_of, hooks, strict=True))
        return hooks

    def running(self, kinds: Sequence[Kind]) -> dict[str, Attached]:
        """The devices that have programs of these kinds, or had and are gone, by name."""
        programs = [program for program in self._table if program.kind in kinds]
        self._load(programs)
        with self._busy, doing("look at the programs of devices"):
            if self._usual() is Mechanism.TCX:
                return self._running_links(programs)
            return self._running_filters(programs)

    def detach(self, device: str, programs: Sequence[Program]) -> None:
        """Absent is success."""
        with self._busy, doing(f"detach programs from {device}"):
            for program in programs:
                detach_link(self._pin(program.name, device))
                self.hooks.pop(pin_name(program.name, device), None)
                self._alone.pop(pin_name(program.name, device), None)
            if self._usual() is Mechanism.CLSACT:
                with suppress(Invalid):
                    places = {(clsact.PARENTS[each.attach_type], self._place(each)) for each in programs}
                    clsact.detach(_device_index(device), places)

    def _load(self, programs: Iterable[Program]) -> None:
        """Those that are loaded when they are asked for; meanwhile others are attached."""
        with suppress(KeyError):  # let go of, or an older version's: what needs it says so
            for program in programs:
                self._programs[program.name]

    @contextmanager
    def at_rest(self) -> Iterator[None]:
        """Nobody attaches during this block; and after it has let go of the programs nobody can."""
        with self._busy:
            yield

    # -- tcx ----------------------------------------------------------------------------------------------------------

    def _attach_tcx(self, program: Program, device: str, index: int) -> Hook:
        before = self._link_before(program, device, index)
        flags, after = (AFTER_LINK, before) if before else (BEFORE, 0)
        point = Point(index, index, program.attach_type, flags, after)
        pin = self._pin(program.name, device)
        if program.kind is not Kind.POD:  # whose devices have names of ours
            follow_rename(pin, program, index)
        state = attach_link(pin, self._programs[program.name], point, self._shared_maps)
        return Hook(program.name, device, state.outcome, Mechanism.TCX, state.link_id)

    def _link_before(self, program: Program, device: str, index: int) -> int:
        """The id of the nearest link before `program`'s in the table that is on its hook of this device, 0 for none."""
        earlier = _same_hook(program, self._table)[: self._place(program)]
        for each in reversed(earlier):
            with pinned_link(self._pin(each.name, device)) as link:
                if link is not None and (info := link_info(link)).target == index:
                    return info.id
        return 0

    def _running_links(self, programs: Sequence[Program]) -> dict[str, Attached]:
        found: dict[str, dict[str, int]] = {}  # by device, the index of each program's
        known: dict[int, bool] = {}
        for pin in list(self._links.iterdir()):
            for program in programs:
                if (device := device_of(pin.name, program)) is None:
                    continue
                with pinned_link(pin) as link:
                    if link is not None:
                        info = link_info(link)
                        same = info.target and self._is_ours(program, info.program_id, known)
                        found.setdefault(device, {})[program.name] = info.target if same else 0
                        if same:
                            self._adopt(program, device, Mechanism.TCX, info.id)
        return {device: _attached(indexes, programs) for device, indexes in found.items()}

    # -- clsact -------------------------------------------------------------------------------------------------------

    def _attach_clsact(self, program: Program, device: str, index: int) -> Hook:
        name, parent, place = program.name, clsact.PARENTS[program.attach_type], self._place(program)
        running = [each.program_id for each in clsact.filters(index) if (each.parent, each.place) == (parent, place)]
        if running and is_same_program(running[0], self._programs[name], self._shared_maps):
            outcome = Outcome.ADOPTED
        else:
            clsact.attach(index, parent, place, self._programs[name])
            outcome = Outcome.REPLACED if running else Outcome.ATTACHED
        return Hook(name, device, outcome, Mechanism.CLSACT, 0)

    def _running_filters(self, programs: Sequence[Program]) -> dict[str, Attached]:
        at = {(clsact.PARENTS[each.attach_type], self._place(each)): each for each in programs}
        found: dict[str, dict[str, int]] = {}
        known: dict[int, bool] = {}
        for each in clsact.filters():
            program = at.get((each.parent, each.place))
            with suppress(OSError):  # the device is gone meanwhile, and its filters with it
                if program is not None:
                    same = self._is_ours(program, each.program_id, known)
                    device = socket.if_indextoname(each.device)
                    found.setdefault(device, {})[program.name] = each.device if same else 0
                    if same:
                        self._adopt(program, device, Mechanism.CLSACT, 0)
        return {device: _attached(indexes, programs) for device, indexes in found.items()}

    # -- both ---------------------------------------------------------------------------------------------------------

    def _usual(self) -> Mechanism:
        if self._mechanism is None:
            self._mechanism = Mechanism.TCX if probe.has_tcx() else Mechanism.CLSACT
        return self._mechanism

    def _is_ours(self, program: Program, running: int, known: dict[int, bool]) -> bool:
        """Whether the running program, by its id, is what was loaded here as `program`; each is looked at once."""
        if running not in known:
            loaded = self._programs[program.name]
            known[running] = running == program_info(loaded).id or is_same_program(running, loaded, self._shared_maps)
        return known[running]

    def _place(self, program: Program) -> int:
        return _place(program, self._table)

    def _adopt(self, program: Program, device: str, mechanism: Mechanism, link_id: int) -> None:
        """It was found."""
        if program.kind is not Kind.POD:
            hook = Hook(program.name, device, Outcome.ADOPTED, mechanism, link_id)
            self.hooks.setdefault(pin_name(program.name, device), hook)

    def _detach_other(self, chosen: Mechanism, hooks: Sequence[Hook], index: int) -> None:
        if chosen is Mechanism.TCX:
            clsact.detach(index)
        else:
            for hook in hooks:
                detach_link(self._pin(hook.name, hook.target))

    def _pin(self, *name: str) -> Path:
        return self._links / pin_name(*name)


def detach_everywhere(links: Path, kinds: Collection[Kind]) -> None:
    """Take the programs of these kinds off every device of this network namespace, without having them. OSError."""
    table = _on_devices(PROGRAMS)
    programs = [program for program in table if program.kind in kinds]
    linked = [*programs, *(program for program in PROGRAMS if program.kind is Kind.FRAMES and Kind.FRAMES in kinds)]
    for pin in [each for each in links.iterdir() if any(pinned_by(each.name, program) for program in linked)]:
        detach_link(pin)
    clsact.detach(places={(clsact.PARENTS[each.attach_type], _place(each, table)) for each in programs})


def _on_devices(table: Iterable[Program]) -> list[Program]:
    return [program for program in table if program.kind not in (Kind.SOCKETS, Kind.FRAMES, Kind.AGENT)]


def _same_hook(program: Program, table: Iterable[Program]) -> list[Program]:
    return [each for each in table if each.attach_type is program.attach_type]


def _place(program: Program, table: Iterable[Program]) -> int:
    return _same_hook(program, table).index(program)


def _attached(indexes: Mapping[str, int], programs: Sequence[Program]) -> Attached:
    """Of programs on devices with different indexes, of which all but one are gone, those on the one."""
    index = max(indexes.values())
    return Attached(index, tuple(each.name for each in programs if index and indexes.get(each.name) == index))


def _device_index(device: str) -> int:
    try:
        return socket.if_nametoindex(device)
    except OSError as e:
        raise Invalid("device", device, "is not in this network namespace") from e
