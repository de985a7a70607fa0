"""Packets in another's name: whoever sends them knows all of a connection's ends and none of its numbers. None of them
ends what is established, moves it elsewhere, or takes its port; in the name of this node, or of nobody, nothing begins.

    forger      --from_outside-->  as the client, this node, a pod, nobody
    the client  --from_outside-->  node:30080  ==>  10.2.0.7:8080, which sees node:61000
"""

from __future__ import annotations

from collections.abc import Iterator
from socket import if_nametoindex

import pytest
from bpf_flows import ACK, FIN, RST, SCTP, SYN, TCP, UDP, Packet
from bpf_outside import NODE_PORT, REMOTE, Outside, call, locally
from bpf_services import BACKEND, DROP, LENT, NEXT, PORTS, REDIRECT, bare, config, to_backend
from bpf_services import call as pods_call

from agent.bpf.layouts import ConfigFlag, CtFlag, Number, Reason, SlotsKey
from clustermesh.address import parse
from clustermesh.mesh.resolve import BackendState, Kind

pytestmark = pytest.mark.root

RESTING = [BackendState.TERMINATING, BackendState.QUARANTINED, BackendState.MAINTENANCE]


def established(outside: Outside) -> tuple[Packet, Packet]:
    """What the client sends, and what arrives of it at a backend elsewhere."""
    sent = call(outside)
    verdict, arrived = outside.from_outside(sent)
    assert verdict == REDIRECT
    assert arrived is not None
    back = arrived.back()
    sent, arrived = sent.to(flags=ACK, ack=1001), arrived.to(flags=ACK, ack=1001)
    for packet in (back.to(flags=SYN | ACK), sent, back.to(flags=ACK)):
        assert outside.from_outside(packet)[0] == REDIRECT
    return sent, arrived


def rest(outside: Outside, state: BackendState | None) -> None:
    """The backend has this state, None where it is gone; all that begins goes to another one, which has port 9090."""
    outside.back(REMOTE + 1, outside.remote, 9090, TCP)
    outside.put("lb_slots", {SlotsKey(200): [Number(REMOTE + 1)] * 16})
    if state is None:
        outside.drop("lb_backends", Number(REMOTE))
    else:
        outside.back(REMOTE, outside.remote, 8080, TCP, state)


FORGED = {
    "an opening": [SYN],
    "a reset": [RST],
    "a reset and an opening": [RST, SYN],
    "its end and an opening": [FIN | ACK, SYN],
    "all of them": [FIN | ACK, RST | ACK, SYN, RST, SYN],
}


@pytest.mark.parametrize("forged", FORGED.values(), ids=FORGED)
@pytest.mark.parametrize("state", [BackendState.ACTIVE, *RESTING])
def test_what_is_forged_in_a_clients_name_changes_nothing_of_its_connection(
    outside: Outside, state: BackendState, forged: list[int]
) -> None:
    sent, arrived = established(outside)
    rest(outside, state)
    for number, flags in enumerate(forged):
        verdict, found = outside.from_outside(sent.to(flags=flags, seq=4711 + number))
        assert (verdict, found) == (REDIRECT, arrived.to(flags=flags, seq=4711 + number))
    assert outside.from_outside(sent.to(payload=b"mine")) == (REDIRECT, arrived.to(payload=b"mine"))
    back = arrived.back().to(payload=b"its answer")
    assert outside.from_outside(back) == (REDIRECT, sent.back().to(payload=b"its answer"))
    for packet in (sent, back):
        found_entry = outside.entry(packet)
        assert found_entry is not None
        assert found_entry.flags & CtFlag.ESTABLISHED
        assert not found_entry.flags & (CtFlag.RESET | CtFlag.FIN | CtFlag.FIN_OTHER), "it goes on, so that none was"


def test_an_end_that_more_follows_was_none_and_one_that_is_only_acknowledged_was(outside: Outside) -> None:
    sent, arrived = established(outside)
    back = arrived.back()
    outside.from_outside(sent.to(flags=FIN | ACK))
    for packet in (back, back.to(payload=b"more"), sent):
        outside.from_outside(packet)
        ended, other = outside.entry(sent), outside.entry(back)
        assert ended is not None
        assert other is not None
        assert (ended.flags & CtFlag.FIN, other.flags & CtFlag.FIN_OTHER) == (CtFlag.FIN, CtFlag.FIN_OTHER)
    outside.from_outside(back.to(flags=FIN | ACK))
    outside.from_outside(sent.to(payload=b"more"))
    ended, other = outside.entry(sent), outside.entry(back)
    assert ended is not None
    assert other is not None
    ends = CtFlag.FIN | CtFlag.FIN_OTHER
    assert (ended.flags & ends, other.flags & ends) == (CtFlag.FIN_OTHER, CtFlag.FIN), "the other one's stands"


