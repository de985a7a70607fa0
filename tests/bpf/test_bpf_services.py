"""Services packet by packet, at a pod's veth: what a packet becomes, both ways, in both families.

    pod 10.1.0.5  --from_pod-->  10.96.0.1:80  ==>  10.1.0.7:8080  backend
                  <--to_pod----                <--from_pod--

Every checksum of every packet is computed anew as it is read.
"""

from __future__ import annotations

import struct
import sys

import pytest
from bpf_flows import ACK, FIN, ICMP, ICMP6, RST, SCTP, SYN, TCP, UDP, Packet, join, ones_sum
from bpf_run import program_test_run
from bpf_services import BACKEND, DROP, LENT, NEXT, PORTS, REDIRECT, Bed, bare, call, config, key_of, to_backend

from agent.bpf.layouts import (
    NO_ADDRESS,
    CtFlag,
    CtFragment,
    CtFragmentKey,
    MeantValue,
    Number,
    Reason,
    SlotsKey,
)
from agent.bpf.pins import pages, shape_of
from agent.bpf.syscalls import map_lookup, map_update
from agent.conntrack.entries import KEY, VALUE
from agent.conntrack.tracked import Tracked
from clustermesh.address import parse
from clustermesh.mesh.resolve import BackendState

pytestmark = pytest.mark.root


@pytest.mark.parametrize("protocol", PORTS)
def test_a_packet_goes_to_the_backend_and_its_answer_comes_from_the_service(bed: Bed, protocol: int) -> None:
    sent = call(bed, protocol)
    arrived = to_backend(bed, sent)
    assert bed.from_pod(sent) == (NEXT, arrived)
    answer = arrived.back().to(flags=SYN | ACK, payload=b"" if protocol == TCP else b"odd")
    for program in (bed.by_stack, bed.to_pod):
        assert program(answer) == (NEXT, sent.back().to(flags=answer.flags, payload=answer.payload))
    again = sent.to(flags=ACK, payload=b"more of it")
    assert bed.from_pod(again) == (NEXT, to_backend(bed, again))
    assert (bed.count(Reason.NAT_NEW), bed.count(Reason.NAT_FORWARD), bed.count(Reason.NAT_REPLY)) == (1, 2, 2)


def variations(bed: Bed) -> dict[str, Packet]:
    tcp, udp = call(bed, TCP), call(bed, UDP)
    options = bytes([0, 0, 1, 4, 0, 0, 0, 0]) if bed.is_ipv6() else b"\x94\x04\x00\x00"
    found = {
        "TCP, with options of IP": tcp.to(options=options),
        "UDP, with options of IP": udp.to(options=options),
        "TCP with data in its SYN": tcp.to(payload=b"fast open"),
        "an odd number of bytes": udp.to(payload=b"odd"),
        "nothing in it": udp.to(payload=b""),
        "all ones": udp.to(payload=b"\xff" * 99),
    }
    if not bed.is_ipv6():
        found["UDP without a checksum"] = udp.to(is_checked=False)
        found["all options there is room for"] = tcp.to(options=b"\x01" * 40)
    return found


def test_whatever_a_packet_is_its_ends_change_and_nothing_else(bed: Bed) -> None:
    for kind, sent in variations(bed).items():
        assert bed.from_pod(sent) == (NEXT, to_backend(bed, sent)), kind
        answer = to_backend(bed, sent).back().to(flags=SYN | ACK)
        assert bed.to_pod(answer) == (NEXT, sent.back().to(flags=SYN | ACK)), kind


def test_what_is_no_services_is_left_as_it_is(bed: Bed) -> None:
    for sent in (
        Packet(bed.pod, 40000, bed.stranger, 80, TCP),
        Packet(bed.pod, 40000, bed.vip, 81, TCP),
        Packet(bed.pod, 40000, bed.vip, 80, UDP, payload=b"x"),
        Packet(bed.pod, 0, bed.vip, 0, ICMP6 if bed.is_ipv6() else ICMP, icmp=(128 if bed.is_ipv6() else 8, 0, 1)),
        Packet(bed.pod, 0, bed.vip, 0, 47, payload=b"what follows GRE"),
        bed.error(bed.pod, bed.stranger, Packet(bed.stranger, 80, bed.pod, 40000, TCP)),
    ):
        for program in (bed.from_pod, bed.to_pod):
            assert program(sent) == (NEXT, sent)
    assert bed.count(Reason.NAT_NEW) == 0


@pytest.mark.parametrize("cut", [20, 21, 27, 39, 40, 47, 59])
def test_a_packet_that_ends_too_early_is_left_to_the_kernel(bed: Bed, cut: int) -> None:
    frame = call(bed, TCP).frame()[: 14 + cut]
    if not 0 <= cut - (40 if bed.is_ipv6() else 20) < 20:
        return  # the kernel makes no packet of it to run a program over, or it is whole
    bed.from_pod(Packet(bed.pod, 1, bed.stranger, 1))
    for program in ("from_pod", "to_pod"):
        result = program_test_run(bed.datapath.program_fd(program), frame, 1)
        assert (result.verdict, result.data) == (NEXT, frame)


