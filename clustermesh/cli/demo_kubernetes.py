"""`clustermesh demo --kubernetes`: its story is `lab.kubernetes.demo`."""

from __future__ import annotations

import sys
import time
from typing import NoReturn

from clustermesh.cli.demo import summarize, watching
from lab.kubernetes.demo import Demo


def run(as_json: bool) -> NoReturn:
    """Ends with 0 only if every claim held."""
    audience, shown = watching(as_json)
    demo = Demo(audience)
    begun = time.monotonic()
    try:
        with shown:
            demo.run()
    finally:
        if demo.begun:
            summarize(demo.outcome, as_json, time.monotonic() - begun)
    sys.exit(0 if demo.outcome.ok else 1)
