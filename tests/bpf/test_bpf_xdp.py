"""Frames of calls from outside, before they are packets: what goes on at once, and what is left to tc as it came.

client  --xdp_outside-->  node:30080  ==>  10.2.0.7:8080  backend elsewhere: it sees node:61000
        <-----------------------------xdp_outside--

Whatever XDP translates must be what tc makes of the same packet; all that it does not is untouched.
"""

from __future__ import annotations

import struct
from socket import if_nametoindex

import pytest
from bpf_flows import ACK, FIN, RST, SCTP, SYN, TCP, UDP, Packet, ones_sum, read
from bpf_node import Node
from bpf_outside import REMOTE, Outside, call, locally, outside_of
from bpf_run import xdp_test_run
from bpf_services import BACKEND, REDIRECT, Bed, key_of

from agent.bpf.layouts import AddressKey, CtFlag, IpcacheValue, Number, Reason, SlotsKey, XdpMode, pack_xdp_device
from clustermesh.address import parse

pytestmark = pytest.mark.root

DROPPED, PASSED, BACK, ELSEWHERE = 1, 2, 3, 4  # enum xdp_action
OWN, NEIGHBOUR = b"\x02" * 6, bytes.fromhex("0200000000fe")


class Frames(Outside):
    """What is sent is of a connection that both ends have spoken on, through tc."""

    def xdp(self, packet: Packet | bytes) -> tuple[int, bytes]:
        frame = packet if isinstance(packet, bytes) else packet.frame()
        fd = self.datapath.program_fd("xdp_outside")
        result = self.net.call(lambda: xdp_test_run(fd, frame, self.device))
        return result.verdict, result.data

    def is_left(self, packet: Packet | bytes) -> bool:
        """To tc, as it came; and nothing is known of it that was not before."""
        frame, before = packet if isinstance(packet, bytes) else packet.frame(), self.entries()
        return self.xdp(frame) == (PASSED, frame) and self.entries() == before

    def accelerate(self, device: str, mode: XdpMode = XdpMode.NATIVE, address: bytes = OWN) -> int:
        index = self.net.call(lambda: if_nametoindex(device))
        self.put("xdp_devices", {Number(index): pack_xdp_device(address, mode)})
        return index

    def established(self, protocol: int) -> tuple[Packet, Packet]:
        """What goes to the backend, and what comes back, before it is translated."""
        sent = call(self, protocol)
        _, arrived = self.from_outside(sent)
        assert arrived is not None
        back = arrived.back()
        assert self.from_outside(back.to(flags=SYN | ACK))[0] == REDIRECT
        assert self.from_outside(sent.to(flags=ACK, ack=1001))[0] == REDIRECT
        assert self.from_outside(back.to(flags=ACK))[0] == REDIRECT
        for packet in (sent, back) if protocol == UDP else ():
            found = self.entry(packet)
            assert found is not None
            self.change(packet, expires=found.expires - 5)  # it has lasted for longer than an exchange
            self.from_outside(packet)
        return sent.to(flags=ACK), back.to(flags=ACK)


@pytest.fixture
def frames(bed: Bed, net: Node) -> Frames:
    outside = outside_of(bed, net)
    made = Frames(*bed)
    made.__dict__.update(outside.__dict__)
    made.accelerate("eth0")
    return made


def variations(packet: Packet) -> dict[str, Packet]:
    tcp_options = bytes([0, 0, 1, 4, 0, 0, 0, 0]) if ":" in packet.source else b"\x94\x04\x00\x00"
    found = {
        "nothing in it": packet.to(payload=b""),
        "an even number of bytes": packet.to(payload=b"even"),
        "an odd number of bytes": packet.to(payload=b"odd"),
        "all ones": packet.to(payload=b"\xff" * 99),
        "a large one": packet.to(payload=bytes(range(256)) * 5),
        "options of IP": packet.to(options=tcp_options, payload=b"data"),
        "may be cut": packet.to(whole=False),
    }
    if ":" not in packet.source:
        found["all options there is room for"] = packet.to(options=b"\x01" * 40)
        if packet.protocol == UDP:
            found["no checksum"] = packet.to(is_checked=False)
    return found