# At which byte of the network header, what stands there instead.
NO_PACKETS = {
    "IPv4": {
        "of no version": (0, b"\x05"),
        "of another version": (0, b"\x65"),
        "shorter than its header": (2, b"\0\x13"),
        "shorter than its transport's": (2, b"\0\x1b"),
        "longer than its frame": (2, b"\x10\0"),
    },
    "IPv6": {
        "of no version": (0, b"\0"),
        "of another version": (0, b"\x45"),
        "shorter than its transport's": (4, b"\0\x07"),
        "longer than its frame": (4, b"\x10\0"),
    },
}


@pytest.mark.parametrize("protocol", PORTS)
@pytest.mark.parametrize("empty", [False, True])
def test_what_the_kernel_takes_for_no_packet_is_left_to_it(bed: Bed, protocol: int, empty: bool) -> None:
    """It is neither translated nor answered, and opens nothing."""
    sent = call(bed, protocol, bed.empty if empty else None)
    for at, what in NO_PACKETS["IPv6" if bed.is_ipv6() else "IPv4"].values():
        frame = bytearray(sent.frame(120))
        frame[14 + at : 14 + at + len(what)] = what
        if not bed.is_ipv6():
            frame[24:26] = bytes(2)
            frame[24:26] = (0xFFFF - ones_sum(bytes(frame[14:34]))).to_bytes(2, "big")
        bed.from_pod(Packet(bed.pod, 1, bed.stranger, 1))
        for program in ("from_pod", "to_pod"):
            result = program_test_run(bed.datapath.program_fd(program), bytes(frame), 1)
            assert (result.verdict, result.data) == (NEXT, bytes(frame)), (at, what)
    assert bed.entries() == {}


@pytest.mark.parametrize("flags", [SYN, ACK, FIN | ACK, SYN | FIN])
@pytest.mark.parametrize("size", [0, 60, 90])
def test_a_service_without_backends_refuses_tcp_by_a_reset(bed: Bed, flags: int, size: int) -> None:
    for sent in (
        call(bed, TCP, bed.empty).to(flags=flags, ack=77),
        call(bed, TCP, bed.empty).to(flags=flags, payload=b"abc"),
    ):
        verdict, answer = bed.from_pod(sent.frame(size))
        assert answer is not None
        length = len(sent.payload) + (flags & SYN > 0) + (flags & FIN > 0)
        expected = sent.back().to(flags=RST | ACK, seq=0, ack=1000 + length, payload=b"")
        if flags & ACK:
            expected = sent.back().to(flags=RST, seq=sent.ack, ack=0, payload=b"")
        assert (verdict, answer) == (REDIRECT, expected)
    reason = Reason.DROP_NO_BACKEND if flags & SYN and not flags & ACK else Reason.DROP_NO_CONNECTION
    assert bed.count(reason) == 2
    assert not [entry for entry in bed.entries().values() if entry.service_id]


@pytest.mark.parametrize("options", [bytes(4), b"\x01" * 8, b"\x94\x04\0\0", bytes(range(1, 41))], ids=bytes.hex)
@pytest.mark.parametrize("protocol", PORTS)
def test_what_came_with_options_is_refused_by_an_answer_whose_checksums_are_right(
    bed: Bed, protocol: int, options: bytes
) -> None:
    """They stay in a reset, and are quoted by an error."""
    sent = call(bed, protocol, bed.empty).to(options=b"" if bed.is_ipv6() else options)
    verdict, answer = bed.from_pod(sent)
    assert verdict == REDIRECT
    assert answer is not None
    assert (answer.source, answer.destination) == (bed.empty, bed.pod)
    assert (answer if protocol == TCP else answer.about).options == sent.options  # type: ignore[union-attr]


def test_a_reset_to_a_service_without_backends_is_not_answered(bed: Bed) -> None:
    assert bed.from_pod(call(bed, TCP, bed.empty).to(flags=RST)) == (DROP, None)


@pytest.mark.parametrize("protocol", [UDP, SCTP])
@pytest.mark.parametrize("payload", [b"", b"abc", b"x" * 600])
def test_a_service_without_backends_refuses_what_is_not_tcp_by_icmp(bed: Bed, protocol: int, payload: bytes) -> None:
    sent = call(bed, protocol, bed.empty).to(payload=payload)
    verdict, answer = bed.from_pod(sent.frame(60))
    assert verdict == REDIRECT
    assert answer is not None
    assert (answer.source, answer.destination) == (bed.empty, bed.pod)
    assert answer.icmp == ((1, 4, 0) if bed.is_ipv6() else (3, 3, 0))
    assert answer.about is not None
    assert key_of(answer.about) == key_of(sent)


def test_an_answer_leaves_by_the_way_the_question_came(bed: Bed) -> None:
    frame = call(bed, TCP, bed.empty).frame()
    bed.from_pod(frame)
    result = program_test_run(bed.datapath.program_fd("from_pod"), frame, 1)
    assert result.data[:14] == frame[6:12] + frame[:6] + frame[12:14]


def test_sctp_to_another_port_is_refused(bed: Bed) -> None:
    bed.serve(bed.vip, 9, SCTP, 500, BACKEND + 20)
    verdict, answer = bed.from_pod(Packet(bed.pod, 40000, bed.vip, 9, SCTP, payload=b"x"))
    assert verdict == REDIRECT
    assert answer is not None
    assert bed.count(Reason.DROP_SCTP_PORT) == 1


