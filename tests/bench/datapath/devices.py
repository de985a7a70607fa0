"""500 pods on one node: their programs attached at once, found again by an agent that restarts, and looked at by an
audit. By the way this kernel has: tcx links, else clsact filters."""

from __future__ import annotations

import socket
import time
from collections.abc import Callable
from typing import Final, TypeVar

from agent.bpf.hooks import PROGRAMS, Kind
from agent.bpf.loader import Datapath
from agent.plan.devices import KINDS
from tests.bench import own_datapath
from tests.bench.datapath._network import Namespace

T = TypeVar("T")
_PODS: Final = 500
_DEVICES: Final = [f"lxc{number}" for number in range(_PODS)]
_PROGRAMS: Final = tuple(program for program in PROGRAMS if program.kind is Kind.POD)
_AUDITS: Final = 5


def measure() -> dict[str, list[float]]:
    with own_datapath.datapath() as datapath, Namespace() as node:
        node.ip(*(f"link add {each} type veth peer name pod{number}" for number, each in enumerate(_DEVICES)))
        datapath.program_fd(_PROGRAMS[0].name)  # loaded with the first: no part of this
        first, _ = _timed(node, lambda: _attach(datapath))
        again, _ = _timed(node, lambda: _attach(datapath))
        audits = [_timed(node, lambda: datapath.devices.running(KINDS)) for _ in range(_AUDITS)]
    if any(len(found) != _PODS for _, found in audits):
        raise RuntimeError("not every device has its programs")
    return {
        f"pods_{_PODS}_attach_s": [first],
        f"pods_{_PODS}_adopt_s": [again],
        f"pods_{_PODS}_audit_ms": [1000 * seconds for seconds, _ in audits],
    }


def _attach(datapath: Datapath) -> None:
    for each in _DEVICES:
        datapath.devices.attach(each, _PROGRAMS, index=socket.if_nametoindex(each))


def _timed(node: Namespace, work: Callable[[], T]) -> tuple[float, T]:
    done: list[tuple[float, T]] = []

    def timed() -> None:
        began = time.monotonic()
        found = work()
        done.append((time.monotonic() - began, found))

    node.call_long(timed)
    return done[0]


FIGURES = {f"pods_{_PODS}": measure}