@pytest.mark.parametrize("state", [BackendState.ACTIVE, *RESTING, None])
def test_a_client_that_opens_again_after_its_reset_reaches_its_backend_while_that_is_there(
    outside: Outside, state: BackendState | None
) -> None:
    sent, arrived = established(outside)
    rest(outside, state)
    outside.from_outside(sent.to(flags=RST))
    _, found = outside.from_outside(sent.to(flags=SYN))
    assert found is not None
    assert (found.destination_port, found.source_port == arrived.source_port) == (
        (9090, False) if state is None else (8080, True)
    )


@pytest.mark.parametrize("state", [BackendState.ACTIVE, *RESTING])
def test_what_a_backend_refuses_that_is_given_to_nobody_new_begins_anew_elsewhere(
    outside: Outside, state: BackendState
) -> None:
    """As it ends it listens no more, and a client may open again and again from one port."""
    sent, arrived = established(outside)
    rest(outside, state)
    outside.from_outside(sent.to(flags=RST))
    outside.from_outside(sent.to(flags=SYN))
    outside.from_outside(arrived.back().to(flags=RST | ACK))
    _, found = outside.from_outside(sent.to(flags=SYN))
    assert found is not None
    assert found.destination_port == (8080 if state is BackendState.ACTIVE else 9090)
    assert outside.entry(arrived.back()) is None or state is BackendState.ACTIVE


def test_a_backends_reset_that_it_goes_on_after_was_none(outside: Outside) -> None:
    sent, arrived = established(outside)
    rest(outside, BackendState.TERMINATING)
    outside.from_outside(arrived.back().to(flags=RST))
    outside.from_outside(arrived.back())
    assert outside.from_outside(sent.to(flags=SYN)) == (REDIRECT, arrived.to(flags=SYN))


# --- in the name of those who send nothing from outside


def nobodys(outside: Outside) -> list[str]:
    own = [outside.node, "fd99::1" if outside.is_ipv6() else "10.99.0.1"]
    if outside.is_ipv6():
        return [*own, "::", "::1", "ff02::1", "ff0e::1"]
    return [*own, "0.0.0.0", "0.1.2.3", "127.0.0.1", "127.255.255.254", "224.0.0.1", "239.1.1.1", "255.255.255.255"]


@pytest.mark.parametrize("protocol", PORTS)
@pytest.mark.parametrize("here", [False, True])
def test_what_comes_in_this_nodes_name_or_in_nobodys_is_left_to_the_kernel(
    outside: Outside, protocol: int, here: bool
) -> None:
    field = "tunnel6" if outside.is_ipv6() else "tunnel4"
    outside.put("node_config", {Number(0): config(outside)._replace(**{field: parse(nobodys(outside)[1])})})
    if here:
        locally(outside)
    outside.serve(outside.node, 30099, protocol, 250, None, kind=Kind.NODE_PORT)
    for source in nobodys(outside):
        for port in (NODE_PORT if protocol != SCTP else PORTS[SCTP][1], 30099):
            for flags in (SYN, ACK):
                forged = call(outside, protocol).to(source=source, destination_port=port, flags=flags)
                assert outside.from_outside(forged) == (NEXT, forged), source
                assert outside.from_outside(forged.to(hops=1)) == (NEXT, forged), source
    assert outside.entries() == {}


def test_what_comes_from_where_it_goes_to_is_left_to_the_kernel(outside: Outside) -> None:
    """A load balancer's address, which nobody has: its answers would come back as calls."""
    at = "2001:db8::99" if outside.is_ipv6() else "198.51.100.99"
    outside.serve(at, 80, UDP, 260, REMOTE + 10, kind=Kind.LOAD_BALANCER)
    forged = Packet(at, 80, at, 80, UDP, payload=b"round and round")
    assert outside.from_outside(forged) == (NEXT, forged)
    assert outside.entries() == {}


@pytest.mark.parametrize("protocol", [TCP, UDP])
def test_what_this_nodes_own_processes_hear_is_not_taken_away(outside: Outside, protocol: int) -> None:
    answer = Packet(outside.remote, PORTS[protocol][1], outside.node, 40123, protocol, flags=ACK, payload=b"x")
    assert outside.from_outside(answer) == (NEXT, answer)
    outside.from_outside(call(outside, protocol, 40123).to(source=outside.node))
    assert outside.from_outside(answer) == (NEXT, answer)