def test_a_packet_of_no_connection_is_answered_by_a_reset(bed: Bed) -> None:
    sent = call(bed, TCP).to(flags=ACK, ack=55)
    assert bed.from_pod(sent) == (REDIRECT, sent.back().to(flags=RST, seq=55, ack=0))
    assert bed.count(Reason.DROP_NO_CONNECTION) == 1


@pytest.mark.parametrize("protocol", PORTS)
def test_a_pod_that_calls_itself_sees_the_node_calling(bed: Bed, protocol: int) -> None:
    sent = call(bed, protocol, bed.own)
    verdict, arrived = bed.from_pod(sent)
    assert verdict == REDIRECT
    assert arrived is not None
    port = arrived.source_port
    assert port == sent.source_port if protocol == SCTP else port in LENT
    target = PORTS[protocol][1]
    assert arrived == sent.to(source=bed.node, source_port=port, destination=bed.pod, destination_port=target)
    answer = arrived.back().to(flags=SYN | ACK)
    assert bed.from_pod(answer) == (REDIRECT, sent.back().to(flags=SYN | ACK))


def test_a_pod_cannot_call_itself_where_the_node_has_no_address(bed: Bed) -> None:
    bed.put("node_config", {Number(0): config(bed)._replace(node4=NO_ADDRESS, node6=NO_ADDRESS)})
    assert bed.from_pod(call(bed, TCP, bed.own)) == (DROP, None)
    assert bed.count(Reason.DROP_NO_ADDRESS) == 1


# --- ICMP errors


@pytest.mark.parametrize("protocol", PORTS)
@pytest.mark.parametrize("by", ["backend", "router"])
def test_an_error_about_a_translated_packet_names_the_service(bed: Bed, protocol: int, by: str) -> None:
    sent = call(bed, protocol)
    arrived = to_backend(bed, sent)
    bed.from_pod(sent)
    source, shown = (bed.backend, bed.vip) if by == "backend" else (bed.router, bed.router)
    verdict, found = bed.to_pod(bed.error(source, bed.pod, arrived))
    assert (verdict, found) == (NEXT, bed.error(shown, bed.pod, bare(sent)))
    assert bed.count(Reason.NAT_ERROR) == 1


@pytest.mark.parametrize("protocol", PORTS)
def test_an_error_about_an_answer_names_the_backend(bed: Bed, protocol: int) -> None:
    sent = call(bed, protocol)
    bed.from_pod(sent)
    shown, real = sent.back(), to_backend(bed, sent).back()
    assert bed.from_pod(bed.error(bed.pod, bed.vip, shown)) == (NEXT, bed.error(bed.pod, bed.backend, bare(real)))


@pytest.mark.parametrize("protocol", [TCP, UDP])
def test_the_quoted_checksum_is_that_of_the_packet_as_it_was(bed: Bed, protocol: int) -> None:
    """Whole packets are quoted here, so that their checksums can be looked at."""
    sent = call(bed, protocol)
    bed.from_pod(sent)
    frame = bed.error(bed.router, bed.pod, to_backend(bed, sent)).frame()
    data = program_test_run(bed.datapath.program_fd("to_pod"), frame, 1).data
    assert data[14 + (48 if bed.is_ipv6() else 28) :] == sent.network()


@pytest.mark.parametrize("protocol", [TCP, UDP])
def test_eight_bytes_of_a_transport_are_enough_to_know_it(bed: Bed, protocol: int) -> None:
    sent = call(bed, protocol)
    bed.from_pod(sent)
    quoted = (40 if bed.is_ipv6() else 20) + 8
    verdict, found = bed.to_pod(bed.error(bed.router, bed.pod, to_backend(bed, sent), quoted))
    assert verdict == NEXT
    assert found is not None
    assert found.about is not None
    assert key_of(found.about) == key_of(sent)


@pytest.mark.parametrize("protocol", [TCP, UDP])
@pytest.mark.parametrize("headers", ["a fragment", "options", "both"])
def test_an_error_about_a_packet_with_more_headers_names_the_service(bed: Bed, protocol: int, headers: str) -> None:
    """As a router says that a large datagram, which was sent in fragments, is too large in these, too."""
    options = bytes([0, 0, 1, 4, 0, 0, 0, 0]) if bed.is_ipv6() else b"\x94\x04\x00\x00"
    sent = call(bed, protocol).to(payload=bytes(2000), options=b"" if headers == "a fragment" else options)
    if headers != "options":
        sent, later = sent.fragments(1232, 77)
    verdict, arrived = bed.from_pod(sent)
    assert verdict == NEXT
    assert arrived is not None
    icmp = (2, 0, 1280) if bed.is_ipv6() else (3, 4, 1280)
    error = bed.error(bed.router, bed.pod, arrived).to(icmp=icmp)
    assert about(bed, error.frame()) == sent.network()
    if headers != "options":
        _, arrived = bed.from_pod(later)
        assert arrived is not None
        frame = bed.error(bed.router, bed.pod, arrived).to(icmp=icmp).frame()
        assert about(bed, frame) == arrived.network(), "whose ports nobody knows is left as it is"


