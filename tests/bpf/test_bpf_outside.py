"""Calls of services from outside, packet by packet, both ways, in both families.

client  --from_outside-->  node:30080  ==>  10.1.0.7:8080  backend on this node: it sees the client
        <--to_outside----              <==  (by the kernel's way)

client  --from_outside-->  node:30080  ==>  10.2.0.7:8080  backend elsewhere: it sees node:61000
        <-----------------------------from_outside--
"""

from __future__ import annotations

import socket
import struct
import time
from collections.abc import Iterator
from contextlib import contextmanager
from socket import if_nametoindex

import pytest
from bpf_flows import ACK, FIN, RST, SCTP, SYN, TCP, UDP, Packet, ones_sum, read
from bpf_outside import NODE_PORT, REMOTE, Outside, call, locally
from bpf_run import program_test_run
from bpf_services import BACKEND, DROP, LENT, NEXT, PORTS, REDIRECT, bare, config, key_of

from agent.bpf.hooks import PROGRAMS
from agent.bpf.hooks import Kind as DeviceKind
from agent.bpf.layouts import Allowed, ConfigFlag, CtFlag, Number, Reason, Way, pack_source_range
from clustermesh.address import parse, parse_prefix
from clustermesh.mesh.resolve import Kind, Scope, ServiceFlag

pytestmark = pytest.mark.root


@pytest.mark.parametrize("protocol", PORTS)
def test_a_backend_here_sees_the_client_and_its_answer_is_the_services_where_it_leaves(
    outside: Outside, protocol: int
) -> None:
    locally(outside)
    sent = call(outside, protocol)
    arrived = sent.to(destination=outside.backend, destination_port=PORTS[protocol][1])
    assert outside.from_outside(sent) == (NEXT, arrived)
    answer = arrived.back().to(flags=SYN | ACK)
    assert outside.from_pod(answer) == (NEXT, answer), "the kernel takes what comes from its own address for forged"
    assert outside.to_outside(answer) == (NEXT, sent.back().to(flags=SYN | ACK))
    assert outside.from_outside(sent.to(flags=ACK)) == (NEXT, arrived.to(flags=ACK))


@pytest.mark.parametrize("protocol", [TCP, UDP])
def test_a_backend_elsewhere_sees_this_node_and_its_answer_goes_to_the_client(outside: Outside, protocol: int) -> None:
    sent = call(outside, protocol)
    verdict, arrived = outside.from_outside(sent)
    assert verdict == REDIRECT
    assert arrived is not None
    assert arrived.source_port in LENT
    target = PORTS[protocol][1]
    assert arrived == sent.to(
        source=outside.node, source_port=arrived.source_port, destination=outside.remote, destination_port=target
    )
    answer = arrived.back().to(flags=SYN | ACK)
    assert outside.from_outside(answer) == (REDIRECT, sent.back().to(flags=SYN | ACK))
    again = sent.to(flags=ACK, payload=b"more")
    assert outside.from_outside(again) == (REDIRECT, arrived.to(flags=ACK, payload=b"more"))


@pytest.mark.parametrize("protocol", PORTS)
@pytest.mark.parametrize("here", [False, True])
def test_what_is_sent_on_past_the_kernel_has_a_hop_less(outside: Outside, protocol: int, here: bool) -> None:
    """As a router has it: packets go in circles for ever where nobody counts."""
    if here:
        outside.put("node_config", {Number(0): config(outside, flags=ConfigFlag.REDIRECT)})
        locally(outside)
    sent = call(outside, protocol)
    for hops in (64, 2):
        verdict, arrived = outside.from_outside(sent.to(hops=hops))
        assert verdict == REDIRECT
        assert arrived is not None
        assert arrived.hops == hops - 1
        way_back = outside.from_pod if here else outside.from_outside
        verdict, answer = way_back(arrived.back().to(hops=9, flags=SYN | ACK))
        assert verdict == REDIRECT
        assert answer is not None
        assert answer.hops == 8
    verdict, refused = outside.from_outside(sent.to(hops=1))
    assert verdict == REDIRECT
    assert refused is not None
    assert refused.icmp == ((3, 0, 0) if outside.is_ipv6() else (11, 0, 0))
    assert (refused.source, refused.destination) == (outside.node, outside.stranger)
    assert outside.count(Reason.DROP_HOPS) == 1