@pytest.mark.parametrize("protocol", [TCP, UDP])
def test_a_pod_that_calls_itself_has_no_port_of_this_nodes_sockets(outside: Outside, protocol: int) -> None:
    sent = pods_call(outside, protocol, outside.own, port=40123)
    outside.from_pod(sent)
    probed = Packet(
        outside.pod, PORTS[protocol][1], outside.node, 40123, protocol, flags=ACK, payload=b"to the kubelet"
    )
    assert outside.from_pod(probed) == (NEXT, probed)


@pytest.mark.parametrize("protocol", [TCP, UDP])
def test_a_pods_connection_is_nobodys_outside(outside: Outside, protocol: int) -> None:
    """Neither its packets to a service, nor what it has with a backend directly."""
    sent = pods_call(outside, protocol)
    outside.from_pod(sent)
    outside.drop("lb_backends", Number(BACKEND + 10 * (protocol == UDP)))  # so that whatever comes begins anew
    before = outside.entries()
    for flags in (SYN, RST, FIN | ACK):
        forged = sent.to(flags=flags)
        assert outside.from_outside(forged) == (NEXT, forged)
    assert outside.entries() == before


@pytest.mark.parametrize("protocol", [TCP, UDP])
def test_a_pod_that_calls_a_node_port_has_an_entry_of_its_own(outside: Outside, protocol: int) -> None:
    outside.from_outside(call(outside, protocol, 40000).to(source=outside.pod))
    sent = call(outside, protocol, 40000).to(source=outside.pod)
    arrived = sent.to(destination=outside.remote, destination_port=PORTS[protocol][1])
    assert outside.from_pod(sent) == (NEXT, arrived), "by the pod's way, and from its own port"
    found = outside.entry(sent)
    assert found is not None
    assert not found.flags & CtFlag.OUTSIDE
    assert len(outside.entries()) == 2


@pytest.mark.parametrize("protocol", [TCP, UDP])
def test_what_two_pods_say_directly_is_not_taken_for_answers_to_who_calls_in_the_name_of_one(
    outside: Outside, protocol: int
) -> None:
    outside.put("node_config", {Number(0): config(outside, flags=ConfigFlag.REDIRECT)})
    locally(outside)
    direct = to_backend(outside, pods_call(outside, protocol))
    assert outside.from_pod(direct) == (NEXT, direct)
    answer = direct.back().to(flags=SYN | ACK)
    assert outside.from_pod(answer) == (NEXT, answer)
    outside.from_outside(call(outside, protocol, 40000).to(source=outside.pod))
    assert outside.from_pod(answer) == (NEXT, answer)


@pytest.mark.parametrize("flags", [0, ConfigFlag.REDIRECT], ids=["by the stack", "redirected"])
@pytest.mark.parametrize("protocol", [TCP, UDP])
@pytest.mark.parametrize("who", ["remote", "stranger"])
def test_what_somebody_says_to_a_pod_directly_is_not_taken_away_by_a_call_from_the_same_port(
    outside: Outside, who: str, protocol: int, flags: int
) -> None:
    """Be that forged or its own: both go on, and the pod tells them apart."""
    outside.put("node_config", {Number(0): config(outside, flags=flags)})
    locally(outside)
    sent = call(outside, protocol).to(source=getattr(outside, who))
    direct = to_backend(outside, sent)
    for answer in (direct.back().to(flags=SYN | ACK), direct.back().to(flags=ACK, payload=b"data")):
        assert outside.from_outside(direct) == (NEXT, direct)
        assert outside.from_pod(answer) == (NEXT, answer)
    _, arrived = outside.from_outside(sent)
    assert arrived is not None
    assert arrived == direct.to(source_port=arrived.source_port)
    assert arrived.source_port in LENT
    for _ in range(2):
        assert outside.from_pod(answer) == (NEXT, answer)
        assert outside.to_outside(answer) == (NEXT, answer)
    verdict, shown = outside.from_pod(arrived.back().to(flags=SYN | ACK))
    if verdict == NEXT:
        assert shown is not None
        _, shown = outside.to_outside(shown)
    assert shown == sent.back().to(flags=SYN | ACK)