def about(bed: Bed, frame: bytes) -> bytes:
    """The packet that an error is about as its receiver has it, the checksum of the error having been looked at."""
    result = program_test_run(bed.datapath.program_fd("to_pod"), frame, 1)
    inner = result.data[14 + (40 if bed.is_ipv6() else 20) :]
    pseudo = result.data[22:54] + struct.pack("!II", len(inner), ICMP6) if bed.is_ipv6() else b""
    assert (result.verdict, ones_sum(pseudo + inner)) == (NEXT, 0xFFFF)
    return inner[8:]


# --- fragments


@pytest.mark.parametrize("protocol", [TCP, UDP])
def test_all_fragments_go_where_the_first_went(bed: Bed, protocol: int) -> None:
    bed.from_pod(call(bed, protocol))
    sent = call(bed, protocol).to(flags=ACK, payload=bytes(range(256)))
    first, rest = sent.fragments(128, 4711)
    assert joined(bed.from_pod(first), bed.from_pod(rest)) == to_backend(bed, sent)
    first, rest = to_backend(bed, sent).back().fragments(32, 4711)
    assert joined(bed.to_pod(first), bed.to_pod(rest)) == sent.back()


def joined(*sent: tuple[int, Packet | None]) -> Packet:
    (_, first), (_, rest) = sent
    assert first is not None
    assert rest is not None
    assert [verdict for verdict, _ in sent] == [NEXT, NEXT]
    return join(first, rest)


def test_a_fragment_whose_first_is_not_known_is_left_as_it_is(bed: Bed) -> None:
    first, _ = call(bed, UDP).to(payload=bytes(64)).fragments(32, 1)
    _, rest = call(bed, UDP).to(payload=bytes(64)).fragments(32, 2)
    bed.from_pod(first)
    assert bed.from_pod(rest) == (NEXT, rest)


def test_a_packet_with_the_number_of_another_is_not_translated_as_that_was(bed: Bed) -> None:
    first, _ = call(bed, UDP).to(payload=bytes(64)).fragments(32, 1)
    bed.from_pod(first)
    first, rest = call(bed, UDP).to(destination_port=9999, payload=bytes(64)).fragments(32, 1)
    assert bed.from_pod(first) == (NEXT, first)
    assert bed.from_pod(rest) == (NEXT, rest)


def test_what_the_first_fragment_had_is_forgotten_when_the_kernel_would_not_wait_either(bed: Bed) -> None:
    first, rest = call(bed, UDP).to(payload=bytes(64)).fragments(32, 1)
    bed.from_pod(first)
    ends = CtFragmentKey(parse(bed.pod), parse(bed.vip), ident_of(bed, 1), UDP)
    bed.put("ct_fragments", {ends: CtFragment(40000, 53, expires=1)})
    assert bed.from_pod(rest) == (NEXT, rest)


def ident_of(bed: Bed, number: int) -> int:
    """As it is in ct_fragments, whose key has it as the packet has."""
    return int.from_bytes(number.to_bytes(4 if bed.is_ipv6() else 2, "big"), sys.byteorder)


def test_a_fragment_is_refused_without_an_answer(bed: Bed) -> None:
    assert bed.from_pod(call(bed, UDP, bed.empty).to(payload=bytes(64)).fragments(32, 1)[0]) == (DROP, None)


# --- what a connection's entries live through


def opened(bed: Bed, sent: Packet) -> Packet:
    """A connection as after its handshake; returns what arrived of its first packet."""
    verdict, arrived = bed.from_pod(sent)
    assert verdict in (NEXT, REDIRECT)
    assert arrived is not None
    bed.by_stack(arrived.back().to(flags=SYN | ACK))
    bed.from_pod(sent.to(flags=ACK))
    return arrived


def closed(bed: Bed, sent: Packet, arrived: Packet) -> None:
    bed.from_pod(sent.to(flags=FIN | ACK))
    bed.by_stack(arrived.back().to(flags=FIN | ACK))


def test_a_source_port_that_is_used_again_with_another_service_of_the_backend_is_shown_that_one(bed: Bed) -> None:
    """The trap: the answer's entry is of the service before."""
    one, two = call(bed, TCP), call(bed, TCP, bed.second_vip)
    arrived = opened(bed, one)
    closed(bed, one, arrived)
    assert bed.from_pod(two) == (NEXT, arrived)
    answer = arrived.back().to(flags=SYN | ACK)
    assert bed.by_stack(answer) == (NEXT, two.back().to(flags=SYN | ACK))
    assert bed.entry(one) is None, "what leads to the same place would be shown the second service, too"


def test_two_live_connections_from_one_port_to_one_backend_are_told_apart(bed: Bed) -> None:
    one, two = call(bed, TCP), call(bed, TCP, bed.second_vip)
    arrived = opened(bed, one)
    lent = opened(bed, two)
    assert lent == arrived.to(source_port=lent.source_port)
    assert lent.source_port in LENT
    for sent, came in ((one, arrived), (two, lent)):
        data = came.back().to(flags=ACK, payload=b"whose?")
        assert bed.by_stack(data) == (NEXT, sent.back().to(flags=ACK, payload=b"whose?"))
        assert bed.from_pod(sent.to(flags=ACK, payload=b"mine")) == (NEXT, came.to(flags=ACK, payload=b"mine"))
    error = bed.error(bed.router, bed.pod, lent)
    assert bed.to_pod(error) == (NEXT, bed.error(bed.router, bed.pod, bare(two)))