@pytest.mark.parametrize("protocol", [TCP, UDP])
def test_what_goes_on_both_ways_is_translated_as_by_tc(frames: Frames, protocol: int) -> None:
    for direction in frames.established(protocol):
        for kind, packet in variations(direction).items():
            verdict, expected = frames.from_outside(packet)
            assert verdict == REDIRECT, kind
            verdict, data = frames.xdp(packet)
            assert (verdict, read(data)) == (BACK, expected), kind
            assert expected is not None
            assert read(data).hops == expected.hops == packet.hops - 1, kind
            assert data[:12] == NEIGHBOUR + OWN, kind
            assert len(data) == len(packet.frame()), kind


def test_a_datagrams_checksum_that_comes_out_as_zero_is_all_ones(frames: Frames) -> None:
    """A zero says that there is none: before and after, and those next to it."""
    for direction in frames.established(UDP):
        _, translated = frames.from_outside(direction)
        assert translated is not None
        for end in (direction, translated):
            inner = end.to(payload=bytes(2), is_checked=False)._transport()
            zero = 0xFFFF - ones_sum(end._pseudo(len(inner)) + inner)
            for payload in (zero - 1, zero, zero + 1):
                packet = direction.to(payload=struct.pack("!H", payload & 0xFFFF))
                verdict, data = frames.xdp(packet)
                assert (verdict, read(data)) == (BACK, frames.from_outside(packet)[1])


def test_short_frames_that_are_filled_up_stay_so(frames: Frames) -> None:
    forward, back = frames.established(TCP)
    for packet in (forward, back):
        _, data = frames.xdp(packet.frame(80))
        assert data[-3:] == b"\xee" * 3 or frames.is_ipv6()
        assert read(data) == frames.from_outside(packet)[1]


def test_it_is_counted_and_kept_alive(frames: Frames) -> None:
    forward, back = frames.established(TCP)
    for packet, reason in ((forward, Reason.NAT_FORWARD), (back, Reason.NAT_REPLY)):
        frames.change(packet, expires=1)
        before, counted = frames.entry(packet), frames.count(reason)
        assert frames.xdp(packet)[0] == BACK
        after = frames.entry(packet)
        assert before is not None
        assert after is not None
        assert after.expires > 7000
        assert after.packets == before.packets + 1
        assert after.bytes == before.bytes + len(packet.network())
        assert frames.count(reason) == counted + 1


def left_alone(frames: Frames, packet: Packet) -> dict[str, Packet | bytes]:
    frame = packet.to(payload=b"some data").frame()
    first, later = packet.to(payload=bytes(64)).fragments(32, 77)
    forged = packet.source == frames.stranger
    found: dict[str, Packet | bytes] = {
        "another client": packet.to(source=frames.router) if forged else packet.to(source_port=9),
        "another port": packet.to(destination_port=30081),
        "SCTP": packet.to(protocol=SCTP),
        "another protocol": packet.to(protocol=47, payload=b"GRE"),
        "an error": frames.error(frames.router, frames.node, packet.back()),
        "a first fragment": first,
        "a later fragment": later,
        "for another machine": b"\x06" + frame[1:],
        "for all machines": b"\xff" * 6 + frame[6:],
        "of a VLAN": frame[:12] + struct.pack("!HH", 0x8100, 5) + frame[12:],
        "no IP": frame[:12] + struct.pack("!H", 0x0806) + frame[14:],
        "less than its headers": frame[: 14 + (40 if frames.is_ipv6() else 20) + 7],
        "less than it says": frame[:-1],
        "no hop left": packet.to(hops=1),
    }
    if packet.protocol == TCP:
        found |= {
            "an opening": packet.to(flags=SYN),
            "an end": packet.to(flags=FIN | ACK),
            "a reset": packet.to(flags=RST | ACK),
        }
    return found


@pytest.mark.parametrize("protocol", [TCP, UDP])
def test_all_else_is_left_to_tc_as_it_came(frames: Frames, protocol: int) -> None:
    for direction in frames.established(protocol):
        assert not frames.is_left(direction), "it goes on"
        for kind, packet in left_alone(frames, direction).items():
            assert frames.is_left(packet), kind


