"""How long a change takes through a mirror, whichever of service, stamp and copy is heard of first."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import count, permutations

import pytest

from clustermesh.mirror.propagation import HOP_SECONDS, MOST, SECONDS, Propagation
from clustermesh.model import Stamp

_NAMES: Iterator[int] = count()
SECOND = 1_000_000_000


class Bench:
    """A clock of its own, and a cluster that no other test has."""

    def __init__(self) -> None:
        self.now, self.cluster = 10 * SECOND, f"c{next(_NAMES)}"
        self.times = Propagation(lambda: self.now)

    def hops(self) -> dict[str, float]:
        """The sum of each hop, and of the whole."""
        sums = {}
        for metric in (HOP_SECONDS, SECONDS):
            for sample in (each for family in metric.collect() for each in family.samples):
                if sample.name.endswith("_sum") and sample.labels["source_cluster"] == self.cluster:
                    sums[sample.labels.get("hop", "whole")] = sample.value
        return sums


STAMP = Stamp(observed=5 * SECOND, published=7 * SECOND)


@pytest.mark.parametrize("order", [each for each in permutations("hcs") if each.index("h") < each.index("c")])
def test_each_hop_is_counted_once(order: tuple[str, ...]) -> None:
    bench = Bench()
    for step in order:
        if step == "h":
            bench.now = 10 * SECOND
            bench.times.heard(bench.cluster, b"key", 3)
        elif step == "c":
            bench.now = 14 * SECOND
            bench.times.copied([b"key", b"other"])
        else:
            bench.times.stamped({b"key": STAMP}, 3)
    bench.times.copied([b"key"])
    assert bench.hops() == {"publish": 2, "read": 3, "copy": 4, "whole": 9}


def test_a_stamp_of_another_change_says_nothing() -> None:
    bench = Bench()
    bench.times.heard(bench.cluster, b"key", 3)
    bench.times.stamped({b"key": STAMP}, 2)
    bench.times.copied([b"key"])
    assert bench.hops() == {"copy": 0}


def test_clocks_that_are_apart_make_nothing_take_less_than_no_time() -> None:
    bench = Bench()
    bench.times.stamped({b"key": Stamp(observed=30 * SECOND, published=40 * SECOND)}, 3)
    bench.times.heard(bench.cluster, b"key", 3)
    bench.times.copied([b"key"])
    assert bench.hops() == {"publish": 10, "read": 0, "copy": 0, "whole": 0}


def test_of_many_that_wait_the_oldest_are_forgotten() -> None:
    bench = Bench()
    for number in range(MOST + 1):
        bench.times.heard(bench.cluster, b"%d" % number, 3)
    bench.now += SECOND
    bench.times.copied([b"0"])
    assert bench.hops() == {}
    bench.times.copied([b"1", b"%d" % MOST])
    assert bench.hops() == {"copy": 2}
