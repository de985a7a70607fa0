"""What is noted beside the maps is a help: a folder that cannot be used ends nothing."""

from __future__ import annotations

from pathlib import Path

import pytest

from agent.outdated import Outdated


def test_a_folder_that_cannot_be_used_is_told_of_and_no_error(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "file").write_bytes(b"")
    outdated = Outdated(tmp_path / "file")
    assert outdated.clusters() == set()
    outdated.add("beta")
    outdated.discard("beta")
    assert len(caplog.records) == 3
