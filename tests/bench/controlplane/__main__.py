"""`make bench-controlplane` (tests/bench/frame.py)."""

from __future__ import annotations

import sys

from tests.bench import frame

AIMS = {
    "start_2000_s": 1,
    "start_2000_rss_mb": 110,
    "start_10000_s": 3,
    "start_10000_rss_mb": 150,
    "restart_10000_s": 2,
    "restart_10000_keys_written": 0,
    "pods_100000_s": 15,
    "pods_100000_rss_mb": 400,
    "mirror_10000_s": 2.5,
    "mirror_10000_rss_mb": 98,
    "patch_to_etcd_p50_ms": 5,
    "patch_to_etcd_p99_ms": 12,
    "patch_to_cache_p50_ms": 6,
    "patch_to_cache_p99_ms": 13,
    "rate_1000_p99_ms": 100,
    "mirror_250_clusters_s": 45,
    "agent_250_clusters_s": 12,
    "agent_250_clusters_rss_mb": 330,
    "idle_511_cpu_percent": 5,
}

if __name__ == "__main__":
    sys.exit(frame.main("controlplane", "tests.bench.controlplane", AIMS))
