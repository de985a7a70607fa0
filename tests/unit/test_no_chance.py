"""Property tests in `make test` draw the same examples in every run."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

_ROOT = Path(__file__).parents[2]
_PROPERTY = """
from hypothesis import given, strategies as st

@given(st.integers())
def test_draws(number):
    with open("drawn", "a") as file:
        print(number, file=file)
"""


@pytest.fixture
def suite(tmp_path: Path) -> Path:
    (tmp_path / "conftest.py").write_bytes((_ROOT / "tests/conftest.py").read_bytes())
    (tmp_path / "test_drawn.py").write_text(_PROPERTY)
    return tmp_path


def drawn(suite: Path, *options: str, profile: str = "fixed") -> str:
    (suite / "drawn").write_text("")
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *options, "test_drawn.py"]
    subprocess.run(
        command, cwd=suite, env=os.environ | {"HYPOTHESIS_PROFILE": profile}, check=True, capture_output=True
    )
    return (suite / "drawn").read_text()


@pytest.mark.long
def test_two_runs_draw_the_same_examples_and_keep_none(suite: Path) -> None:
    assert drawn(suite) == drawn(suite)
    assert not list(suite.glob(".hypothesis/examples/*"))


@pytest.mark.long
def test_a_soak_draws_others_with_every_seed_and_the_same_with_one(suite: Path) -> None:
    first, again, other = (drawn(suite, f"--hypothesis-seed={seed}", profile="soak") for seed in (1, 1, 2))
    assert first == again
    assert first != other
