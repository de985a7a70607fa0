"""Flags of an etcd that is made for a test."""

from __future__ import annotations

from typing import Final

QUICK: Final = ("--heartbeat-interval=10", "--election-timeout=100", "--unsafe-no-fsync")
"""Alone it elects itself at once; with the usual timings it takes up to a second. No power cut is to be outlived: a
disk that is busy with everything else holds up nobody."""
QUICK_MEMBER: Final = ("--heartbeat-interval=50", "--election-timeout=500", "--unsafe-no-fsync")
"""One of several: whoever is slow for a tenth of a second leads on."""
