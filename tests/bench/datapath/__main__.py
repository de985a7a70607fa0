"""`make bench-datapath` (tests/bench/frame.py)."""

from __future__ import annotations

import sys

from tests.bench import frame
from tests.bench.datapath._figures import KINDS, Figure
from tests.bench.frame import AtLeast

AIMS = {
    **{f"cps_{variant}_10000": AtLeast(0.95) for variant in ("socket", "tc", "tc_redirect")},
    **{f"p99_{variant}_10000": 1.05 for variant in ("socket", "tc", "tc_redirect")},
    **{f"cpu_{variant}_10000": 1.15 for variant in ("socket", "tc", "tc_redirect")},
    **{f"keepalive_{variant}_10000": AtLeast(1.0) for variant in ("socket", "tc", "tc_redirect")},
    "program_10000_s": 0.5,
    "change_one_ms": 1,
    "evict_3000_s": 1,
    "agent_rss_mb": 120,
    "idle_cpu_percent": 1,
    "changes_cpu_percent": 10,
}


def _unit(name: str) -> str:
    figure = Figure.of(name)
    if figure is None:
        return frame.unit_of(name)
    return KINDS[figure.kind].unit if figure.variant == "direct" else "x"


if __name__ == "__main__":
    sys.exit(frame.main("datapath", "tests.bench.datapath", AIMS, _unit))
