"""Timings, never asserted: `make bench` prints them, as ratios to a peer run beside them where there is one."""