@pytest.mark.parametrize("protocol", [TCP, UDP])
def test_who_may_go_no_further_is_lent_no_port(outside: Outside, protocol: int) -> None:
    assert outside.from_outside(call(outside, protocol).to(hops=1))[0] == REDIRECT
    assert outside.count(Reason.DROP_HOPS) == 1
    assert outside.entries() == {}


def test_nothing_is_answered_to_a_later_fragment_or_a_reset(outside: Outside) -> None:
    first, later = call(outside, UDP).to(payload=bytes(64)).fragments(32, 77)
    assert outside.from_outside(first)[0] == REDIRECT
    assert outside.from_outside(later.to(hops=1)) == (DROP, None)
    outside.from_outside(call(outside))
    assert outside.from_outside(call(outside).to(flags=RST, hops=1)) == (DROP, None)
    assert outside.count(Reason.DROP_HOPS) == 2


def test_what_goes_the_kernels_way_keeps_its_hops_for_that(outside: Outside) -> None:
    locally(outside)
    _, arrived = outside.from_outside(call(outside).to(hops=1))
    assert arrived is not None
    assert arrived.hops == 1


@pytest.mark.parametrize("protocol", PORTS)
def test_a_service_whose_backends_are_here_shows_them_the_client_whoever_made_their_devices(
    outside: Outside, protocol: int
) -> None:
    """externalTrafficPolicy Local, with pods of another CNI: no address of theirs is known to be here."""
    sent, flags = call(outside, protocol), ServiceFlag.KEEP_SOURCE
    at = sent.destination_port
    outside.serve(
        outside.node,
        at,
        protocol,
        300,
        BACKEND + 10 * list(PORTS).index(protocol),
        kind=Kind.LOAD_BALANCER,
        flags=flags,
    )
    arrived = sent.to(destination=outside.backend, destination_port=PORTS[protocol][1])
    assert outside.from_outside(sent) == (NEXT, arrived)
    answer = arrived.back().to(flags=SYN | ACK)
    assert outside.to_outside(answer) == (NEXT, sent.back().to(flags=SYN | ACK))


def test_sctp_keeps_its_port_towards_a_backend_elsewhere(outside: Outside) -> None:
    sent = call(outside, SCTP)
    assert outside.from_outside(sent) == (REDIRECT, sent.to(source=outside.node, destination=outside.remote))


def test_two_clients_with_one_port_are_told_apart(outside: Outside) -> None:
    one, two = call(outside), call(outside).to(source=outside.router)
    (_, first), (_, second) = outside.from_outside(one), outside.from_outside(two)
    assert first is not None
    assert second is not None
    assert first.source_port != second.source_port
    for sent, arrived in ((one, first), (two, second)):
        answer = arrived.back().to(flags=SYN | ACK)
        assert outside.from_outside(answer) == (REDIRECT, sent.back().to(flags=SYN | ACK))


def test_a_lent_port_is_another_clients_when_its_time_is_over_and_not_before(outside: Outside) -> None:
    outside.put("node_config", {Number(0): config(outside, port_first=61000, port_last=61000)})
    one, two = call(outside), call(outside).to(source=outside.router)
    _, arrived = outside.from_outside(one)
    assert arrived is not None
    for _ in range(2):  # while it lives, and when it has just been closed
        verdict, refused = outside.from_outside(two)
        assert verdict == REDIRECT
        assert refused == two.back().to(flags=RST | ACK, seq=0, ack=1001)
        outside.from_outside(one.to(flags=FIN | ACK))
        outside.from_outside(arrived.back().to(flags=FIN | ACK))
    assert outside.count(Reason.DROP_NO_PORT) == 2
    for each in (arrived.back(), one):
        assert outside.from_outside(two)[1] != arrived
        outside.change(each, expires=1)
    verdict, taken = outside.from_outside(two)
    assert (verdict, taken) == (REDIRECT, arrived)
    assert outside.entry(one) is None


