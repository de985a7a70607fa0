"""What a kill leaves behind: every state of a folder that one ever finds between two steps of a writer."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

# The calls that change a folder, or after which a power cut leaves something else than before.
_STEPS = ("replace", "unlink", "fsync", "mkdir")


# Mode and bytes of each file, mode and None of each folder.
State = dict[Path, tuple[int, bytes | None]]


@pytest.fixture
def killed_at_every_step(
    monkeypatch: pytest.MonkeyPatch,
) -> Callable[[Path, Callable[[], object]], Iterator[int]]:
    """Call with a folder and a writer: runs it to its end, then puts the folder back to each state in between.

    Yields the number of the state. The last one is the finished folder.
    """

    def states(folder: Path, writer: Callable[[], object]) -> Iterator[int]:
        taken: list[State] = []

        def take() -> None:
            state = _state(folder)
            if not taken or state != taken[-1]:
                taken.append(state)

        with monkeypatch.context() as patched:
            for name in _STEPS:
                patched.setattr(os, name, _watched(getattr(os, name), take))
            writer()
        take()
        for number, state in enumerate(taken):
            _restore(folder, state)
            yield number

    return states


def _state(folder: Path) -> State:
    found = {}
    for path in folder.rglob("*"):
        found[path] = (path.stat().st_mode & 0o777, path.read_bytes() if path.is_file() else None)
    return found


def _restore(folder: Path, state: State) -> None:
    shutil.rmtree(folder)
    folder.mkdir()
    for path, (mode, data) in state.items():  # a folder comes before what is in it
        if data is None:
            path.mkdir(mode=mode)
        else:
            path.write_bytes(data)
            path.chmod(mode)


def _watched(real: Callable[..., object], before: Callable[[], None]) -> Callable[..., object]:
    def call(*args: object, **more: object) -> object:
        before()
        return real(*args, **more)

    return call
