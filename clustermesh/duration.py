"""Times as Go's programs, and so Cilium's flags, write them: 15s, 10m0s, 1h30m."""

from __future__ import annotations

import re
from typing import Final

from clustermesh.errors import Invalid

SHORTEST_TTL: Final = 90.0
"""Seconds: an etcd that is well is asked for something twice a minute."""
LONGEST: Final = 720 * 3600.0
"""Seconds: whoever wants more has mistyped, and clocks, leases and sleeps end somewhere."""
_UNITS: Final = {"h": 3600.0, "m": 60.0, "s": 1.0, "ms": 0.001}


def parse_duration(text: str, field: str) -> float:
    """Seconds. Raises Invalid."""
    parts = re.findall(r"([0-9]+|[0-9]*\.[0-9]+)(ms|h|m|s)", text)
    if text != "0" and ("".join(map("".join, parts)) != text or not parts):
        raise Invalid(field, text, "must be a time like 15s, 10m or 1h30m")
    seconds = sum(float(number) * _UNITS[unit] for number, unit in parts)
    if seconds > LONGEST:
        raise Invalid(field, text, f"must be at most {LONGEST / 3600:g}h")
    return seconds


def parse_ttl(text: str, field: str) -> float:
    """For how long a lease outlives its holder: etcd counts in whole seconds."""
    seconds = parse_duration(text, field)
    if seconds < 1:
        raise Invalid(field, text, f"must be from 1s to {LONGEST / 3600:g}h")
    return seconds


def parse_cache_ttl(text: str, field: str) -> float:
    """After how many seconds without an answer of a peer's etcd its services are withdrawn, 0 for never."""
    seconds = parse_duration(text, field)
    if 0 < seconds < SHORTEST_TTL:
        raise Invalid(field, text, f"must be 0s for never, or {SHORTEST_TTL:g}s or more, like 10m")
    return seconds
