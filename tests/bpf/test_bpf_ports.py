"""Ports that are lent to clients outside of a backend elsewhere: the last of them are found, too."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from random import Random

import pytest
from bpf_flows import UDP
from bpf_outside import NODE_PORT, Outside, call
from bpf_services import LENT, PORTS, key_of

from agent.bpf.layouts import CtEntry, CtFlag, CtKey, Reason
from clustermesh.address import parse

pytestmark = pytest.mark.root

CALLS = 200


def lend(outside: Outside, share: float, *, is_answered: bool) -> set[int]:
    """So many of all ports to somebody else, who goes on: with answers, or without any for long."""
    chosen = Random(1).sample(LENT, round(share * len(LENT)))
    remote, node, client = map(parse, (outside.remote, outside.node, outside.router))
    target, now = PORTS[UDP][1], time.monotonic_ns() >> 30
    entries = {}
    for number, port in enumerate(chosen):
        reply = CtEntry(node, client, NODE_PORT, number, flags=CtFlag.REPLY | CtFlag.OUTSIDE | CtFlag.LENT)
        forward = CtEntry(node, remote, port, target, flags=CtFlag.OUTSIDE | CtFlag.ESTABLISHED, expires=now + 180)
        answered = reply._replace(flags=reply.flags | CtFlag.ESTABLISHED, expires=now + 180)
        entries[CtKey(remote, node, target, port, UDP)] = answered if is_answered else reply._replace(expires=now - 60)
        entries[CtKey(client, node, number, NODE_PORT, UDP)] = forward
    outside.put("ct", entries)
    return {*chosen}


@pytest.mark.parametrize("is_answered", [True, False])
@pytest.mark.parametrize("share", [0.9, 0.99])
def test_the_last_ports_are_found(outside: Outside, share: float, is_answered: bool) -> None:
    """Were 32 of them drawn at random and no more, one call in 30 would find none, and of the last hundredth three in
    four; so one in 2,000 does."""
    outside.is_summed = False
    taken, refused = lend(outside, share, is_answered=is_answered), 0
    for number in range(CALLS):
        sent = call(outside, UDP, 1024 + number)
        _, arrived = outside.from_outside(sent)
        assert arrived is not None
        if outside.count(Reason.DROP_NO_PORT) > refused:
            refused += 1
            continue
        assert arrived.source_port in {*LENT} - taken
        outside.drop("ct", key_of(sent), key_of(arrived.back()))
    assert refused < CALLS / 50


def test_where_there_is_none_it_is_said_at_once(outside: Outside) -> None:
    lend(outside, 1.0, is_answered=True)
    before = outside.entries()
    for number in range(10):
        outside.from_outside(call(outside, UDP, 1024 + number))
    assert outside.count(Reason.DROP_NO_PORT) == 10
    assert outside.entries().keys() == before.keys()


_SEARCHES_IN_VAIN = 4


def ticks() -> int:
    return time.monotonic_ns() >> 30


def in_one_tick(outside: Outside, work: Callable[[], int]) -> int:
    """On one CPU, however often that takes."""
    allowed = os.sched_getaffinity(0)
    outside.net.call(lambda: os.sched_setaffinity(0, {min(allowed)}))
    try:
        while True:
            before = ticks()
            while (begin := ticks()) == before:
                time.sleep(0.01)
            time.sleep(0.02)  # the programs' clock is coarser
            found = work()
            if ticks() == begin:
                return found
    finally:
        outside.net.call(lambda: os.sched_setaffinity(0, allowed))


def test_searches_in_vain_end_for_the_rest_of_a_tick(outside: Outside) -> None:
    """Whoever takes all ports has not each opening of everybody cost a search. Where one in 50 is free, what is
    searched for is found, and of what is drawn four in five calls get none."""
    outside.is_summed = False
    lend(outside, 1.0, is_answered=True)
    freed, entries = LENT[::50], outside.entries()
    keys = [key for key in entries if key.destination_port in freed]

    def refused(first: int) -> int:
        before = outside.count(Reason.DROP_NO_PORT)
        for number in range(first, first + 20):
            sent = call(outside, UDP, 1024 + number)
            _, arrived = outside.from_outside(sent)
            if arrived is not None and arrived.source_port in freed:
                outside.drop("ct", key_of(sent), key_of(arrived.back()))
        return outside.count(Reason.DROP_NO_PORT) - before

    def search() -> int:
        outside.put("ct", {key: entries[key] for key in keys})
        for number in range(_SEARCHES_IN_VAIN):
            outside.from_outside(call(outside, UDP, 1000 + number))
        outside.drop("ct", *keys)
        return refused(0)

    assert in_one_tick(outside, search) > 5
    assert in_one_tick(outside, lambda: refused(100)) == 0
