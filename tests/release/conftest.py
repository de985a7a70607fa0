"""What `make dist` builds, built once."""

from __future__ import annotations

from pathlib import Path

import pytest
from chart_bed import GIVEN
from dist_bed import build


@pytest.fixture(scope="session")
def what() -> list[str]:
    return ["wheel", "any", "chart", "image"] if GIVEN else ["any", "image"]


@pytest.fixture(scope="session")
def dist(what: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("dist")
    build(out, *what)
    return out
