"""Counts what passes the underlay: clear-text markers, and WireGuard packets. Standard library only; run by its path.

    capture.py --marker TEXT --self-test TEXT [--port 51871]

Listens on every port of the bridge in the network namespace it runs in, and counts each frame once: where it comes in.
Prints one JSON object per line, {"frames", "clear_on_wire", "wireguard_packets", "self_test", "self_test_ipv6",
"dropped"}, all counted since the start: at once, whenever something changed (five times a second at most), and at
SIGTERM. `dropped` are frames the kernel had no room for: a count of clear text is only worth something where it is 0.
"""

from __future__ import annotations

import argparse
import json
import os
import select
import signal
import socket
import struct
import sys
import time

_ETH_P_ALL = 0x0003
_ETH_P_IP = 0x0800
_ETH_P_IPV6 = 0x86DD
_SOL_PACKET = 263
_PACKET_STATISTICS = 6
_PACKET_OUTGOING = 4
_SO_RCVBUFFORCE = 33
_BUFFER = 32 << 20
_PRINT_SECONDS = 0.2
_BATCH = 256


def is_wireguard(frame: bytes, port: int) -> bool:
    """Whether an Ethernet frame is UDP to or from `port` and begins as a WireGuard message: type 1 to 4, then three
    zero bytes (WireGuard paper, section 5.4).
    """
    udp = _find_udp(frame)
    if udp is None or port not in struct.unpack_from("!HH", frame, udp):
        return False
    return frame[udp + 8 : udp + 12] in (b"\1\0\0\0", b"\2\0\0\0", b"\3\0\0\0", b"\4\0\0\0")


def _find_udp(frame: bytes) -> int | None:
    """Where the UDP header of a frame of IPv4 or IPv6 begins."""
    udp = None
    if len(frame) >= 14 + 20 and _kind(frame) == _ETH_P_IP and frame[23] == socket.IPPROTO_UDP:
        udp = 14 + (frame[14] & 0x0F) * 4
    elif len(frame) >= 14 + 40 and _kind(frame) == _ETH_P_IPV6 and frame[20] == socket.IPPROTO_UDP:
        udp = 14 + 40
    return udp if udp is not None and len(frame) >= udp + 8 + 4 else None


def _kind(frame: bytes) -> int:
    return int.from_bytes(frame[12:14], "big")


class Counter:
    """The counts, and what makes a frame count."""

    def __init__(self, marker: bytes, self_test: bytes, port: int) -> None:
        self._marker, self._self_test, self._port = marker, self_test, port
        names = ("frames", "clear_on_wire", "wireguard_packets", "self_test", "self_test_ipv6", "dropped")
        self.counts = dict.fromkeys(names, 0)

    def see(self, frame: bytes) -> None:
        self.counts["frames"] += 1
        if is_wireguard(frame, self._port):
            self.counts["wireguard_packets"] += 1
        if self._marker in frame:  # also inside something that calls itself WireGuard
            self.counts["clear_on_wire"] += 1
        if self._self_test in frame:
            self.counts["self_test"] += 1
            self.counts["self_test_ipv6"] += _kind(frame) == _ETH_P_IPV6


def capture(counter: Counter) -> None:
    """Until SIGTERM."""
    stop_reading, stop_writing = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
    signal.signal(signal.SIGTERM, lambda *_: None)
    signal.set_wakeup_fd(stop_writing)
    with socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(_ETH_P_ALL)) as underlay:
        underlay.setsockopt(socket.SOL_SOCKET, _SO_RCVBUFFORCE, _BUFFER)
        underlay.setblocking(False)
        _print(counter, underlay)
        printed = time.monotonic()
        while stop_reading not in select.select([underlay.fileno(), stop_reading], [], [])[0]:
            _drain(underlay, counter)
            if time.monotonic() - printed >= _PRINT_SECONDS:
                _print(counter, underlay)
                printed = time.monotonic()
        _drain(underlay, counter)
        _print(counter, underlay)


def _drain(underlay: socket.socket, counter: Counter) -> None:
    """What is there now, a batch at most, so that the counts are printed under load too."""
    for _ in range(_BATCH):
        try:
            frame, (link, _, kind, *_) = underlay.recvfrom(65535)
        except BlockingIOError:
            return
        if kind != _PACKET_OUTGOING and link not in ("br0", "lo"):
            counter.see(frame)


def _print(counter: Counter, underlay: socket.socket) -> None:
    _, dropped = struct.unpack("=II", underlay.getsockopt(_SOL_PACKET, _PACKET_STATISTICS, 8))  # since the last time
    counter.counts["dropped"] += dropped
    sys.stdout.write(json.dumps(counter.counts) + "\n")
    sys.stdout.flush()


def main() -> None:
    options = argparse.ArgumentParser(description="counts clear-text markers and WireGuard packets")
    options.add_argument("--marker", required=True)
    options.add_argument("--self-test", required=True)
    options.add_argument("--port", type=int, default=51871)
    chosen = options.parse_args()
    capture(Counter(chosen.marker.encode(), chosen.self_test.encode(), chosen.port))


if __name__ == "__main__":
    main()
