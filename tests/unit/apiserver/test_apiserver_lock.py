"""One API server per folder."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from clustermesh.apiserver import lock as module
from clustermesh.apiserver.lock import alone
from clustermesh.errors import Refused, Unavailable


async def test_a_second_one_is_refused_and_let_in_once_the_first_has_ended(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "PATIENCE", 0.2)
    async with alone(tmp_path):
        with pytest.raises(Refused, match=rf"another API server \(process {os.getpid()}\)"):
            async with alone(tmp_path):
                raise AssertionError("two at once")
    async with alone(tmp_path):
        pass


async def test_a_folder_that_is_not_there_is_said(tmp_path: Path) -> None:
    with pytest.raises(Unavailable, match="No such file"):
        async with alone(tmp_path / "nowhere"):
            raise AssertionError("held nothing")