def test_who_never_answers_the_backend_holds_a_lent_port_no_longer_than_an_opening(outside: Outside) -> None:
    """A flood of forged sources would take all ports for hours."""
    outside.put("node_config", {Number(0): config(outside, port_first=61000, port_last=61000)})
    one, two = call(outside), call(outside).to(source=outside.router)
    _, arrived = outside.from_outside(one)
    assert arrived is not None
    back = arrived.back().to(flags=SYN | ACK)
    outside.from_outside(back)
    opened, answered = outside.entry(one), outside.entry(back)
    assert opened is not None
    assert answered is not None
    assert 0 <= answered.expires - opened.expires <= 2
    outside.from_outside(one.to(flags=ACK, ack=1001))
    answered = outside.entry(back)
    assert answered is not None
    assert answered.expires - opened.expires > 7000, "both ends have spoken"
    assert outside.from_outside(two)[1] == two.back().to(flags=RST | ACK, seq=0, ack=1001)


@pytest.mark.parametrize(("protocol", "at"), [(TCP, "::"), (TCP, ""), (UDP, "::"), (UDP, "")])
def test_a_port_that_a_socket_of_this_node_has_is_lent_to_nobody(outside: Outside, protocol: int, at: str) -> None:
    """What answers it would get else goes to a client."""
    outside.put("node_config", {Number(0): config(outside, port_first=20000, port_last=20000)})
    family = socket.AF_INET6 if at or outside.is_ipv6() else socket.AF_INET
    made = outside.net.socket(family, socket.SOCK_STREAM if protocol == TCP else socket.SOCK_DGRAM)
    made.bind((at or outside.node, 20000))
    if protocol == TCP:
        made.listen()
    outside.from_outside(call(outside, protocol))
    assert outside.entry(call(outside, protocol)) is None
    assert outside.count(Reason.DROP_NO_PORT) == 1
    made.close()
    verdict, arrived = outside.from_outside(call(outside, protocol))
    assert verdict == REDIRECT
    assert arrived is not None
    assert arrived.source_port == 20000


def test_a_port_by_which_a_pod_speaks_to_the_backend_itself_is_not_lent_to_it(outside: Outside) -> None:
    outside.put("node_config", {Number(0): config(outside, port_first=20000, port_last=20000)})
    target = PORTS[UDP][1]
    itself = Packet(outside.backend, target, outside.pod, 20000, UDP)
    assert outside.from_pod(itself) == (NEXT, itself)
    taken = Packet(outside.pod, 40000, outside.backend, target, UDP)
    assert outside.from_pod(taken) == (NEXT, taken)
    sent = taken.to(destination=outside.vip, destination_port=PORTS[UDP][0])
    outside.from_pod(sent)
    assert outside.entry(sent) is None
    assert outside.count(Reason.DROP_NO_PORT) == 1


NO, ESTABLISHED = CtFlag(0), CtFlag.ESTABLISHED


@pytest.mark.parametrize(
    ("protocol", "flags", "packets", "timeout", "idle", "gives"),
    [
        (TCP, NO, 0, 60, 3, False),  # it may yet be answered
        (TCP, NO, 1, 60, 10, True),  # what was answered was nobody: a flood
        (TCP, ESTABLISHED, 9, 7500, 7000, False),
        (TCP, ESTABLISHED | CtFlag.FIN, 9, 120, 100, False),
        (TCP, CtFlag.FIN, 9, 120, 10, True),  # of what was not open
        (UDP, NO, 0, 30, 3, False),
        (UDP, NO, 0, 30, 10, True),
        (UDP, NO, 1, 30, 0, False),
        (UDP, NO, 1, 30, 5, True),  # a question and its answer
        (UDP, ESTABLISHED, 9, 180, 50, False),
        (UDP, ESTABLISHED, 9, 180, 70, True),
    ],
)
def test_where_ports_are_short_what_needs_its_own_no_more_gives_it_away(
    outside: Outside, protocol: int, flags: CtFlag, packets: int, timeout: int, idle: int, gives: bool
) -> None:
    outside.put("node_config", {Number(0): config(outside, port_first=61000, port_last=61000)})
    one, two = call(outside, protocol), call(outside, protocol).to(source=outside.router)
    _, arrived = outside.from_outside(one)
    assert arrived is not None
    for each in (one, arrived.back()):  # while either end has sent something, it is kept
        assert outside.from_outside(two)[1] != arrived
        found = outside.entry(each)
        assert found is not None
        now = found.expires - (60 if protocol == TCP else 30)
        outside.change(each, expires=now + timeout - idle, flags=found.flags | flags, packets=packets)
    refused = outside.count(Reason.DROP_NO_PORT)
    taken = outside.from_outside(two)[1]
    assert (taken == arrived) == gives
    assert (outside.entry(one) is None) == gives
    assert outside.count(Reason.DROP_NO_PORT) - refused == (not gives)