@pytest.mark.parametrize("flags", [0, ConfigFlag.REDIRECT], ids=["by the stack", "redirected"])
@pytest.mark.parametrize("protocol", [TCP, UDP])
def test_what_a_forged_call_leaves_takes_no_later_connection_to_the_pod_itself(
    outside: Outside, protocol: int, flags: int
) -> None:
    """Whose name it was in answers the pod by a reset; what is left has expired, and may not be collected yet."""
    outside.put("node_config", {Number(0): config(outside, flags=flags)})
    locally(outside)
    forged = call(outside, protocol)
    _, arrived = outside.from_outside(forged)
    assert arrived is not None
    opening = arrived.back().to(flags=SYN | ACK)
    outside.from_outside(forged.to(flags=RST))
    for packet in (forged, opening):
        outside.change(packet, expires=1)
    for answer in (opening, opening.to(flags=ACK, payload=b"data")):
        assert outside.from_pod(answer) == (NEXT, answer)
        assert outside.to_outside(answer) == (NEXT, answer)
    assert outside.entries() == {}


def test_what_a_pod_ends_is_not_kept_in_mind(outside: Outside) -> None:
    """Else who tries all its ports would take the room of what it says to others."""
    answer = Packet(outside.backend, 8080, outside.stranger, 50000)
    for flags in (RST, RST | ACK, FIN | ACK):
        assert outside.from_pod(answer.to(flags=flags)) == (NEXT, answer.to(flags=flags))
    assert outside.direct() == {}


ANSWERS: dict[str, list[int]] = {
    "with nothing": [],
    "by a reset": [RST],
    "by a reset, and its answer again": [RST, SYN | ACK],
    "by what it expects instead": [ACK],
}


@pytest.mark.parametrize("forged", [ACK, ACK | FIN, ACK | RST])
@pytest.mark.parametrize("answers", ANSWERS.values(), ids=ANSWERS)
def test_who_does_not_know_what_the_backend_answered_opens_nothing(
    outside: Outside, forged: int, answers: list[int]
) -> None:
    """By two packets for each a whole range of lent ports would be held for hours."""
    outside.put("node_config", {Number(0): config(outside, port_first=61000, port_last=61000)})
    one, two = call(outside), call(outside).to(source=outside.router)
    _, arrived = outside.from_outside(one)
    assert arrived is not None
    back = arrived.back().to(seq=7000)
    outside.from_outside(one.to(flags=ACK, ack=0))  # before the answer
    outside.from_outside(back.to(flags=SYN | ACK))
    for ack in (0, 1, 4711, 7000, 7001 + 0x10000, 2**31):
        outside.from_outside(one.to(flags=forged, ack=ack))
        for flags in answers:
            outside.from_outside(back.to(flags=flags))
        outside.from_outside(one.to(flags=ACK, ack=ack, payload=b"blind"))
    for packet in (one, back):
        found = outside.entry(packet)
        assert found is not None
        assert not found.flags & CtFlag.ESTABLISHED
        outside.change(packet, expires=found.expires - 10)
    assert outside.from_outside(two)[1] == arrived, "its port is another one's at once"


@pytest.mark.parametrize("ack", [7001, 7001 + 0xFFFF])
@pytest.mark.parametrize("flags", [ACK, ACK | RST])
def test_who_knows_what_the_backend_answered_is_connected(outside: Outside, ack: int, flags: int) -> None:
    sent = call(outside)
    _, arrived = outside.from_outside(sent)
    assert arrived is not None
    back = arrived.back().to(seq=7000)
    outside.from_outside(back.to(flags=SYN | ACK))
    outside.from_outside(sent.to(flags=flags, ack=ack))
    for packet in (sent, back):
        found = outside.entry(packet)
        assert found is not None
        assert bool(found.flags & CtFlag.ESTABLISHED) == (flags == ACK)


@pytest.fixture
def behind_the_tunnel(outside: Outside) -> Iterator[None]:
    """The backend elsewhere."""
    device = outside.net.call(lambda: if_nametoindex("mesh0"))
    outside.put("node_config", {Number(0): config(outside, tunnel_device=device)})
    outside.net.run("ip", "route", "replace", outside.remote, "dev", "mesh0")
    yield
    outside.net.run("ip", "route", "del", outside.remote, "dev", "mesh0")


@pytest.mark.usefixtures("behind_the_tunnel")
@pytest.mark.parametrize("protocol", [TCP, UDP])
@pytest.mark.parametrize("flags", [SYN | ACK, ACK, RST, FIN | ACK])
def test_who_answers_in_the_name_of_a_backend_behind_the_tunnel_is_not_heard(
    outside: Outside, protocol: int, flags: int
) -> None:
    sent = call(outside, protocol)
    _, arrived = outside.from_outside(sent)
    assert arrived is not None
    before = outside.entries()
    forged = arrived.back().to(flags=flags, payload=b"x" if flags == ACK else b"")
    for packet in (forged, outside.error(outside.router, outside.node, bare(arrived))):
        assert outside.from_outside(packet) == (NEXT, packet)
    assert outside.entries() == before


