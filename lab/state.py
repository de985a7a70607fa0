"""What the lab remembers between commands: <folder>/state.json. Written before anything is made, so that a lab whose
maker was killed half-way can be told from a standing one, and be taken down.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import msgspec
from msgspec import Struct

from clustermesh.errors import DecodeError, Refused
from lab import own_folder
from lab.plan import LabPlan
from lab.processes import Process, lives


class LabState(Struct, kw_only=True):
    """`owner` is set while the lab belongs to one process (being made, or a demo); `complete` once it was all up.

    `processes` are the first process of each machine, `namespaces` their namespaces as "net:[4026531840]", and `host`
    the links, routes and rules of the host before: what teardown is judged by.
    """

    plan: LabPlan
    owner: Process | None = None
    complete: bool = False
    processes: dict[str, Process] = {}
    namespaces: list[str] = []
    host: list[str] = []

    def standing(self) -> bool:
        """All machines live, and nobody died while making it."""
        orphaned = self.owner is not None and not lives(self.owner)
        machines = {*(machine.name for machine in self.plan.machines)} <= self.processes.keys()
        return self.complete and not orphaned and machines and all(map(lives, self.processes.values()))


def save(state: LabState) -> None:
    """Into the folder, which is a lab's already."""
    folder = Path(state.plan.folder)
    part = folder / ".state.json.part"
    part.write_bytes(msgspec.json.format(msgspec.json.encode(state), indent=1))
    os.replace(part, folder / "state.json")


def load(folder: Path) -> LabState | None:
    """None where no lab was ever begun. DecodeError where the lab's file is broken."""
    if not own_folder.is_lab(folder):
        return None
    try:
        return msgspec.json.decode((folder / "state.json").read_bytes(), type=LabState)
    except FileNotFoundError:
        return None
    except msgspec.DecodeError as error:
        raise DecodeError(str(folder / "state.json"), "", str(error)) from error


@contextmanager
def only_one(folder: Path) -> Iterator[None]:
    """Refused while another command makes or unmakes the lab in `folder`."""
    with socket.socket(socket.AF_UNIX) as lock:
        try:
            lock.bind(f"\0{own_folder.identity(folder)}")  # abstract: no file to leave behind, freed with its process
        except OSError as error:
            raise Refused("another `clustermesh lab` or `clustermesh demo` is at work: wait until it ends") from error
        yield
