"""`clustermesh demo --kubernetes`: its story is `lab.kubernetes.demo`."""

from __future__ import annotations

import sys
import time
from typing import NoReturn

import click
import msgspec

from clustermesh.cli.demo import watching
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
            _summarize(demo, as_json, time.monotonic() - begun)
    sys.exit(0 if demo.outcome.ok else 1)


def _summarize(demo: Demo, as_json: bool, seconds: float) -> None:
    outcome = demo.outcome
    if as_json:
        click.echo(msgspec.json.encode(outcome).decode())
        return
    click.echo()
    verdict = "Every claim held." if outcome.ok else "Not every claim held."
    click.secho(f"{verdict} {seconds:.0f} s.", bold=True, fg="green" if outcome.ok else "red")
    answered = ", ".join(f"{count} by {cluster}" for cluster, count in outcome.answers.items()) or "none"
    click.echo(f"  requests     {outcome.requests}, {outcome.failed} failed; answered: {answered}")
    over = outcome.failover
    click.echo(f"  failover     {over.requests} requests, {over.failed} failed, longest gap {over.longest_gap_ms} ms")
    click.echo(f"  left behind  {', '.join(outcome.left_behind) or 'nothing'}")
