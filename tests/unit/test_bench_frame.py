"""The frame of a bench: which figures are run, and what is kept of them."""

from __future__ import annotations

import pytest
from bench.frame import AtLeast, Together, chosen, figure, measured, runs, table


def one() -> list[float]:
    return [3.0, 1.0, 2.0]


async def several() -> dict[str, list[float]]:
    return {"load_s": [1.0], "load_rss_mb": [2.0]}


FOUND = {"start": {"agent_ready_s": one, "agent_rss_mb": one}, "load": {"load": several}}


@pytest.mark.parametrize(
    ("wanted", "names"),
    [
        ([], ["agent_ready_s", "agent_rss_mb", "load"]),
        (["start"], ["agent_ready_s", "agent_rss_mb"]),
        (["agent_rss"], ["agent_rss_mb"]),
        (["load_rss_mb"], ["load"]),
    ],
)
def test_figures_are_chosen_by_topic_or_by_the_beginning_of_a_name(wanted: list[str], names: list[str]) -> None:
    assert list(chosen(FOUND, wanted)) == names


def test_a_name_that_stands_for_no_figure_is_said() -> None:
    with pytest.raises(ValueError, match="no figure lode; there are agent_ready_s"):
        chosen(FOUND, ["lode"])


def test_one_run_may_give_several_figures() -> None:
    assert measured("agent_ready_s", one) == {"agent_ready_s": [3.0, 1.0, 2.0]}
    assert measured("load", several) == {"load_s": [1.0], "load_rss_mb": [2.0]}


def test_a_figure_is_its_median_extremes_and_unit_and_is_shown_beside_its_aim() -> None:
    kept = figure("agent_ready_s", one())
    assert kept == {"median": 2.0, "min": 1.0, "max": 3.0, "n": 3, "unit": "s"}
    assert [line.split()[-1] for line in table({"agent_ready_s": kept}, {"agent_ready_s": 0.5})] == ["AIM", "MISSED"]


@pytest.mark.parametrize(("aim", "verdict"), [(1.0, "MISSED"), (AtLeast(1.0), "reached"), (AtLeast(3.0), "MISSED")])
def test_an_aim_is_reached_from_below_or_from_above(aim: float, verdict: str) -> None:
    assert [line.split()[-1] for line in table({"rate": figure("rate", one())}, {"rate": aim})] == ["AIM", verdict]


def test_a_figure_is_called_by_its_whole_name_where_others_begin_with_it() -> None:
    assert list(chosen({"rates": {"rate_10": one, "rate_100": one}}, ["rate_10"])) == ["rate_10"]


def test_figures_that_belong_together_are_measured_at_once_and_only_those_asked_for() -> None:
    asked = list[str]()
    both = Together(lambda names: asked.extend(names) or {name: [1.0] for name in names})
    planned = dict(runs({"rate_10": both, "alone_s": one, "rate_100": both}))
    assert list(planned) == ["rate_10 and 1 with it", "alone_s"]
    assert measured("rates", planned["rate_10 and 1 with it"]) == {"rate_10": [1.0], "rate_100": [1.0]}
    assert asked == ["rate_10", "rate_100"]
