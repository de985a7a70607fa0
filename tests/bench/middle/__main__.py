"""`make bench-middle` (tests/bench/frame.py)."""

from __future__ import annotations

import sys

from tests.bench import frame

AIMS = {
    "hang_event_to_map_ms": 50,
    "event_to_map_ms": 2,
    "node_event_5000_ms": 5,
    "peers_511_idle_cpu_percent": 3,
    "endpoints_250000_s": 10,
    "endpoints_250000_rss_mb": 330,
    "connect_v4_relative": 1.02,
    "connect_v6_relative": 1.02,
    "program_10000_s": 0.6,
    "agent_ready_s": 0.5,
    "agent_rss_mb": 70,
    "upgrade_failed": 0,
    "downgrade_failed": 0,
    "status_5000_s": 2,
    "status_frozen_s": 4,
}

if __name__ == "__main__":
    sys.exit(frame.main("middle", "tests.bench.middle", AIMS))
