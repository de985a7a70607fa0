"""Processes by pid and start time, so that a pid that was given to someone else is never taken for ours, nor killed."""

from __future__ import annotations

import os
import select
import signal
from pathlib import Path
from typing import Final

from msgspec import Struct

_EXITING: Final = 0x4  # PF_EXITING of linux/sched.h, in the flags of proc(5)


class Process(Struct, frozen=True, kw_only=True):
    """One process of this machine; `start` is its start time in clock ticks since boot (proc(5), stat field 22)."""

    pid: int
    start: int


def start_time(pid: int) -> int | None:
    """When `pid` was started, or None where there is no such process (a zombie is none)."""
    fields = _stat(pid)
    return int(fields[19]) if fields else None


def _stat(pid: int) -> list[str]:
    """From its state on; empty where there is no such process."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return []
    fields = stat.rpartition(")")[2].split()  # the name before it may hold spaces and brackets
    return [] if fields[0] in "ZX" else fields


def identify(pid: int) -> Process | None:
    start = start_time(pid)
    return None if start is None else Process(pid=pid, start=start)


def exists(process: Process) -> bool:
    return start_time(process.pid) == process.start


def lives(process: Process) -> bool:
    """Whether it exists and is not ending. The first process of a pid namespace ends once all others there have, and
    somebody has collected them: that may take long, and nothing runs there meanwhile."""
    fields = _stat(process.pid)
    return bool(fields) and int(fields[19]) == process.start and not int(fields[6]) & _EXITING


def kill_and_wait(process: Process, seconds: float) -> bool:
    """SIGKILL, then wait until it is gone. False if it still lives after `seconds`; True also if it never did."""
    try:
        descriptor = os.pidfd_open(process.pid)
    except ProcessLookupError:
        return True
    try:
        if not exists(process):  # asked only now: from here on the descriptor cannot come to mean another process
            return True
        signal.pidfd_send_signal(descriptor, signal.SIGKILL)
        poll = select.poll()
        poll.register(descriptor, select.POLLIN)
        return bool(poll.poll(seconds * 1000))
    except ProcessLookupError:
        return True
    finally:
        os.close(descriptor)