def test_where_no_port_is_left_to_lend_the_connection_is_refused(bed: Bed) -> None:
    bed.put("node_config", {Number(0): config(bed)._replace(port_first=61000, port_last=61000)})
    opened(bed, call(bed, TCP))
    opened(bed, call(bed, TCP, bed.second_vip))
    third = "fd96::33" if bed.is_ipv6() else "10.96.0.33"
    bed.serve(third, 80, TCP, 600, BACKEND)
    verdict, answer = bed.from_pod(call(bed, TCP, third))
    assert verdict == REDIRECT
    assert answer is not None
    assert answer.flags == RST | ACK
    assert bed.count(Reason.DROP_NO_PORT) == 1


def test_sctp_can_be_lent_no_port(bed: Bed) -> None:
    bed.from_pod(call(bed, SCTP))
    verdict, _ = bed.from_pod(call(bed, SCTP, bed.second_vip))
    assert verdict == REDIRECT
    assert bed.count(Reason.DROP_NO_PORT) == 1


@pytest.mark.parametrize("protocol", [TCP, UDP])
def test_what_a_pod_sends_to_the_backend_itself_is_told_apart_from_the_services(bed: Bed, protocol: int) -> None:
    direct, sent = to_backend(bed, call(bed, protocol)), call(bed, protocol)
    assert bed.from_pod(direct) == (NEXT, direct)
    verdict, arrived = bed.from_pod(sent)
    assert verdict == NEXT
    assert arrived is not None
    assert arrived.source_port in LENT
    for answer, shown in ((direct.back(), direct.back()), (arrived.back(), sent.back())):
        assert bed.by_stack(answer.to(flags=ACK)) == (NEXT, shown.to(flags=ACK))


@pytest.mark.parametrize("protocol", [TCP, UDP])
def test_what_a_pod_sends_to_the_backend_itself_later_is_told_apart_too(bed: Bed, protocol: int) -> None:
    direct, sent = to_backend(bed, call(bed, protocol)), call(bed, protocol)
    arrived = opened(bed, sent)
    verdict, told = bed.from_pod(direct)
    assert verdict == NEXT
    assert told is not None
    assert told == direct.to(source_port=told.source_port)
    assert told.source_port in LENT
    for answer, shown in ((arrived.back(), sent.back()), (told.back(), direct.back())):
        assert bed.by_stack(answer.to(flags=ACK)) == (NEXT, shown.to(flags=ACK)), "translated once"
        for source in (bed.backend, bed.router):
            error = bed.error(source, bed.pod, bare(answer.back()))
            by = shown.source if source == bed.backend else source
            assert bed.by_stack(error) == (NEXT, bed.error(by, bed.pod, bare(shown.back())))


@pytest.mark.parametrize("protocol", PORTS)
def test_what_goes_to_no_service_takes_no_room_of_what_does(bed: Bed, protocol: int) -> None:
    sent = Packet(bed.pod, 40000, bed.stranger, 9, protocol, payload=b"x")
    for each in (sent, sent, sent.to(flags=ACK), sent.to(flags=FIN | ACK)):
        assert bed.from_pod(each) == (NEXT, each)
    assert bed.entries() == {}
    (found,) = bed.direct().items()
    assert found[0] == key_of(sent)
    assert found[1].flags & CtFlag.ESTABLISHED
    assert bool(found[1].flags & CtFlag.FIN) == (protocol == TCP)


def test_what_goes_to_no_service_is_no_way_around_the_source_check(bed: Bed) -> None:
    sent = Packet(bed.pod, 40000, bed.stranger, 9, UDP, payload=b"x")
    bed.from_pod(sent)
    found = bed.direct()[key_of(sent)]
    bed.from_pod(Packet(bed.other, 1, bed.stranger, 1))
    bed.put("ct_direct", {key_of(sent): found._replace(from_device=99)})
    assert bed.send("from_pod", sent) == (DROP, None)
    assert bed.direct()[key_of(sent)].from_device == 99


@pytest.mark.parametrize("protocol", [TCP, UDP])
def test_what_is_over_is_told_apart_from_nothing(bed: Bed, protocol: int) -> None:
    direct, sent = to_backend(bed, call(bed, protocol)), call(bed, protocol)
    bed.from_pod(direct)
    bed.put("ct_direct", {key_of(direct): bed.direct()[key_of(direct)]._replace(expires=1)})
    assert bed.from_pod(sent) == (NEXT, direct), "it keeps its port"
    verdict, told = bed.from_pod(direct)
    assert (verdict, told != direct) == (NEXT, True), "which is the service's now"


def test_what_the_backend_itself_sends_a_client_is_told_apart_from_its_answers(bed: Bed) -> None:
    sent = call(bed, UDP)
    direct = to_backend(bed, sent).back()
    assert bed.from_pod(direct) == (NEXT, direct)
    _, arrived = bed.from_pod(sent)
    assert arrived is not None
    assert arrived.source_port in LENT
    assert bed.to_pod(direct) == (NEXT, direct)


