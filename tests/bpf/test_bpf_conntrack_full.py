"""Conntrack that is full: what is in use stays, what is not gives way, and nobody is refused for want of room."""

from __future__ import annotations

import pytest
from bpf_flows import ACK, SYN, TCP, UDP, Packet
from bpf_outside import Outside, locally
from bpf_outside import call as call_outside
from bpf_services import NEXT, REDIRECT, Bed, call, config, key_of, to_backend

from agent.bpf.layouts import Number, Reason

pytestmark = pytest.mark.root

ROOM, FLOOD, USED_EVERY = 2048, 6000, 100
IN_USE = range(40000, 40020)


@pytest.fixture(scope="module")
def sizes() -> dict[str, int]:
    return {"ct": ROOM, "ct_direct": ROOM // 4}


@pytest.mark.parametrize("protocol", [TCP, UDP])
def test_what_is_in_use_stays_in_full_conntrack(bed: Bed, protocol: int) -> None:
    used = [call(bed, protocol, port=port) for port in IN_USE]
    for sent in used:
        bed.from_pod(sent)
        bed.by_stack(to_backend(bed, sent).back().to(flags=SYN | ACK))
    flood = call(bed, TCP)
    bed.from_pod(flood)  # the device is its pod's again
    for number in range(FLOOD):
        verdict, _ = bed.send("from_pod", flood.to(source_port=1024 + number))
        assert verdict == NEXT
        if number % USED_EVERY == 0:
            for sent in used:
                again = sent.to(flags=ACK)
                assert bed.send("from_pod", again) == (NEXT, to_backend(bed, again))
                answer = to_backend(bed, again).back()
                assert bed.to_pod(answer) == (NEXT, again.back())
    assert ROOM // 2 < len(bed.entries()) <= ROOM
    assert not [reason for reason in Reason if "DROP" in reason.name and bed.count(reason)]


def test_who_only_sends_keeps_the_entry_of_his_answers(bed: Bed) -> None:
    """A direction that nobody speaks in is in use as long as the other one is."""
    sent = call(bed, UDP)
    bed.from_pod(sent)
    for number in range(FLOOD):
        bed.send("from_pod", sent.to(source_port=1024 + number))
        if number % USED_EVERY == 0:
            found = bed.entry(sent)
            assert found is not None
            bed.change(sent, expires=found.expires - 5)
            bed.send("from_pod", sent)
    answer = to_backend(bed, sent).back()
    assert bed.to_pod(answer) == (NEXT, sent.back())


def test_a_connection_that_was_pushed_out_is_reset_and_counted(bed: Bed) -> None:
    idle = call(bed, TCP, port=40000)
    bed.from_pod(idle)
    for number in range(FLOOD):
        bed.send("from_pod", idle.to(source_port=1024 + number))
    assert bed.entry(idle) is None
    last = idle.to(flags=ACK, ack=9)
    assert bed.send("from_pod", last) == (REDIRECT, last.back().to(flags=4, seq=9, ack=0))
    assert bed.count(Reason.DROP_NO_CONNECTION) == 1
    assert bed.send("from_pod", idle)[0] == NEXT, "and may begin anew"


def test_what_goes_to_no_service_is_never_in_the_way(bed: Bed) -> None:
    sent = Packet(bed.pod, 40000, bed.stranger, 9, TCP)
    bed.from_pod(sent)
    for number in range(FLOOD // 4):
        each = sent.to(source_port=1024 + number)
        assert bed.send("from_pod", each) == (NEXT, each)
    assert bed.entries() == {}
    assert len(bed.direct()) <= ROOM // 4
    for flags in (ACK, SYN):
        assert bed.send("from_pod", sent.to(flags=flags)) == (NEXT, sent.to(flags=flags))


def opened(outside: Outside, sent: Packet, here: bool) -> Packet:
    """What its backend is sent, and answers."""
    _, arrived = outside.from_outside(sent)
    assert arrived is not None
    outside.run("to_outside" if here else "from_outside", arrived.back().to(flags=SYN | ACK, seq=7000))
    return arrived


@pytest.mark.parametrize("acknowledged", [False, True])
@pytest.mark.parametrize("here", [True, False])
def test_a_flood_of_forged_openings_pushes_out_nothing_that_is_established(
    outside: Outside, here: bool, acknowledged: bool
) -> None:
    """Though the backend answers each, and something is acknowledged that nobody said."""
    outside.put("node_config", {Number(0): config(outside, port_first=2000)})
    if here:
        locally(outside)
    idle = [call_outside(outside, TCP, port) for port in IN_USE]
    arrived = [opened(outside, sent, here) for sent in idle]
    for sent in idle:
        outside.from_outside(sent.to(flags=ACK, ack=7001))
    for number in range(FLOOD // 3):
        forged = call_outside(outside, TCP, 1024 + number).to(source=outside.router)
        opened(outside, forged, here)
        if acknowledged:
            outside.from_outside(forged.to(flags=ACK, ack=1000000))
    known = outside.entries()
    assert len(known) > ROOM // 2
    assert [sent for sent in (*idle, *(each.back() for each in arrived)) if key_of(sent) not in known] == []