@pytest.mark.parametrize("protocol", [TCP, UDP])
def test_an_error_from_outside_about_what_pods_say_to_each_other_is_not_heard(outside: Outside, protocol: int) -> None:
    """By a service whose backend is here: it never left this node."""
    outside.is_local(outside.backend)
    sent = pods_call(outside, protocol)
    outside.from_pod(sent)
    forged = outside.error(outside.stranger, outside.node, bare(sent.back()))
    assert outside.from_outside(forged) == (NEXT, forged)


def test_what_is_said_in_the_backends_name_connects_nobody(outside: Outside) -> None:
    """Both ends may be forged: by whom, and by which device, is not asked."""
    sent = call(outside)
    _, arrived = outside.from_outside(sent)
    assert arrived is not None
    back = arrived.back().to(seq=7000)
    for packet in (back.to(flags=ACK, payload=b"hello"), sent.to(flags=ACK, ack=7005), back.to(flags=SYN | ACK)):
        outside.from_outside(packet)
        for each in (sent, back):
            found = outside.entry(each)
            assert found is not None
            assert not found.flags & CtFlag.ESTABLISHED
    outside.from_outside(sent.to(flags=ACK, ack=7001))
    for each in (sent, back):
        found = outside.entry(each)
        assert found is not None
        assert found.flags & CtFlag.ESTABLISHED


def test_what_a_client_outside_acknowledges_is_no_way_around_the_source_check(outside: Outside) -> None:
    """It is kept where a pod's entry has the device that its packets come by."""
    sent = call(outside, TCP, 40000).to(source=outside.pod)
    _, arrived = outside.from_outside(sent)
    assert arrived is not None
    outside.from_outside(arrived.back().to(flags=SYN | ACK, seq=0))
    found = outside.entry(sent)
    assert found is not None
    assert found.from_device == 1, "which is the device by which from_pod() sends"
    outside.from_pod(Packet(outside.other, 1, outside.stranger, 1))
    assert outside.send("from_pod", sent) == (DROP, None)


# --- ports and entries of those who only send


def stream(outside: Outside, program: str, sent: Packet, idle: int = 0) -> Packet:
    """Datagrams that nobody answers, for longer than an exchange would last; nothing more since `idle` ticks."""
    _, arrived = outside.run(program, sent, 1 if program == "from_pod" else None)
    assert arrived is not None
    found = outside.entry(sent)
    assert found is not None
    outside.change(sent, expires=found.expires - 30 + 180 - idle, flags=found.flags | CtFlag.ESTABLISHED, packets=50)
    outside.change(arrived.back(), expires=1)
    return arrived


def test_the_lent_port_of_datagrams_that_nobody_answers_is_theirs_while_they_come(outside: Outside) -> None:
    outside.put("node_config", {Number(0): config(outside, port_first=61000, port_last=61000)})
    one, two = call(outside, UDP), call(outside, UDP).to(source=outside.router)
    arrived = stream(outside, "from_outside", one, idle=4)
    outside.from_outside(two)
    assert outside.count(Reason.DROP_NO_PORT) == 1
    assert outside.from_outside(one) == (REDIRECT, arrived)


@pytest.mark.parametrize(("idle", "gives"), [(3, False), (10, True)])
def test_where_ports_are_short_datagrams_that_nobody_answers_hold_one_no_longer_than_they_come(
    outside: Outside, idle: int, gives: bool
) -> None:
    outside.put("node_config", {Number(0): config(outside, port_first=61000, port_last=61000)})
    one, two = call(outside, UDP), call(outside, UDP).to(source=outside.router)
    arrived = stream(outside, "from_outside", one, idle)
    assert (outside.from_outside(two)[1] == arrived) == gives
    assert (outside.entry(one) is None) == gives


@pytest.mark.parametrize("directly", [False, True])
def test_a_pods_datagrams_that_nobody_answers_keep_their_port(outside: Outside, directly: bool) -> None:
    sent = pods_call(outside, UDP)
    outside.from_pod(pods_call(outside, UDP, port=1))
    arrived = stream(outside, "from_pod", sent)
    other = to_backend(outside, sent) if directly else pods_call(outside, UDP, outside.second_vip)
    _, found = outside.from_pod(other)
    assert found is not None
    assert found.source_port in LENT
    assert outside.from_pod(sent) == (NEXT, arrived)
    outside.change(sent, expires=1)
    assert outside.entry(sent) is not None
