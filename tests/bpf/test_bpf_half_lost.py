"""A connection of which conntrack has lost one half: the map was full, and the kernel took the entry of its replies."""

from __future__ import annotations

import pytest
from bpf_flows import ACK, FIN, RST, SYN, TCP, UDP, Packet
from bpf_node import Node
from bpf_outside import Outside, call, outside_of
from bpf_services import NEXT, REDIRECT, Bed, config, key_of, to_backend
from bpf_services import call as call_by_pod

from agent.bpf.layouts import Number, Reason

pytestmark = pytest.mark.root


@pytest.fixture
def outside(bed: Bed, net: Node) -> Outside:
    made = outside_of(bed, net)
    made.put("node_config", {Number(0): config(bed, port_first=61000, port_last=61000)})
    return made


def establish(outside: Outside, opening: Packet) -> Packet:
    """What arrives at the backend of a connection that goes on."""
    _, arrived = outside.from_outside(opening)
    assert arrived is not None
    answer = arrived.back().to(flags=SYN | ACK)
    for packet in (answer, opening.to(flags=ACK, ack=answer.seq + 1), answer.to(flags=ACK)):
        outside.from_outside(packet)
    return arrived.to(flags=ACK)


def lose_replies(outside: Bed, sent: Packet, arrived: Packet) -> Packet:
    """A later packet of the connection, whose replies have no entry any more."""
    outside.drop("ct", key_of(arrived.back()))
    return later(outside, sent.to(flags=ACK, ack=1001))


def later(outside: Bed, sent: Packet) -> Packet:
    """As if the last of it was a while ago."""
    found = outside.entry(sent)
    assert found is not None
    outside.change(sent, expires=found.expires - 3)
    return sent


def test_datagrams_are_answered_again(outside: Outside) -> None:
    sent = call(outside, UDP)
    arrived = establish(outside, sent)
    assert outside.from_outside(lose_replies(outside, sent, arrived)) == (REDIRECT, arrived)
    assert outside.from_outside(arrived.back()) == (REDIRECT, sent.back())


def test_datagrams_of_a_pod_are_answered_again(bed: Bed) -> None:
    sent = call_by_pod(bed, UDP)
    arrived = to_backend(bed, sent)
    bed.from_pod(sent)
    assert bed.from_pod(lose_replies(bed, sent, arrived)) == (NEXT, arrived)
    assert bed.to_pod(arrived.back()) == (NEXT, sent.back())


def test_tcp_is_reset_and_may_open_anew(outside: Outside) -> None:
    sent = call(outside, TCP)
    arrived = establish(outside, sent)
    last = lose_replies(outside, sent, arrived)
    assert outside.from_outside(last) == (REDIRECT, last.back().to(flags=RST, seq=last.ack, ack=0))
    assert outside.count(Reason.DROP_NO_CONNECTION) == 1
    assert outside.entries() == {}
    assert outside.from_outside(sent) == (REDIRECT, arrived.to(flags=SYN))


def test_tcp_that_opens_anew_is_not_reset(outside: Outside) -> None:
    sent = call(outside, TCP)
    arrived = establish(outside, sent)
    lose_replies(outside, sent, arrived)
    assert outside.from_outside(sent) == (REDIRECT, arrived.to(flags=SYN))
    assert outside.from_outside(arrived.back().to(flags=SYN | ACK)) == (REDIRECT, sent.back().to(flags=SYN | ACK))


@pytest.mark.parametrize("protocol", [TCP, UDP])
def test_who_was_lent_the_same_port_since_is_not_spoken_for(outside: Outside, protocol: int) -> None:
    one, two = call(outside, protocol), call(outside, protocol, 50001)
    arrived = establish(outside, one)
    last = lose_replies(outside, one, arrived)
    assert establish(outside, two) == arrived, "there is one port to lend"
    answer = arrived.back().to(flags=ACK)
    verdict, refused = outside.from_outside(last)
    assert (verdict, refused and refused.destination) == (REDIRECT, one.source), "and nothing to the backend"
    assert outside.from_outside(answer) == (REDIRECT, two.back().to(flags=ACK))
    assert outside.from_outside(two.to(flags=ACK, ack=1001)) == (REDIRECT, arrived.to(ack=1001))


def test_an_end_is_not_told_to_another_connection(outside: Outside) -> None:
    one, two = call(outside, TCP), call(outside, TCP, 50001)
    arrived = establish(outside, one)
    outside.drop("ct", key_of(arrived.back()))
    establish(outside, two)
    before = outside.entry(arrived.back())
    for flags in (FIN | ACK, RST):
        outside.from_outside(one.to(flags=flags, ack=1001))
        assert outside.entry(arrived.back()) == before


def test_an_answer_is_not_kept_for_another_connection(outside: Outside) -> None:
    """A client proves that it has had an answer by acknowledging it: that of its own connection."""
    sent = call(outside, TCP)
    _, arrived = outside.from_outside(sent)
    assert arrived is not None
    other = outside.entry(sent)
    assert other is not None
    outside.change(sent, source_port=61001)  # begun anew since, with another port
    outside.from_outside(arrived.back().to(flags=SYN | ACK))
    found = outside.entry(sent)
    assert found is not None
    assert found.from_device == 0


@pytest.mark.parametrize("protocol", [TCP, UDP])
def test_who_only_lost_what_it_sends_keeps_its_port(outside: Outside, protocol: int) -> None:
    sent = call(outside, protocol)
    arrived = establish(outside, sent)
    outside.drop("ct", key_of(sent))
    answer = arrived.back().to(flags=ACK)
    assert outside.from_outside(later(outside, answer)) == (REDIRECT, sent.back().to(flags=ACK))
    assert outside.from_outside(sent) == (REDIRECT, arrived.to(flags=SYN))
