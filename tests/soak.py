"""`make soak`: the property tests with seeds nobody has tried, round after round, until the time is over.

    SOAK_SECONDS=3600 make soak ARGS="tests/unit/store"      where and for how long (tests/unit, 300 s)

Every round says its seed. A round that fails ends the soak with the command that repeats it.
"""

from __future__ import annotations

import os
import random
import shlex
import subprocess
import sys
import time

_SECONDS = 300.0
_FAILED = 1  # what pytest exits with when tests failed
_NOTHING = 5  # no test was selected


def main() -> int:
    """Exit code 0 when no round failed."""
    where = sys.argv[1:] or ["tests/unit"]
    end = time.monotonic() + float(os.environ.get("SOAK_SECONDS", _SECONDS))
    rounds = 0
    while (left := end - time.monotonic()) > 0:
        seed = random.SystemRandom().randrange(1 << 32)
        code = _round(where, seed, left)
        if code is None:
            break
        if code:
            return _explain(where, seed, code)
        rounds += 1
    print(f"{rounds} rounds, and a last one that the time ended: nothing failed")
    return 0


def _round(where: list[str], seed: int, seconds: float) -> int | None:
    """pytest's exit code, None where the time was over first."""
    print(f"seed {seed}", flush=True)
    try:
        return subprocess.run(_command(where, seed), env=_environment(), timeout=seconds, check=False).returncode
    except subprocess.TimeoutExpired:
        return None


def _command(where: list[str], seed: int) -> list[str]:
    once = ["-m", "hypothesis", "-x", "-q", "--no-header", "-p", "no:cacheprovider", "-o", "timeout=0"]
    return [sys.executable, "-m", "pytest", *where, *once, f"--hypothesis-seed={seed}"]


def _environment() -> dict[str, str]:
    return {**os.environ, "HYPOTHESIS_PROFILE": "soak"}


def _explain(where: list[str], seed: int, code: int) -> int:
    if code == _NOTHING:
        print(f"no property test in {' '.join(where)}", file=sys.stderr)
    elif code == _FAILED:
        again = shlex.join(["HYPOTHESIS_PROFILE=soak", *_command(where, seed)])
        print(f"failed with seed {seed}; again: {again}", file=sys.stderr)
    return code


if __name__ == "__main__":
    sys.exit(main())