def test_what_stands_behind_more_headers_than_are_read_is_left_alone(outside: Outside) -> None:
    """Its ports were once read 1024 bytes before: there, of the client's address, which says 30080 and SYN."""
    if not outside.is_ipv6():
        pytest.skip("IPv4's header is never so long")
    sent = call(outside).to(source="2001:7580::2:1", destination_port=9, options=bytes(992)).frame()
    program = outside.datapath.program_fd("from_outside")
    result = outside.net.call(lambda: program_test_run(program, sent, outside.device))
    assert (result.verdict, result.data) == (NEXT, sent)
    assert outside.entries() == {}


def test_an_ipv4_address_in_an_ipv6_header_is_nobodys(outside: Outside) -> None:
    if not outside.is_ipv6():
        pytest.skip("of IPv6")
    forged = call(outside, UDP).to(source="::ffff:10.1.2.3")
    assert outside.from_outside(forged) == (NEXT, forged)
    assert outside.entries() == {}


def test_what_goes_into_the_tunnel_has_an_address_that_comes_back_by_it(outside: Outside) -> None:
    other = "fd99::1" if outside.is_ipv6() else "10.99.0.1"
    device = outside.net.call(lambda: if_nametoindex("mesh0"))
    field = "tunnel6" if outside.is_ipv6() else "tunnel4"
    made = config(outside, tunnel_device=device)._replace(**{field: parse(other)})
    outside.put("node_config", {Number(0): made})
    outside.net.run("ip", "route", "replace", outside.remote, "dev", "mesh0")
    verdict, arrived = outside.from_outside(call(outside))
    outside.net.run("ip", "route", "del", outside.remote, "dev", "mesh0")
    assert verdict == REDIRECT
    assert arrived is not None
    assert arrived.source == other
    found = outside.entry(call(outside))
    assert found is not None
    assert (found.way, found.way_device) == (Way.NEIGH, device)


def test_an_error_about_what_this_node_sent_for_a_client_goes_to_the_client(outside: Outside) -> None:
    sent = call(outside)
    _, arrived = outside.from_outside(sent)
    assert arrived is not None
    error = outside.error(outside.router, outside.node, arrived)
    expected = outside.error(outside.router, outside.stranger, bare(sent))
    assert outside.from_outside(error) == (REDIRECT, expected)


def test_an_error_about_an_answer_goes_to_the_backend(outside: Outside) -> None:
    locally(outside)
    sent = call(outside)
    _, arrived = outside.from_outside(sent)
    assert arrived is not None
    error = outside.error(outside.router, outside.node, sent.back())
    assert outside.from_outside(error) == (NEXT, outside.error(outside.router, outside.backend, bare(arrived.back())))


def test_a_cluster_ip_is_nothing_to_those_outside(outside: Outside) -> None:
    sent = call(outside).to(destination=outside.vip, destination_port=80)
    assert outside.from_outside(sent) == (NEXT, sent)


def test_a_frame_for_another_machine_is_left_alone(outside: Outside) -> None:
    frame = b"\x02\x77" + call(outside).frame()[2:]
    assert outside.from_outside(frame) == (NEXT, call(outside))