def test_an_opening_packet_to_the_backend_itself_that_is_sent_again_has_the_same_port(bed: Bed) -> None:
    opened(bed, call(bed, TCP))
    direct = to_backend(bed, call(bed, TCP))
    first = bed.from_pod(direct)
    assert first[1] != direct, "it is told apart"
    assert {bed.from_pod(direct) for _ in range(5)} == {first}


def test_an_opening_packet_that_is_sent_again_goes_to_the_same_backend(bed: Bed) -> None:
    sent = call(bed, TCP)
    bed.from_pod(sent)
    before = bed.entries()
    bed.back(9, bed.other, 8080, TCP)
    bed.put("lb_slots", {SlotsKey(100): [Number(9)] * 16})
    assert bed.from_pod(sent) == (NEXT, to_backend(bed, sent))
    assert bed.entries().keys() == before.keys()


@pytest.mark.parametrize(
    ("state", "is_open"), [(None, False), (None, True), *((state, False) for state in BackendState if state)]
)
def test_a_connection_is_opened_anew_where_its_backend_may_not_be_given_any_more(
    bed: Bed, state: BackendState | None, is_open: bool
) -> None:
    """Once it is open it goes on where that is there."""
    sent = call(bed, TCP)
    opened(bed, sent) if is_open else bed.from_pod(sent)
    bed.back(9, bed.other, 8080, TCP)
    bed.put("lb_slots", {SlotsKey(100): [Number(9)] * 16})
    if state is None:
        bed.drop("lb_backends", Number(BACKEND))
    else:
        bed.back(BACKEND, bed.backend, 8080, TCP, state)
    arrived = sent.to(destination=bed.other, destination_port=8080)
    assert bed.from_pod(sent) == (NEXT, arrived)
    assert bed.to_pod(arrived.back().to(flags=SYN | ACK)) == (NEXT, sent.back().to(flags=SYN | ACK))
    assert len(bed.entries()) == 2, "nothing is left of the one before"


@pytest.mark.parametrize("state", BackendState)
def test_an_opening_packet_on_a_live_connection_changes_nothing(bed: Bed, state: BackendState) -> None:
    """Anybody can forge one: the backend knows what to answer."""
    sent = call(bed, TCP)
    arrived = opened(bed, sent)
    bed.back(BACKEND, bed.backend, 8080, TCP, state)
    bed.back(9, bed.other, 8080, TCP)
    bed.put("lb_slots", {SlotsKey(100): [Number(9)] * 16})
    assert bed.from_pod(sent) == (NEXT, arrived)
    assert bed.from_pod(sent.to(flags=ACK)) == (NEXT, arrived.to(flags=ACK))


def test_an_established_connection_to_a_terminating_backend_goes_on(bed: Bed) -> None:
    sent = call(bed, TCP)
    arrived = opened(bed, sent)
    bed.back(BACKEND, bed.backend, 8080, TCP, BackendState.TERMINATING)
    bed.change(sent, expires=1)  # so that it is looked at
    assert bed.from_pod(sent.to(flags=ACK)) == (NEXT, arrived.to(flags=ACK))


def test_a_connection_whose_backend_is_gone_is_reset(bed: Bed) -> None:
    sent = call(bed, TCP)
    opened(bed, sent)
    bed.drop("lb_backends", Number(BACKEND))
    bed.change(sent, expires=bed.entry(sent).expires - 5)  # type: ignore[union-attr]
    last = sent.to(flags=ACK, ack=99)
    assert bed.from_pod(last) == (REDIRECT, last.back().to(flags=RST, seq=99, ack=0))
    assert bed.entries() == {}


@pytest.mark.parametrize("protocol", PORTS)
def test_what_left_one_of_two_services_that_had_it_is_found_and_ended(bed: Bed, protocol: int) -> None:
    """The programs cannot see it: the backend is there."""
    sent = call(bed, protocol)
    other = sent.to(destination=bed.second_vip, source_port=sent.source_port + 1)
    arrived = [opened(bed, each) for each in (sent, other)]
    tracked = Tracked(bed.datapath.maps["ct"])
    found = {meaning.address: meaning for meaning, count in tracked.find().items() if count == 1}
    port, target = PORTS[protocol]
    meant = found[parse(bed.vip)]
    assert meant == MeantValue(parse(bed.vip), parse(bed.backend), port, target, meant.backend_id, protocol)
    assert found.keys() == {parse(bed.vip), parse(bed.second_vip)}
    assert tracked.end({meant}) == 1
    assert tracked.end({meant}) == 0, "it is gone"
    bed.back(9, bed.other, target, protocol)
    bed.put("lb_slots", {SlotsKey(100 + 10 * [*PORTS].index(protocol)): [Number(9)] * 16})
    if protocol == TCP:
        last = sent.to(flags=ACK, ack=99)
        assert bed.from_pod(last) == (REDIRECT, last.back().to(flags=RST, seq=99, ack=0))
    else:
        assert bed.from_pod(sent) == (NEXT, arrived[0].to(destination=bed.other))
        assert tracked.end({meant}) == 0, "it was begun anew, with another"
        assert bed.entry(sent) is not None
    assert bed.from_pod(other.to(flags=ACK)) == (NEXT, arrived[1].to(flags=ACK))


