"""`make soak`: what nobody has tried yet, until the time is over: half of it property tests with new seeds, round after
round, half of it faults on a real bed (soak_faults.py).

    SOAK_SECONDS=3600 make soak ARGS="tests/unit/store"      property tests alone, where and for how long (300 s)
    SOAK_SECONDS=3600 make soak ARGS=faults                  faults alone
    SOAK_KILLS=200 make soak ARGS=kills                      an agent killed so often under load, in whole clusters

Every round says its seed, runs the tests in an order of its own and draws more examples than the one before. When the
time is over the test that runs is the last one. A failure ends the soak with the command that repeats it.

This file is also the pytest plugin that does so inside of a round.
"""

from __future__ import annotations

import os
import random
import shlex
import subprocess
import sys
import time

import pytest

_SECONDS = 300.0
_PATIENCE = 20.0  # seconds for the last test, before it is cut off
_EXAMPLES = (25, 100, 300)  # of each test, in the first rounds and in all later ones
_KILLS = "200"  # some ten minutes
_FAILED, _NOTHING = 1, 5  # what pytest exits with when tests failed, and when none was selected


def main() -> int:
    """Exit code 0 when no round failed."""
    where, seconds = sys.argv[1:], float(os.environ.get("SOAK_SECONDS", _SECONDS))
    from tests.soak_faults import soak as soak_faults  # not for pytest, whose plugin this is too

    if where == ["kills"]:
        return _kill(os.environ.get("SOAK_KILLS", _KILLS))
    if where == ["faults"]:
        return soak_faults(time.time() + seconds)
    if where:
        return _soak_properties(where, time.time() + seconds)
    return _soak_properties(["tests/unit"], time.time() + seconds / 2) or soak_faults(time.time() + seconds / 2)


def _kill(times: str) -> int:
    """At other moments each time; the test says how many requests there were, and how many of them failed."""
    told = {
        "LAB_KILLS": times,
        "LAB_SEED": os.environ.get("SOAK_SEED") or str(random.SystemRandom().randrange(1 << 32)),
    }
    print(f"{times} kills, SOAK_SEED={told['LAB_SEED']}", flush=True)
    what = [
        "tests/lab/test_lab_killed.py",
        "-k",
        "wherever_in_its_work",
        "-q",
        "-s",
        "--no-header",
        "-p",
        "no:cacheprovider",
    ]
    return subprocess.run([sys.executable, "-m", "pytest", *what], env={**os.environ, **told}, check=False).returncode


def _soak_properties(where: list[str], end: float) -> int:
    seeds, began = list[int](), time.monotonic()
    while end > time.time():
        seed, examples = random.SystemRandom().randrange(1 << 32), _EXAMPLES[min(len(seeds), len(_EXAMPLES) - 1)]
        print(f"round {len(seeds) + 1}: seed {seed}, {examples} examples", flush=True)
        code = _round(where, seed, {"SOAK_EXAMPLES": str(examples), "SOAK_END": str(end)}, end)
        if code:
            return _explain(where, seed, examples, code)
        seeds.append(seed)
    print(f"nothing failed in {time.monotonic() - began:.0f} s; {len(seeds)} rounds, seeds {' '.join(map(str, seeds))}")
    return 0


def _round(where: list[str], seed: int, told: dict[str, str], end: float) -> int:
    """pytest's exit code, 0 where the last test was cut off."""
    environment = {**os.environ, "HYPOTHESIS_PROFILE": "soak", **told}
    try:
        patience = end - time.time() + _PATIENCE
        return subprocess.run(_command(where, seed), env=environment, timeout=patience, check=False).returncode
    except subprocess.TimeoutExpired:
        print("\nthe last test was cut off")
        return 0


def _command(where: list[str], seed: int) -> list[str]:
    once = ["-m", "hypothesis", "-x", "-q", "--no-header", "-p", "no:cacheprovider", "-o", "timeout=0"]
    return [sys.executable, "-m", "pytest", *where, *once, "-p", "tests.soak", f"--hypothesis-seed={seed}"]


def _explain(where: list[str], seed: int, examples: int, code: int) -> int:
    if code == _NOTHING:
        print(f"no property test in {' '.join(where)}", file=sys.stderr)
    elif code == _FAILED:
        profile = ["HYPOTHESIS_PROFILE=soak", f"SOAK_EXAMPLES={examples}"]
        print(f"failed with seed {seed}; again: {shlex.join([*profile, *_command(where, seed)])}", file=sys.stderr)
    return code


# -- the plugin -------------------------------------------------------------------------------------------------------


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """In an order that the seed says: whatever the time, every test gets its turn."""
    random.Random(config.getoption("--hypothesis-seed")).shuffle(items)


def pytest_runtest_setup() -> None:
    """Nothing begins once the time is over."""
    if time.time() > float(os.environ.get("SOAK_END", "inf")):
        pytest.skip("the time is over")


if __name__ == "__main__":
    sys.exit(main())
