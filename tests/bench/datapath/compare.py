"""Connections and requests by way of each variant, relative to the direct ones of the same round."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from functools import partial
from typing import Final

from tests.bench.datapath._conntrack import room_for_connections
from tests.bench.datapath._figures import KINDS, SIZES, Figure, names
from tests.bench.datapath._load import Cell, Load, Mode, compiled
from tests.bench.datapath._variants import standing
from tests.bench.frame import Together

_SECONDS: Final = 0.06  # that one variant has before it is the turn of another: what disturbs one disturbs all
_TURNS: Final = 4  # of each in a round
_ROUNDS: Final = 11
_MOST: Final = 75.0  # seconds of rounds


def compare(services: int, wanted: Sequence[str]) -> dict[str, list[float]]:
    """A sample of each figure from each round."""
    figures = [figure for name in wanted if (figure := Figure.of(name)) is not None]
    modes = list(dict.fromkeys(KINDS[figure.kind].mode for figure in figures))
    variants = list(dict.fromkeys(["direct", *(figure.variant for figure in figures)]))
    with ExitStack() as stack:
        program = stack.enter_context(compiled())
        stack.enter_context(room_for_connections())
        loads = {each: stack.enter_context(standing(program, each, services)) for each in variants}
        _round(loads, modes, 0)
        rounds, until = list[Mapping[tuple[str, Mode], Cell]](), time.monotonic() + _MOST
        while len(rounds) < _ROUNDS and time.monotonic() < until:
            rounds.append(_round(loads, modes, len(rounds) + 1))
    return {name: [_sample(figure, each) for each in rounds] for name, figure in zip(wanted, figures, strict=True)}


def _round(loads: Mapping[str, Load], modes: Sequence[Mode], number: int) -> dict[tuple[str, Mode], Cell]:
    """What came of each variant in each mode, all of them by turns."""
    draw, cells = random.Random(number), {}
    for mode in modes:
        for turn in range(_TURNS):
            for variant in draw.sample(list(loads), len(loads)):
                loads[variant].run(mode, _SECONDS, number * _TURNS + turn)
        cells |= {(variant, mode): load.told() for variant, load in loads.items()}
    return cells


def _sample(figure: Figure, cells: Mapping[tuple[str, Mode], Cell]) -> float:
    kind = KINDS[figure.kind]
    value = kind.value(cells[figure.variant, kind.mode])
    return value if figure.variant == "direct" else value / kind.value(cells["direct", kind.mode])


def _of(services: int) -> dict[str, Callable[[], object]]:
    together = Together(partial(compare, services))
    return dict.fromkeys(names(services), together)


FIGURES = {name: measure for services in SIZES for name, measure in _of(services).items()}