@pytest.mark.parametrize("protocol", [TCP, UDP])
def test_what_begins_is_left_to_tc_until_both_ends_have_spoken(frames: Frames, protocol: int) -> None:
    sent = call(frames, protocol)
    assert frames.is_left(sent)
    _, arrived = frames.from_outside(sent)
    assert arrived is not None
    assert frames.is_left(sent)
    assert frames.is_left(sent.to(flags=ACK)), "tc hears that it is established"
    answer = arrived.back().to(flags=SYN | ACK)
    assert frames.is_left(answer), "it is none yet that somebody has proven to be a client of"
    if protocol == UDP:
        frames.from_outside(answer)
        assert frames.is_left(sent), "it may be no more than an exchange"


def test_what_nobody_has_proven_to_be_his_is_left_to_tc_however_it_ends(frames: Frames) -> None:
    """tc makes its entries anew, so that a flood of such pushes out only each other."""
    sent = call(frames, TCP)
    _, arrived = frames.from_outside(sent)
    assert arrived is not None
    frames.from_outside(arrived.back().to(flags=SYN | ACK))
    for flags in (FIN | ACK, RST):
        for packet in (sent.to(flags=flags, ack=9), arrived.back().to(flags=flags)):
            frames.from_outside(packet)
            assert frames.is_left(packet), "tc has seen the same before"


@pytest.mark.parametrize("protocol", [TCP, UDP])
def test_a_checksum_that_a_device_is_to_complete_is_left_to_tc(frames: Frames, protocol: int) -> None:
    """As a veth's peer sends it: the sum of the pseudo header stands in its place."""
    for direction in frames.established(protocol):
        packet = direction.to(payload=b"not summed")
        inner = packet._transport()
        at = 14 + len(packet.network()) - len(inner) + (16 if protocol == TCP else 6)
        frame = bytearray(packet.frame())
        frame[at : at + 2] = struct.pack("!H", ones_sum(packet._pseudo(len(inner))))
        assert frames.is_left(bytes(frame))


def test_a_wrong_checksum_stays_wrong(frames: Frames) -> None:
    forward, _ = frames.established(TCP)
    frame = bytearray(forward.to(payload=b"data").frame())
    frame[-1] ^= 1
    verdict, data = frames.xdp(bytes(frame))
    assert verdict == BACK
    with pytest.raises(AssertionError, match="checksum is wrong"):
        read(data)


@pytest.mark.parametrize("protocol", [TCP, UDP])
def test_what_comes_in_the_name_of_a_backend_behind_the_tunnel_is_left_to_tc(frames: Frames, protocol: int) -> None:
    _, back = frames.established(protocol)
    assert not frames.is_left(back)
    frames.change(back, from_device=frames.device + 1)
    assert frames.is_left(back)


def test_backends_here_are_left_to_tc(frames: Frames) -> None:
    locally(frames)
    sent = call(frames)
    _, arrived = frames.from_outside(sent)
    assert arrived is not None
    frames.to_outside(arrived.back().to(flags=SYN | ACK))
    frames.from_outside(sent.to(flags=ACK))
    assert frames.is_left(sent.to(flags=ACK))


def test_once_its_backend_is_gone_a_connection_is_left_to_tc_that_resets_it(frames: Frames) -> None:
    forward, _ = frames.established(TCP)
    frames.drop("lb_backends", Number(REMOTE))
    frames.change(forward, expires=1)  # so that it is looked at
    assert frames.is_left(forward)
    assert frames.from_outside(forward)[1] == forward.back().to(flags=RST, seq=0, ack=0)


@pytest.mark.parametrize("protocol", [TCP, UDP])
def test_what_has_no_entry_for_its_replies_any_more_is_left_to_tc(frames: Frames, protocol: int) -> None:
    forward, back = frames.established(protocol)
    frames.drop("ct", key_of(back))
    found = frames.entry(forward)
    assert found is not None
    frames.change(forward, expires=found.expires - 3)
    assert frames.is_left(forward)


def test_datagrams_after_their_time_are_left_to_tc_that_chooses_anew(frames: Frames) -> None:
    forward, back = frames.established(UDP)
    for packet in (forward, back):
        frames.change(packet, expires=1)
        assert frames.is_left(packet)


def test_what_is_too_large_for_its_way_is_left_to_tc_that_says_so(frames: Frames) -> None:
    forward, _ = frames.established(TCP)
    frames.net.run("ip", "route", "add", frames.remote, "via", frames.gateway, "mtu", "lock", "1300")
    try:
        head = 60 if frames.is_ipv6() else 40
        assert not frames.is_left(forward.to(payload=bytes(1300 - head)))
        large = forward.to(payload=bytes(1301 - head))
        assert frames.is_left(large)
        assert frames.is_left(large.to(whole=False))
    finally:
        frames.net.run("ip", "route", "del", frames.remote)