def test_what_is_of_a_vlan_is_left_to_that_ones_device(outside: Outside) -> None:
    """Sent on from here it would keep its tag, and a pod would not take it."""
    programs = [program for program in PROGRAMS if program.kind is DeviceKind.OUTSIDE]
    outside.net.call(lambda: outside.datapath.devices.attach("eth0", programs))
    raw = outside.net.socket(socket.AF_PACKET, socket.SOCK_RAW)
    raw.bind(("peer0", 0))
    sent = [call(outside, port=port).frame() for port in (50005, 50000)]
    for number, frame in zip((5, 0), sent, strict=True):
        raw.send(b"\x02" * 6 + frame[6:12] + struct.pack("!HH", 0x8100, number) + frame[12:])
    try:
        while not outside.entries():
            time.sleep(0.01)
        assert {key.source_port for key in outside.entries() if key.destination_port == NODE_PORT} == {50000}
    finally:
        outside.net.call(lambda: outside.datapath.devices.detach("eth0", programs))


def test_those_outside_have_the_backends_that_are_theirs(outside: Outside) -> None:
    flags = ServiceFlag.EXTERNAL
    outside.serve(outside.node, NODE_PORT, TCP, 300, BACKEND, kind=Kind.NODE_PORT, flags=flags)
    outside.serve(outside.node, NODE_PORT, TCP, 200, REMOTE, Scope.EXTERNAL, kind=Kind.NODE_PORT)
    _, arrived = outside.from_outside(call(outside))
    assert arrived is not None
    assert arrived.destination == outside.remote


def test_only_who_is_in_a_source_range_may_call(outside: Outside) -> None:
    flags = ServiceFlag.SOURCE_RANGES
    outside.serve(outside.node, NODE_PORT, TCP, 200, REMOTE, kind=Kind.NODE_PORT, flags=flags)
    assert outside.from_outside(call(outside)) == (DROP, None)
    assert outside.count(Reason.DROP_SOURCE_RANGE) == 1
    prefix = "2001:db8::/32" if outside.is_ipv6() else "198.51.100.0/24"
    outside.put(
        "lb_source_ranges", {pack_source_range(200, parse_prefix(prefix)): Allowed(6 if outside.is_ipv6() else 4)}
    )
    assert outside.from_outside(call(outside))[0] == REDIRECT


def test_no_backend_is_refused_at_once(outside: Outside) -> None:
    outside.serve(outside.node, 30099, TCP, 250, None, kind=Kind.NODE_PORT)
    sent = call(outside).to(destination_port=30099)
    assert outside.from_outside(sent) == (REDIRECT, sent.back().to(flags=RST | ACK, seq=0, ack=1001))


@contextmanager
def another_address(outside: Outside, address: str) -> Iterator[None]:
    """Of the node."""
    outside.net.add_address(address)
    try:
        yield
    finally:
        outside.net.run("ip", "addr", "del", address, "dev", "lo")


def test_a_backend_at_another_address_of_the_node_is_reached_as_one_at_its_own(outside: Outside) -> None:
    second = "fd92::aa" if outside.is_ipv6() else "192.168.0.170"
    with another_address(outside, second):
        for number, where in enumerate((outside.node, second)):
            outside.back(99, where, 6443, TCP)
            outside.serve(outside.node, 30555, TCP, 900, 99, kind=Kind.NODE_PORT)
            sent = call(outside, port=50000 + number).to(destination_port=30555)
            arrived = sent.to(destination=where, destination_port=6443)
            assert outside.from_outside(sent) == (NEXT, arrived)
            answer = arrived.back().to(flags=SYN | ACK)
            assert outside.to_outside(answer) == (NEXT, sent.back().to(flags=SYN | ACK))
    assert outside.count(Reason.DROP_NO_ROUTE) == 0


def test_a_backend_that_no_route_leads_to_is_not_tried(outside: Outside) -> None:
    outside.net.run("ip", "route", "add", "unreachable", outside.remote)
    verdict, _ = outside.from_outside(call(outside))
    outside.net.run("ip", "route", "del", "unreachable", outside.remote)
    assert verdict == REDIRECT
    assert outside.count(Reason.DROP_NO_ROUTE) == 1


