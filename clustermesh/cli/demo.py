"""`clustermesh demo`: every claim of the mesh, shown on a lab of its own; live on a terminal, lines elsewhere."""

from __future__ import annotations

import asyncio
import sys
import time
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING

import click
import msgspec
from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.spinner import Spinner
from rich.table import Table
from rich.text import Text

from clustermesh.cli.lab import size_options
from lab.demo import Audience, Demo, Outcome
from lab.plan import make_plan
from lab.records import Requests
from lab.streams import Capture

if TYPE_CHECKING:
    from lab.kubernetes import demo as kubernetes

_BAR = 30


class Lines:
    """The audience that is a log: one line for everything that happens, with the time since the start."""

    def __init__(self, stream: str) -> None:
        self._to_stderr, self._begun = stream == "stderr", time.monotonic()

    def _say(self, sentence: str) -> None:
        click.echo(f"{time.monotonic() - self._begun:5.1f} s  {sentence}", err=self._to_stderr)

    def step(self, number: int, title: str) -> None:
        self._say(f"{number}. {title}" if number else title)

    def doing(self, sentence: str) -> None:
        self._say(f"   {sentence}")

    def load(self, load: Requests) -> None:
        """Counts change too often for lines; the claims name them."""

    def capture(self, capture: Capture) -> None:
        """As for a load."""

    def claim(self, held: bool, sentence: str) -> None:
        self._say(f"   {'ok' if held else 'FAILED'}: {sentence}")


class Screen:
    """The audience at a terminal: what held stays above, what is going on changes below, ten times a second."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._title, self._doing = "", ""
        self._load: Requests | None = None
        self._capture: Capture | None = None
        self._spinner = Spinner("dots")

    def step(self, number: int, title: str) -> None:
        self._console.print(Text(f"{number}. {title}" if number else title, style="bold"))
        self._title, self._doing, self._load = title, "", None

    def doing(self, sentence: str) -> None:
        self._doing = sentence

    def load(self, load: Requests) -> None:
        self._load = load

    def capture(self, capture: Capture) -> None:
        self._capture = capture

    def claim(self, held: bool, sentence: str) -> None:
        mark = Text("   ✔ ", style="green") if held else Text("   ✘ ", style="bold red")
        self._console.print(mark + Text(sentence, style="" if held else "red"))

    def live(self) -> Group:
        """The changing part."""
        self._spinner.update(text=Text(self._doing or self._title, style="dim"))
        parts: list[RenderableType] = [self._spinner, *([_traffic(self._load)] if self._load else [])]
        if self._capture is not None and self._capture.counts is not None:
            counts = self._capture.counts
            words = f"   wire: {counts.wireguard_packets} WireGuard packets, {counts.clear_on_wire} clear-text markers"
            parts.append(Text(words, style="cyan"))
        return Group(*parts)


def _traffic(load: Requests) -> Table:
    """Requests so far, and a bar of who answered the last 200."""
    table = Table.grid(padding=(0, 1))
    traffic = load.traffic
    lately = [record.cluster for record in load.records[-200:] if record.cluster]
    for cluster, count in traffic.answers.items():
        share = lately.count(cluster) / max(len(lately), 1)
        table.add_row(f"   {cluster}", Text("█" * round(share * _BAR), style="green"), f"{count} answers")
    failed = Text(f"{traffic.failed} failed", style="bold red" if traffic.failed else "green")
    table.add_row("   ", Text(f"{traffic.requests} requests"), failed)
    return table


def watching(as_json: bool) -> tuple[Audience, AbstractContextManager[object]]:
    """Who watches, and what it is shown in."""
    console = Console()
    if as_json or not console.is_terminal:
        return Lines("stderr" if as_json else "stdout"), nullcontext()
    screen = Screen(console)
    return screen, Live(get_renderable=screen.live, console=console, refresh_per_second=10, transient=True)


@click.command()
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object; progress goes to stderr.")
@click.option("--kubernetes", is_flag=True, help="On two real Kubernetes clusters, made for it; see tools/setup-kube.")
@size_options
def command(
    as_json: bool, kubernetes: bool, clusters: int, nodes: int, pods: int, families: list[str], folder: Path
) -> None:
    """Show the mesh working: two clusters joined, a service failing over between them, nothing in clear on the wire.

    Makes a lab of its own, less than a minute, and removes it. Needs root. Exit code 0 only if every claim held.
    With --kubernetes it makes two Kubernetes clusters of a node each instead (API servers, kubelets, containerd),
    installs the chart and connects them by the commands of this program: two minutes.

    \b
    Examples:
      clustermesh demo
      clustermesh demo --json
      clustermesh demo --kubernetes
    """
    if kubernetes:
        from clustermesh.cli.demo_kubernetes import run

        run(as_json)
    if clusters < 2:
        raise click.UsageError("the demo joins clusters: --clusters must be at least 2")
    plan = make_plan(clusters, nodes, pods, str(folder.resolve()), families)
    audience, shown = watching(as_json)
    demo = Demo(plan, audience)
    begun = time.monotonic()
    try:
        with shown:
            asyncio.run(demo.run())
    except asyncio.CancelledError:
        raise KeyboardInterrupt from None  # SIGTERM: ended like by ^C
    finally:
        if demo.begun:
            _summarize(demo.outcome, as_json, time.monotonic() - begun)
    sys.exit(0 if demo.outcome.ok else 1)


def _summarize(outcome: Outcome, as_json: bool, seconds: float) -> None:
    killed, wire, delay = outcome.agent_restart, outcome.encrypted, outcome.propagation_ms
    summarize(
        outcome,
        as_json,
        seconds,
        f"agent killed {killed.requests} requests, {killed.failed} failed",
        f"on the wire  {wire.clear_on_wire} clear-text markers, {wire.wireguard_packets} WireGuard packets",
        f"propagation  p50 {delay.p50} ms, p99 {delay.p99} ms",
    )


def summarize(outcome: Outcome | kubernetes.Outcome, as_json: bool, seconds: float, *more: str) -> None:
    """How a demo ended; `more` are lines that only this one has."""
    if as_json:
        click.echo(msgspec.json.encode(outcome).decode())
        return
    click.echo()
    verdict = "Every claim held." if outcome.ok else "Not every claim held."
    click.secho(f"{verdict} {seconds:.0f} s.", bold=True, fg="green" if outcome.ok else "red")
    answered = ", ".join(f"{count} by {cluster}" for cluster, count in outcome.answers.items()) or "none"
    over = outcome.failover
    for line in (
        f"requests     {outcome.requests}, {outcome.failed} failed; answered: {answered}",
        f"failover     {over.requests} requests, {over.failed} failed, longest gap {over.longest_gap_ms} ms",
        *more,
        f"left behind  {', '.join(outcome.left_behind) or 'nothing'}",
    ):
        click.echo(f"  {line}")