def test_what_is_ended_takes_no_pair_that_is_anothers_by_now(bed: Bed) -> None:
    """A reply's entry was pushed out, and its port was lent to somebody else since."""
    sent = call(bed, TCP)
    opened(bed, sent)
    tracked, ct = Tracked(bed.datapath.maps["ct"]), bed.datapath.maps["ct"]
    (meant,) = tracked.find()
    both = {key: value for page in pages(ct, shape_of(ct)) for key, value in page.entries((KEY.size, VALUE.size))}
    (reply,) = [key for key, value in both.items() if VALUE.unpack(value)[1] & CtFlag.REPLY]
    somebody = both[reply][:33] + bytes([both[reply][33] ^ 1]) + both[reply][34:]
    map_update(ct, reply, somebody)
    assert tracked.end({meant}) == 1
    assert map_lookup(ct, reply, VALUE.size) == somebody


def test_a_connection_into_an_evicted_cluster_is_reset_and_one_into_a_drained_goes_on(bed: Bed) -> None:
    sent = call(bed, TCP)
    bed.back(BACKEND, bed.backend, 8080, TCP, cluster=2)
    arrived = opened(bed, sent).to(flags=ACK)
    last = sent.to(flags=ACK, ack=99)
    for drained, evicted in (((), ()), ((2,), ()), ((2, 3), (3,)), ((), (2,))):
        bed.take_out(*drained, evicted=evicted)
        bed.change(sent, expires=bed.entry(sent).expires - 5)  # type: ignore[union-attr]
        assert bed.from_pod(sent.to(flags=ACK)) == (NEXT, arrived), (drained, evicted)
    bed.take_out(2, evicted={2})
    assert bed.from_pod(last) == (NEXT, arrived.to(ack=99)), "it is looked at once a second"
    bed.change(sent, expires=bed.entry(sent).expires - 5)  # type: ignore[union-attr]
    assert bed.from_pod(last) == (REDIRECT, last.back().to(flags=RST, seq=99, ack=0))
    assert bed.entries() == {}


def test_a_client_that_opens_anew_from_its_port_is_not_sent_into_an_evicted_cluster(bed: Bed) -> None:
    sent = call(bed, TCP)
    bed.back(BACKEND, bed.backend, 8080, TCP, cluster=2)
    opened(bed, sent)
    bed.back(9, bed.other, 8080, TCP)
    bed.put("lb_slots", {SlotsKey(100): [Number(9)] * 16})
    bed.take_out(2, evicted={2})
    assert bed.from_pod(sent) == (NEXT, sent.to(destination=bed.other, destination_port=8080))


def test_datagrams_move_out_of_an_evicted_cluster(bed: Bed) -> None:
    sent = call(bed, UDP)
    bed.back(BACKEND + 10, bed.backend, 5353, UDP, cluster=2)
    assert bed.from_pod(sent) == (NEXT, to_backend(bed, sent))
    bed.back(9, bed.other, 5353, UDP)
    bed.put("lb_slots", {SlotsKey(110): [Number(9)] * 16})
    bed.take_out(2)
    bed.change(sent, expires=bed.entry(sent).expires - 5)  # type: ignore[union-attr]
    assert bed.from_pod(sent) == (NEXT, to_backend(bed, sent)), "it is only drained"
    bed.take_out(2, evicted={2})
    bed.change(sent, expires=bed.entry(sent).expires - 5)  # type: ignore[union-attr]
    assert bed.from_pod(sent) == (NEXT, sent.to(destination=bed.other, destination_port=5353))


def test_a_backends_number_that_is_given_to_another_is_no_backend(bed: Bed) -> None:
    sent = call(bed, TCP)
    opened(bed, sent)
    bed.back(BACKEND, bed.other, 8080, TCP)
    bed.change(sent, expires=bed.entry(sent).expires - 5)  # type: ignore[union-attr]
    verdict, _ = bed.from_pod(sent.to(flags=ACK))
    assert verdict == REDIRECT


def test_datagrams_move_to_another_backend_where_theirs_is_gone(bed: Bed) -> None:
    sent = call(bed, UDP)
    bed.from_pod(sent)
    bed.back(9, bed.other, 5353, UDP)
    bed.put("lb_slots", {SlotsKey(110): [Number(9)] * 16})
    bed.drop("lb_backends", Number(BACKEND + 10))
    assert bed.from_pod(sent) == (NEXT, sent.to(destination=bed.other, destination_port=5353))


def test_datagrams_that_are_only_answered_keep_their_backend(bed: Bed) -> None:
    sent = call(bed, UDP)
    bed.from_pod(sent)
    bed.to_pod(to_backend(bed, sent).back())
    bed.back(9, bed.other, 5353, UDP)
    bed.put("lb_slots", {SlotsKey(110): [Number(9)] * 16})
    bed.change(sent, expires=1)
    assert bed.from_pod(sent) == (NEXT, to_backend(bed, sent))
    bed.change(sent, expires=1)
    bed.change(to_backend(bed, sent).back(), expires=1)
    assert bed.from_pod(sent) == (NEXT, sent.to(destination=bed.other, destination_port=5353))


def seconds(bed: Bed, packet: Packet) -> int:
    """How long the entry holds: in its units, from one that was made just now on."""
    found = bed.entry(packet)
    assert found is not None
    just = Packet(bed.other, 1 + len(bed.direct()), bed.stranger, 1, UDP, payload=b"x")
    bed.from_pod(just)
    return found.expires - bed.direct()[key_of(just)].expires + 30