@contextmanager
def narrow(outside: Outside, *way: str) -> Iterator[None]:
    """The way to the backend elsewhere takes 1300 bytes."""
    way = way or ("via", outside.gateway, "dev", "eth0")
    outside.net.run("ip", "route", "add", outside.remote, *way, "mtu", "lock", "1300")
    try:
        yield
    finally:
        outside.net.run("ip", "route", "del", outside.remote)


def says_how_much(outside: Outside, sent: Packet, result: tuple[int, Packet | None]) -> None:
    """It is answered by how much the way takes."""
    verdict, answer = result
    assert (verdict, outside.count(Reason.DROP_TOO_LARGE)) == (REDIRECT, 1)
    assert answer is not None
    assert answer.icmp == ((2, 0, 1300) if outside.is_ipv6() else (3, 4, 1300))
    assert (answer.source, answer.destination) == (outside.node, outside.stranger)
    assert answer.about is not None
    assert key_of(answer.about) == key_of(sent)


@pytest.mark.parametrize("whole", [True, False], ids=["not to be cut", "to be cut"])
def test_a_packet_that_its_way_is_too_narrow_for_is_answered_by_how_much_it_takes(
    outside: Outside, whole: bool
) -> None:
    """What might be cut, too: nobody cuts what is sent on past the kernel."""
    head = 60 if outside.is_ipv6() else 40
    with narrow(outside):
        outside.from_outside(call(outside))
        fits = call(outside).to(flags=ACK, payload=bytes(1300 - head), whole=whole)
        assert outside.from_outside(fits)[0] == REDIRECT
        assert outside.count(Reason.DROP_TOO_LARGE) == 0
        large = fits.to(payload=bytes(1301 - head))
        says_how_much(outside, large, outside.from_outside(large))


def test_the_first_of_fragments_that_its_way_is_too_narrow_for_is_answered_and_no_other(outside: Outside) -> None:
    with narrow(outside):
        sent = call(outside, UDP).to(payload=bytes(3000))
        large, rest = sent.fragments(1400, ident=7)
        says_how_much(outside, large, outside.from_outside(large))
        assert outside.from_outside(rest) == (NEXT, rest), "of a packet that nothing is known of"
        small, rest = sent.fragments(1200, ident=8)
        assert outside.from_outside(small)[0] == REDIRECT
        assert outside.from_outside(rest) == (DROP, None), "no error is about a later fragment"
        assert outside.count(Reason.DROP_TOO_LARGE) == 2


def test_a_way_whose_neighbour_is_not_known_yet_takes_no_more(outside: Outside) -> None:
    other = "fd92::77" if outside.is_ipv6() else "192.168.0.77"
    head = 48 if outside.is_ipv6() else 28
    with narrow(outside, "via", other):
        sent = call(outside, UDP).to(payload=bytes(1301 - head))
        says_how_much(outside, sent, outside.from_outside(sent))
        found = outside.entry(sent)
        assert found is not None
        assert (found.way, found.way_device, found.mtu) == (Way.NEIGH, outside.device, 1300)
        assert outside.from_outside(sent.to(payload=b"small"))[0] == REDIRECT


def test_a_connection_follows_its_route_to_another_device(outside: Outside) -> None:
    sent, net = call(outside), outside.net
    eth, mesh = (net.call(lambda name=name: if_nametoindex(name)) for name in ("eth0", "mesh0"))
    outside.from_outside(sent)
    seen = []
    for route in (
        ["replace", outside.remote, "dev", "mesh0"],
        ["replace", "unreachable", outside.remote],  # for as long as a device is made again
        ["del", outside.remote],
    ):
        net.run("ip", "route", *route)
        outside.change(sent, expires=1)  # so that it is looked at
        assert outside.from_outside(sent.to(flags=ACK))[0] == REDIRECT
        found = outside.entry(sent)
        assert found is not None
        assert found.way == Way.NEIGH
        seen.append(found.way_device)
    assert seen == [mesh, mesh, eth]


