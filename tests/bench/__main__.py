"""`make bench`: runs every benchmark in one lab of its own and prints one line per figure.

    name   what was measured, in its unit   its peer, measured in the same run   ratio

Options: names of benchmarks to run (agent, maps, services); --json for one JSON object.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

from clustermesh.errors import ClusterMeshError
from lab import bring_up, preconditions, teardown
from lab.lab import Lab
from lab.plan import make_plan
from tests.bench import bench_agent, bench_maps, bench_services

_FOLDER = Path("/run/clustermesh-lab-bench")
_BENCHES: dict[str, Callable[[Lab], Awaitable[list[dict[str, Any]]]]] = {
    "agent": bench_agent.run,
    "services": bench_services.run,
    "maps": bench_maps.run,
}


async def _run(names: list[str]) -> list[dict[str, Any]]:
    lab = await bring_up.up(make_plan(clusters=1, nodes=1, pods=1, folder=str(_FOLDER)), _say, bound=True)
    figures = []
    for name in names:
        _say(f"running {name}")
        figures += await _BENCHES[name](lab)
    return figures


def _say(sentence: str) -> None:
    print(sentence, file=sys.stderr)


def _print(figure: dict[str, Any]) -> None:
    peer = f"  {figure['peer']}: {figure['peer_value']:g} {figure['unit']}" if "peer" in figure else ""
    ratio = f"  ratio {figure['value'] / figure['peer_value']:.2f}" if figure.get("peer_value") else ""
    print(f"{figure['name']:<58} {figure['value']:>10g} {figure['unit']}{peer}{ratio}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(_BENCHES)} (default: all)")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    if unknown := set(options.names) - set(_BENCHES):
        parser.error(f"no benchmark {', '.join(sorted(unknown))}; there are {', '.join(_BENCHES)}")
    try:
        preconditions.check()
        figures = asyncio.run(_run(options.names or list(_BENCHES)))
    except ClusterMeshError as e:
        sys.exit(f"bench: {e}")
    finally:
        left = teardown.down(_FOLDER)
    if options.json:
        print(json.dumps(figures, indent=2))
    else:
        for figure in figures:
            _print(figure)
    if left:
        sys.exit(f"left behind: {left}")


main()