def test_an_entry_holds_as_long_as_its_state_says(bed: Bed) -> None:
    sent = call(bed, TCP)
    bed.from_pod(sent)
    back = to_backend(bed, sent).back()
    assert 58 <= seconds(bed, sent) <= 60
    assert 58 <= seconds(bed, back) <= 60
    opened(bed, sent)
    assert seconds(bed, sent) > 7000
    assert seconds(bed, back) > 7000
    bed.from_pod(sent.to(flags=FIN | ACK))
    assert 118 <= seconds(bed, sent) <= 120
    assert 118 <= seconds(bed, back) <= 120
    bed.by_stack(back.to(flags=FIN | ACK))
    assert 0 <= seconds(bed, sent) <= 2
    assert 0 <= seconds(bed, back) <= 2


def test_a_flow_of_datagrams_is_more_than_an_exchange_when_it_outlasts_one(bed: Bed) -> None:
    sent = call(bed, UDP)
    bed.from_pod(sent)
    back = to_backend(bed, sent).back()
    for _ in range(3):  # as who asks for two families by one socket
        bed.from_pod(sent)
        bed.by_stack(back)
    for each in (sent, back):
        found = bed.entry(each)
        assert found is not None
        assert 28 <= seconds(bed, each) <= 30
        assert not found.flags & CtFlag.ESTABLISHED
        bed.change(each, expires=found.expires - 5)
        bed.by_stack(each)
        assert 178 <= seconds(bed, each) <= 180
    bed.change(back, flags=CtFlag.REPLY, packets=0, expires=bed.entry(sent).expires - 170)  # type: ignore[union-attr]
    bed.by_stack(back)
    assert 28 <= seconds(bed, back) <= 30, "a late answer is one"


def test_a_reset_leaves_what_was_established_a_minute(bed: Bed) -> None:
    """It may be forged: then what follows renews it."""
    sent = call(bed, TCP)
    back = opened(bed, sent).back()
    bed.from_pod(sent.to(flags=RST))
    assert 58 <= seconds(bed, sent) <= 60
    assert 58 <= seconds(bed, back) <= 60
    two = call(bed, TCP, bed.second_vip)
    verdict, arrived = bed.from_pod(two)
    assert verdict == NEXT
    assert arrived is not None
    assert arrived.source_port in LENT, "the port is not free yet"


@pytest.mark.parametrize("flags", [ACK, FIN | ACK])
def test_a_reset_that_either_end_goes_on_after_was_none(bed: Bed, flags: int) -> None:
    sent = call(bed, TCP)
    back = opened(bed, sent).back()
    for one, other in ((sent, sent), (sent, back), (back, sent), (back, back)):
        bed.change(sent, flags=CtFlag.ESTABLISHED)
        bed.change(back, flags=CtFlag.ESTABLISHED | CtFlag.REPLY)
        bed.by_stack(one.to(flags=RST))
        bed.by_stack(other.to(flags=flags))
        for each in (sent, back):
            found = bed.entry(each)
            assert found is not None
            assert not found.flags & CtFlag.RESET
            assert 118 <= seconds(bed, each) <= 120 or (flags == ACK and seconds(bed, each) > 7000)


def test_the_last_packet_is_not_overlooked_when_it_renews_nothing(bed: Bed) -> None:
    """What was quiet for so long expires just when one whose direction has ended does."""
    sent = call(bed, TCP)
    back = opened(bed, sent).back()
    found = bed.entry(sent)
    assert found is not None
    bed.change(sent, expires=found.expires - 7500 + 120)
    bed.from_pod(sent.to(flags=FIN | ACK))
    ended, told = bed.entry(sent), bed.entry(back)
    assert ended is not None
    assert told is not None
    assert ended.flags & CtFlag.FIN
    assert told.flags & CtFlag.FIN_OTHER


def test_a_refused_connection_is_forgotten_soon(bed: Bed) -> None:
    sent = call(bed, TCP)
    bed.from_pod(sent)
    back = to_backend(bed, sent).back()
    bed.by_stack(back.to(flags=RST | ACK))
    assert seconds(bed, sent) <= 2
    assert seconds(bed, back) <= 2


def test_packets_and_bytes_are_counted(bed: Bed) -> None:
    sent = call(bed, TCP)
    opened(bed, sent)
    bed.from_pod(sent.to(flags=ACK, payload=bytes(100)))
    head = 60 if bed.is_ipv6() else 40
    found = bed.entry(sent)
    assert found is not None
    assert (found.packets, found.bytes) == (3, 3 * head + 100)
    assert (found.service_id, found.backend_id) == (100, BACKEND)
    assert found.flags & CtFlag.ESTABLISHED


# --- where a packet comes from


def test_a_connection_that_is_another_pods_is_no_way_around_the_source_check(bed: Bed) -> None:
    sent = call(bed, TCP)
    arrived = opened(bed, sent)
    bed.from_pod(Packet(bed.other, 1, bed.stranger, 1))
    for forged in (sent.to(flags=ACK), arrived.back().to(flags=ACK)):
        bed.change(forged, from_device=99)
        assert bed.send("from_pod", forged) == (DROP, None)
    assert bed.count(Reason.DROP_SOURCE) == 2