def test_with_redirection_an_answer_leaves_from_the_pods_device(outside: Outside) -> None:
    outside.put("node_config", {Number(0): config(outside, flags=ConfigFlag.REDIRECT)})
    locally(outside)
    sent = call(outside)
    outside.from_outside(sent)
    found = outside.entry(sent)
    assert found is not None
    assert (found.way, found.way_device) == (Way.PEER, outside.device)
    answer = sent.to(destination=outside.backend, destination_port=8080).back().to(flags=SYN | ACK)
    assert outside.from_pod(answer) == (REDIRECT, sent.back().to(flags=SYN | ACK))
    reply = outside.entry(answer)
    assert reply is not None
    assert (reply.way, reply.way_device) == (Way.NEIGH, outside.device)
    assert not reply.flags & CtFlag.AT_EGRESS


def test_an_answer_to_a_client_that_no_route_leads_to_is_translated_all_the_same(outside: Outside) -> None:
    outside.net.run("ip", "route", "add", "unreachable", outside.stranger)
    sent = call(outside)
    _, arrived = outside.from_outside(sent)
    outside.net.run("ip", "route", "del", "unreachable", outside.stranger)
    assert arrived is not None
    answer = arrived.back().to(flags=SYN | ACK)
    assert outside.from_outside(answer) == (NEXT, sent.back().to(flags=SYN | ACK))


def test_a_call_goes_the_kernels_way_where_its_answer_will(outside: Outside) -> None:
    """Or the kernel's own conntrack would see answers alone, which usual firewalls drop."""
    outside.put("node_config", {Number(0): config(outside, flags=ConfigFlag.REDIRECT)})
    locally(outside)
    outside.net.run("ip", "route", "add", "unreachable", outside.stranger)
    sent = call(outside)
    verdict, arrived = outside.from_outside(sent)
    outside.net.run("ip", "route", "del", "unreachable", outside.stranger)
    assert verdict == NEXT
    assert arrived is not None
    answer = arrived.back().to(flags=SYN | ACK)
    assert outside.from_pod(answer) == (NEXT, answer)
    assert outside.to_outside(answer) == (NEXT, sent.back().to(flags=SYN | ACK))
    assert outside.from_outside(sent.to(flags=ACK)) == (NEXT, arrived.to(flags=ACK))


def test_an_answer_to_a_pod_goes_straight_to_it_only_where_that_is_allowed(outside: Outside) -> None:
    for flags, expected in ((ConfigFlag(0), NEXT), (ConfigFlag.REDIRECT, REDIRECT)):
        outside.reset(outside.datapath)
        outside.put("node_config", {Number(0): config(outside, flags=flags)})
        outside.is_local(outside.pod)
        sent = Packet(outside.pod, 40000, outside.vip, 80)
        verdict, arrived = outside.from_pod(sent)
        assert verdict == NEXT
        assert arrived is not None
        answer = arrived.back().to(flags=SYN | ACK)
        shown = sent.back().to(flags=SYN | ACK)
        assert outside.from_outside(answer) == (expected, answer if expected == NEXT else shown)
        assert outside.to_pod(answer) == (NEXT, shown)
        error = outside.error(outside.router, outside.pod, arrived)
        assert outside.to_pod(error) == (NEXT, outside.error(outside.router, outside.pod, bare(sent)))


def test_what_stands_for_many_and_says_no_length_is_reset_by_a_packet_that_does(outside: Outside) -> None:
    """BIG TCP: the header of IPv6 that says how long it is may not stand before what is short."""
    sent = call(outside).to(flags=ACK, ack=77, payload=bytes(3000))
    frame = bytearray(sent.frame())
    if outside.is_ipv6():
        frame[18:21] = bytes([0, 0, 0])
        jumbo = bytes([TCP, 0, 0xC2, 4]) + struct.pack("!I", 8 + len(frame) - 54)
        frame[54:54] = jumbo
    else:
        frame[16:18] = bytes(2)
        frame[24:26] = bytes(2)
        frame[24:26] = struct.pack("!H", 0xFFFF - ones_sum(bytes(frame[14:34])))
    fd = outside.datapath.program_fd("from_outside")
    result = outside.net.call(lambda: program_test_run(fd, bytes(frame), outside.device, gso_size=1000))
    assert (result.verdict, read(result.data)) == (REDIRECT, sent.back().to(flags=RST, seq=77, ack=0, payload=b""))
    assert len(result.data) == 14 + (60 if outside.is_ipv6() else 40)
