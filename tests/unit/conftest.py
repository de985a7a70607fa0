"""What a kill leaves behind: every state of a folder that one ever finds between two steps of a writer."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

# The calls that change a folder, or after which a power cut leaves something else than before.
_STEPS = ("replace", "unlink", "fsync", "mkdir")


@pytest.fixture
def killed_at_every_step(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Callable[[Path, Callable[[], object]], Iterator[int]]:
    """Call with a folder and a writer: runs it to its end, then puts the folder back to each state in between.

    Yields the number of the state. The last one is the finished folder.
    """

    def states(folder: Path, writer: Callable[[], object]) -> Iterator[int]:
        taken: list[Path] = []

        def take() -> None:
            taken.append(tmp_path / f"state-{len(taken)}")
            shutil.copytree(folder, taken[-1])

        with monkeypatch.context() as patched:
            for name in _STEPS:
                patched.setattr(os, name, _watched(getattr(os, name), take))
            writer()
        take()
        for number, state in enumerate(taken):
            shutil.rmtree(folder)
            shutil.copytree(state, folder)
            yield number

    return states


def _watched(real: Callable[..., object], before: Callable[[], None]) -> Callable[..., object]:
    busy = False

    def call(*args: object, **more: object) -> object:
        nonlocal busy
        if not busy:  # copying makes folders too
            busy = True
            try:
                before()
            finally:
                busy = False
        return real(*args, **more)

    return call
