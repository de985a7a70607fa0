"""The first process of a node: makes its namespaces, keeps its services running, reaps, takes all down with it.

    python -m lab.node_init HOME [LIFELINE]

Prints its pid (in the caller's pid namespace), then "ready" or one sentence of what failed, and closes its output. It
is pid 1 of the node's pid namespace, so the kernel ends everything in the node when it ends, also by SIGKILL. It ends
by itself when HOME is removed, or when the other end of the pipe LIFELINE (a descriptor) closes: a dead owner leaves
no node behind. Standard library only: it starts in 20 ms and stays below 12 MB.
"""

from __future__ import annotations

import json
import os
import select
import signal
import sys
import time
from pathlib import Path

from lab import node_spec, syscalls
from lab.folder import FolderWatch
from lab.node_mounts import make_private
from lab.node_spec import NodeSpec, Running, Service

_NAMESPACES = (
    syscalls.CLONE_NEWNS
    | syscalls.CLONE_NEWNET
    | syscalls.CLONE_NEWPID
    | syscalls.CLONE_NEWCGROUP
    | syscalls.CLONE_NEWUTS
)
_STOP_SECONDS = 5.0  # between SIGTERM and SIGKILL
_LOOK_SECONDS = 0.5  # between looks at whether HOME is still there


class Supervisor:
    """Desired services (files) against running ones (children); `step` moves the one to the other."""

    def __init__(self, home: Path, spec: NodeSpec) -> None:
        self._home, self._spec = home, spec
        self._services: dict[str, Service] = {}
        self._pids: dict[str, int] = {}
        self._starts: dict[str, int] = {}
        self._not_before: dict[str, float] = {}
        self._kill_at: dict[str, float] = {}

    def step(self, now: float) -> None:
        """Reap, then start what is due and stop what is no longer wanted; `now` is monotonic seconds."""
        changed = self._reap(now)
        wanted = node_spec.read_services(self._home)
        for name in [name for name in self._pids if wanted.get(name) != self._services.get(name)]:
            self._stop(name, now)
        for name, service in wanted.items():
            if name not in self._pids and now >= self._not_before.get(name, 0.0):
                self._services[name] = service
                self._start(name, service)
                changed = True
        if changed:
            running = {name: Running(pid=self._pids.get(name, 0), starts=n) for name, n in self._starts.items()}
            node_spec.write(self._home / "running.json", running)

    def _reap(self, now: float) -> bool:
        """Collect every child that ended, services and orphans alike. True if a service was among them."""
        changed = False
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return changed
            if pid == 0:
                return changed
            for name in [name for name, running in self._pids.items() if running == pid]:
                print(f"{name} ended: {os.waitstatus_to_exitcode(status)}", flush=True)
                del self._pids[name]
                self._kill_at.pop(name, None)
                self._not_before[name] = now + self._services[name].restart
                changed = True

    def _start(self, name: str, service: Service) -> None:
        pid = os.fork()
        if pid == 0:
            _become(service.argv, self._spec.environment, self._home / "log" / f"{name}.log")
        self._pids[name] = pid
        self._starts[name] = self._starts.get(name, 0) + 1

    def _stop(self, name: str, now: float) -> None:
        self._not_before.pop(name, None)
        if name not in self._kill_at:
            self._kill_at[name] = now + _STOP_SECONDS
            os.kill(self._pids[name], signal.SIGTERM)
        elif now >= self._kill_at[name]:
            os.kill(self._pids[name], signal.SIGKILL)


def _become(argv: list[str], environment: dict[str, str], log: Path) -> None:
    """In a fresh child: be the service. Never returns."""
    try:
        os.setsid()
        signal.set_wakeup_fd(-1)
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        _print_to(log)
        os.execvpe(argv[0], argv, environment)
    except OSError as error:
        print(f"{argv[0]}: {error}", flush=True)
    finally:
        os._exit(127)


def _print_to(log: Path) -> None:
    descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    os.dup2(descriptor, 1)
    os.dup2(descriptor, 2)
    os.close(descriptor)


def main() -> None:
    home = Path(sys.argv[1])
    lifeline = int(sys.argv[2]) if len(sys.argv) > 2 else -1
    spec = node_spec.read_spec(home)
    os.setsid()
    Path(spec.cgroup, "cgroup.procs").write_text("0")
    syscalls.unshare(_NAMESPACES)  # the cgroup namespace is rooted where this process is now
    pid = os.fork()
    if pid:
        _answer({"pid": pid})
        return
    try:
        syscalls.set_host_name(spec.name)
        make_private(spec)
        _forward_packets()
    except OSError as error:
        _answer({"failed": str(error)})
        raise
    _answer({"ready": True})
    _print_to(home / "log" / "init.log")
    _live(home, spec, lifeline)


def _answer(line: dict[str, object]) -> None:
    """In one write: parent and child share the pipe."""
    os.write(1, json.dumps(line).encode() + b"\n")


def _forward_packets() -> None:
    """What every Kubernetes node has set: it routes for its pods."""
    Path("/proc/sys/net/ipv4/ip_forward").write_text("1")


def _live(home: Path, spec: NodeSpec, lifeline: int) -> None:
    """Until HOME is removed or the lifeline is cut."""
    if lifeline >= 0:
        os.set_inheritable(lifeline, False)
    children, wakeup = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    signal.set_wakeup_fd(wakeup, warn_on_full_buffer=False)
    watch = FolderWatch(home / "services")
    folder = os.open(home, os.O_RDONLY | os.O_DIRECTORY)
    supervisor = Supervisor(home, spec)
    waiting = [children, watch.fileno(), *([lifeline] if lifeline >= 0 else [])]
    while os.fstat(folder).st_nlink:
        watch.rearm()
        try:
            supervisor.step(time.monotonic())
        except FileNotFoundError:  # HOME is being removed under our hands
            continue
        ready, _, _ = select.select(waiting, [], [], _LOOK_SECONDS)
        if children in ready:
            os.read(children, 4096)
        if lifeline in ready:  # nobody ever writes: readable means closed
            return


if __name__ == "__main__":
    main()