def test_a_way_that_is_not_known_or_not_by_xdp_is_left_to_tc(frames: Frames) -> None:
    forward, _ = frames.established(TCP)
    other = "fd92::77" if frames.is_ipv6() else "192.168.0.77"
    for route in (
        ["unreachable", frames.remote],
        [frames.remote, "via", other],  # a neighbour that has not been asked for yet
        [frames.remote, "dev", "mesh0"],
    ):
        frames.net.run("ip", "route", "add", *route)
        try:
            assert frames.is_left(forward), route
        finally:
            frames.net.run("ip", "route", "del", *route)
    assert not frames.is_left(forward)


def test_another_device_is_a_way_where_it_runs_the_same_in_the_same_mode(frames: Frames) -> None:
    forward, _ = frames.established(TCP)
    frames.net.run("ip", "route", "add", frames.remote, "dev", "mesh0")
    frames.net.run("ip", "neigh", "add", frames.remote, "lladdr", "02:00:00:00:00:aa", "dev", "mesh0")
    index = frames.accelerate("mesh0", XdpMode.GENERIC, b"\x02" * 5 + b"\x07")
    try:
        assert frames.is_left(forward)
        frames.accelerate("mesh0", XdpMode.NATIVE, b"\x02" * 5 + b"\x07")
        expected = frames.from_outside(forward)[1]
        verdict, data = frames.xdp(forward)
        assert (verdict, read(data), data[:6].hex()) == (ELSEWHERE, expected, "0200000000aa")
    finally:
        frames.drop("xdp_devices", Number(index))
        frames.net.run("ip", "route", "del", frames.remote)
        frames.net.run("ip", "neigh", "del", frames.remote, "dev", "mesh0")


def test_a_connection_follows_its_route(frames: Frames) -> None:
    """What tc is told of the way is as new as if every packet had gone by it."""
    forward, _ = frames.established(TCP)
    frames.change(forward, expires=1, way_device=1, mtu=1)
    assert frames.is_left(forward.to(payload=bytes(99))), "it is larger than that"
    frames.change(forward, expires=1, way_device=1, mtu=0)
    assert not frames.is_left(forward)
    found = frames.entry(forward)
    assert found is not None
    assert found.way_device == frames.device


def test_a_device_that_is_not_said_to_run_it_translates_nothing(frames: Frames) -> None:
    forward, back = frames.established(TCP)
    frames.drop("xdp_devices", Number(frames.device))
    assert frames.is_left(forward)
    assert frames.is_left(back)


def test_what_strict_mode_would_drop_is_left_to_it(frames: Frames) -> None:
    """Where addresses of nodes are among those of pods."""
    forward, back = frames.established(TCP)
    pods = {AddressKey(parse(end)): IpcacheValue(1000) for end in (frames.node, frames.stranger, frames.remote)}
    for pair in ((frames.node, frames.stranger), (frames.node, frames.remote)):
        entries = {AddressKey(parse(end)): pods[AddressKey(parse(end))] for end in pair}
        frames.put("ipcache", entries)
        try:
            assert frames.is_left(forward), pair
            assert frames.is_left(back), pair
        finally:
            frames.drop("ipcache", *entries)
    frames.put("ipcache", {AddressKey(parse(frames.remote)): IpcacheValue(1000)})
    assert not frames.is_left(forward), "one end of it is no pod"
    frames.drop("ipcache", AddressKey(parse(frames.remote)))


def test_what_was_reset_is_left_to_tc(frames: Frames) -> None:
    forward, back = frames.established(TCP)
    frames.from_outside(back.to(flags=RST))
    found = frames.entry(forward)
    assert found is not None
    assert found.flags & CtFlag.RESET
    assert frames.is_left(forward), "which hears that it goes on"


def test_another_backend_under_the_same_id_is_not_the_same(frames: Frames) -> None:
    forward, _ = frames.established(TCP)
    frames.back(REMOTE, frames.remote, 9999, TCP)
    frames.put("lb_slots", {SlotsKey(200): [Number(BACKEND)] * 16})
    frames.change(forward, expires=1)
    assert frames.is_left(forward)
    assert key_of(forward) in frames.entries()
