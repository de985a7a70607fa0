"""tc filters on clsact, for kernels without tcx (before Linux 6.6), through pyroute2.

Every call runs in a thread of its own: pyroute2 drives an event loop, which it cannot inside the agent's. A thread
starts in the network namespace of the thread that made it.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any, Final, NamedTuple, TypeVar

from agent.bpf.programs import program_info
from agent.bpf.syscalls import AttachType

if TYPE_CHECKING:
    from agent.pyroute import IPRoute

T = TypeVar("T")

# The parents of filters on clsact, and where tcx would attach instead.
INGRESS: Final = 0xFFFFFFF2
EGRESS: Final = 0xFFFFFFF3
PARENTS: Final = {AttachType.TCX_INGRESS: INGRESS, AttachType.TCX_EGRESS: EGRESS}
_CLSACT_PARENT: Final = 0xFFFFFFF1
_HANDLE: Final = 0x636D  # "cm": tells our filter from one somebody else has at the same priority
_FIRST: Final = 1  # of the priorities
_OWNER: Final = "clustermesh"  # a filter's name is this and its program's id, which pyroute2 does not read otherwise
_ALL_PROTOCOLS: Final = 3  # ETH_P_ALL; pyroute2 swaps the bytes itself, 0x0300 would attach and never run


class Filter(NamedTuple):
    """One of our filters. `parent` is INGRESS or EGRESS; of those of one parent the first `place`, from 0 on, runs
    first."""

    device: int
    parent: int
    place: int
    program_id: int


def _in_thread(work: Callable[[IPRoute], T]) -> T:
    from agent.pyroute import IPRoute, NetlinkError  # much of what an agent imports, and not needed to open its maps

    def run() -> T:
        with IPRoute() as route:
            try:
                return work(route)
            except NetlinkError as e:
                raise OSError(e.code, str(e)) from e

    with ThreadPoolExecutor(max_workers=1) as pool:
        return pool.submit(run).result()


def filters(device: int | None = None) -> list[Filter]:
    """Our filters on `device`, or on every device of this network namespace. OSError."""
    return _in_thread(lambda route: _filters(route, device))


def _filters(route: Any, device: int | None) -> list[Filter]:
    devices = [device] if device is not None else [link["index"] for link in route.get_links()]
    found = []
    for index in devices:
        for parent in (INGRESS, EGRESS):
            for message in route.get_filters(index=index, parent=parent):
                options = message.get_attr("TCA_OPTIONS")
                if message["handle"] == _HANDLE and message.get_attr("TCA_KIND") == "bpf" and options is not None:
                    prefix, _, number = (options.get_attr("TCA_BPF_NAME") or "").partition(":")
                    if prefix == _OWNER and number.isdecimal():
                        found.append(Filter(index, parent, (message["info"] >> 16) - _FIRST, int(number)))
    return found


def attach(device: int, parent: int, place: int, program: int) -> None:
    """Make `program` our filter in this place on `device`: added, or exchanged without a packet passing by. OSError."""

    def work(route: Any) -> None:
        if not _has_clsact(route, device):
            route.tc("add", "clsact", device)
        route.tc(
            "replace-filter",
            "bpf",
            device,
            handle=_HANDLE,
            fd=program,
            name=f"{_OWNER}:{program_info(program).id}",
            parent=parent,
            prio=_FIRST + place,
            protocol=_ALL_PROTOCOLS,
            direct_action=True,
        )

    _in_thread(work)


def _has_clsact(route: Any, device: int) -> bool:
    return any(
        qdisc["parent"] == _CLSACT_PARENT and qdisc["index"] == device and qdisc.get_attr("TCA_KIND") == "clsact"
        for qdisc in route.get_qdiscs(index=device)
    )


def detach(device: int | None = None, places: Collection[tuple[int, int]] | None = None) -> None:
    """Remove our filters from `device` or every device, or only those at `places` (parent, place), and clsact where it
    is then empty. OSError."""

    def work(route: Any) -> None:
        ours = [each for each in _filters(route, device) if places is None or (each.parent, each.place) in places]
        for each in ours:
            route.tc(
                "del-filter",
                "bpf",
                each.device,
                handle=_HANDLE,
                parent=each.parent,
                prio=_FIRST + each.place,
                protocol=_ALL_PROTOCOLS,
            )
        for index in {each.device for each in ours}:
            if not any(list(route.get_filters(index=index, parent=parent)) for parent in (INGRESS, EGRESS)):
                route.tc("del", "clsact", index)

    _in_thread(work)
