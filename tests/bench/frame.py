"""The frame of a bench: runs its figures, prints a table, writes {name: {median, min, max, n, unit}} to a file.

ARGS: names of figures or of topics, or the beginnings of names (default: all). A figure that was not run this time
keeps what the file has of it; one that fails is said and makes the exit code 1, the others are run all the same.
"""

from __future__ import annotations

import importlib
import inspect
import json
import pkgutil
import signal
import statistics
import sys
import time
import traceback
from asyncio import run
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

_UNITS = {
    "ns": "ns",
    "ms": "ms",
    "s": "s",
    "mb": "MB",
    "percent": "%",
    "relative": "x",
    "failed": "requests",
    "written": "keys",
    "pps": "packets/s",
}

Samples = Sequence[float]
Measure = Callable[[], Any]


class Together:
    """Figures that are measured side by side. `measure` is called once, with the names that are asked for."""

    def __init__(self, measure: Callable[[Sequence[str]], Any]) -> None:
        self.measure = measure

    def __call__(self) -> Any:
        raise TypeError("is measured by its names: see runs()")


class AtLeast(float):
    """An aim that a figure reaches from above."""


def topics(package: str) -> dict[str, Mapping[str, Measure]]:
    """The figures of every file of the package, by the file's name."""
    folder = importlib.import_module(package).__path__
    names = sorted(each.name for each in pkgutil.iter_modules(folder) if not each.name.startswith("_"))
    return {name: importlib.import_module(f"{package}.{name}").FIGURES for name in names}


def chosen(found: Mapping[str, Mapping[str, Measure]], wanted: Sequence[str]) -> dict[str, Measure]:
    """The figures asked for, all where nothing was. ValueError for a name that stands for none."""
    everything = {name: measure for figures in found.values() for name, measure in figures.items()}
    if not wanted:
        return everything
    picked: dict[str, Measure] = {}
    for word in wanted:
        exactly = {word: everything[word]} if word in everything else None
        some = exactly or found.get(word) or {name: f for name, f in everything.items() if _stand_for(word, name)}
        if not some:
            raise ValueError(f"no figure {word}; there are {', '.join(everything)}")
        picked |= some
    return picked


def _stand_for(word: str, name: str) -> bool:
    return name.startswith(word) or word.startswith(name + "_")


def runs(wanted: Mapping[str, Measure]) -> Iterator[tuple[str, Measure]]:
    """What is run, one after the other, each with what it is called: figures that belong together are one."""
    done = []
    for name, measure in wanted.items():
        if not isinstance(measure, Together):
            yield name, measure
        elif measure not in done:
            done.append(measure)
            names = [each for each, other in wanted.items() if other is measure]
            said = name if len(names) == 1 else f"{name} and {len(names) - 1} with it"
            yield said, partial(measure.measure, names)


def measured(name: str, measure: Measure) -> dict[str, Samples]:
    """Its samples by the name of the figure."""
    found = run(measure()) if inspect.iscoroutinefunction(measure) else measure()
    return dict(found) if isinstance(found, Mapping) else {name: found}


def unit_of(name: str) -> str:
    """As the end of the name says."""
    return _UNITS.get(name.rsplit("_", 1)[-1], "")


def figure(name: str, samples: Samples, unit: Callable[[str], str] = unit_of) -> dict[str, Any]:
    """What is kept of a figure."""
    return {
        "median": statistics.median(samples),
        "min": min(samples),
        "max": max(samples),
        "n": len(samples),
        "unit": unit(name),
    }


def table(figures: Mapping[str, Mapping[str, Any]], aims: Mapping[str, float]) -> Iterator[str]:
    """Lines to print."""
    yield f"{'FIGURE':<28} {'MEDIAN':>10} {'MIN':>10} {'MAX':>10} {'N':>4}  {'UNIT':<8} AIM"
    for name, kept in figures.items():
        values = " ".join(f"{kept[key]:>10.4g}" for key in ("median", "min", "max"))
        aim = aims.get(name)
        verdict = "" if aim is None else f"{aim:g} {'reached' if _reaches(kept['median'], aim) else 'MISSED'}"
        yield f"{name:<28} {values} {kept['n']:>4}  {kept['unit']:<8} {verdict}"


def _reaches(value: float, aim: float) -> bool:
    return value >= aim if isinstance(aim, AtLeast) else value <= aim


def _keep(file: Path, fresh: Mapping[str, Mapping[str, Any]]) -> None:
    """Written after each figure: a long run that is ended has not been for nothing."""
    before = json.loads(file.read_text()) if file.exists() else {}
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(before | dict(fresh), indent=1, sort_keys=True) + "\n")


def _say(*lines: str) -> None:
    """Beside the table, as it goes."""
    print(*lines, sep="\n", file=sys.stderr, flush=True)


def main(name: str, package: str, aims: Mapping[str, float], unit: Callable[[str], str] = unit_of) -> int:
    """Run what the command line asks for of the bench `name`. The file is build/bench/NAME.json.

    Exit code 1 where a figure could not be measured: reaching an aim or not is for the reader of the table.
    """
    file = Path(f"build/bench/{name}.json")
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))  # what was made is taken away
    try:
        wanted = chosen(topics(package), sys.argv[1:])
    except ValueError as e:
        print(f"bench-{name}: {e}", file=sys.stderr)
        return 2
    figures: dict[str, dict[str, Any]] = {}
    failed = []
    began = time.monotonic()
    planned = list(runs(wanted))
    for number, (key, measure) in enumerate(planned, start=1):
        minutes, seconds = divmod(int(time.monotonic() - began), 60)
        _say(f"{minutes}:{seconds:02} measuring {key} ({number} of {len(planned)})")
        try:
            fresh = {each: figure(each, samples, unit) for each, samples in measured(key, measure).items()}
            figures |= fresh
            _say(*(f"     {line}" for line in list(table(fresh, aims))[1:]))
        except Exception:
            traceback.print_exc()
            failed.append(key)
        _keep(file, figures)
    print("\n".join(table(figures, aims)))
    if failed:
        print(f"not measured: {', '.join(failed)}", file=sys.stderr)
    return 1 if failed else 0
