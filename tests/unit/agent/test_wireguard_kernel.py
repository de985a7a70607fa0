"""Kernel WireGuard without a kernel: what is asked, and how answers are read, in the library's own messages."""

from __future__ import annotations

from typing import Any

import pytest
from fake_wireguard import numbered_key
from pyroute2.netlink.generic.wireguard import wgmsg

from agent.wireguard import kernel
from agent.wireguard.peer import Peer, PeerState, Settings
from clustermesh.address import parse, parse_prefix
from clustermesh.errors import Invalid

A, B = numbered_key(1), numbered_key(2)
PRIVATE = bytes([8]) + bytes(30) + bytes([64])


def message(*attributes: Any) -> Any:
    """What the kernel sends for `attributes`: encoded by the library, and decoded again."""
    request = wgmsg()
    request["attrs"] = [list(attribute) for attribute in attributes]
    request.encode()
    answer = wgmsg(request.data)
    answer.decode()
    return answer


def allowed(address: bytes, length: int) -> dict[str, Any]:
    family = 2 if len(address) == 4 else 10
    return {
        "attrs": [
            ["WGALLOWEDIP_A_FAMILY", family],
            ["WGALLOWEDIP_A_IPADDR", address],
            ["WGALLOWEDIP_A_CIDR_MASK", length],
        ]
    }


def peer_attributes(key: str, *more: list[Any]) -> dict[str, Any]:
    return {"attrs": [["WGPEER_A_PUBLIC_KEY", key], *more]}


def test_device_that_spans_messages_is_joined() -> None:
    first = message(
        ("WGDEVICE_A_PRIVATE_KEY", "CAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAEA="),
        ("WGDEVICE_A_LISTEN_PORT", 51871),
        ("WGDEVICE_A_FWMARK", 0xE00),
        (
            "WGDEVICE_A_PEERS",
            [
                peer_attributes(
                    A,
                    ["WGPEER_A_ENDPOINT", {"addr": "192.0.2.7", "port": 51871}],
                    ["WGPEER_A_PERSISTENT_KEEPALIVE_INTERVAL", 25],
                    ["WGPEER_A_RX_BYTES", 7],
                    ["WGPEER_A_TX_BYTES", 9],
                    ["WGPEER_A_ALLOWEDIPS", [allowed(bytes([10, 2, 0, 0]), 24), allowed(b"\xfd" + bytes(15), 64)]],
                ),
            ],
        ),
    )
    second = message(
        (
            "WGDEVICE_A_PEERS",
            [
                peer_attributes(A, ["WGPEER_A_ALLOWEDIPS", [allowed(bytes([10, 1, 0, 0]), 24)]]),
                peer_attributes(B, ["WGPEER_A_ENDPOINT", {"addr": "fd00::2", "port": 1}]),
            ],
        ),
    )
    state = kernel.parse_device([first, second])
    assert state.settings == Settings(private_key=PRIVATE, listen_port=51871, fwmark=0xE00)
    assert dict(state.peers) == {
        A: PeerState(
            endpoint=(parse("192.0.2.7"), 51871),
            allowed_ips=tuple(map(parse_prefix, ("10.1.0.0/24", "10.2.0.0/24", "fd00::/64"))),
            rx=7,
            tx=9,
            keepalive=25,
        ),
        B: PeerState(endpoint=(parse("fd00::2"), 1)),
    }


def test_device_just_made_has_neither_settings_nor_peers() -> None:
    state = kernel.parse_device([message(("WGDEVICE_A_IFNAME", "cm-wg0"))])
    assert (state.settings, dict(state.peers)) == (None, {})


def test_peer_is_asked_for_whole() -> None:
    cidrs = (parse_prefix("10.2.0.0/24"), parse_prefix("fd00:10:2::/64"))
    assert kernel.peer_request(A, Peer(endpoint=parse("fd00::2"), port=51871, allowed_ips=cidrs)) == {
        "public_key": A,
        "endpoint_addr": "fd00::2",
        "endpoint_port": 51871,
        "persistent_keepalive": 25,
        "replace_allowed_ips": True,
        "allowed_ips": ["10.2.0.0/24", "fd00:10:2::/64"],
    }


def test_bad_peer_is_never_asked_for() -> None:
    with pytest.raises(Invalid):
        kernel.peer_request(A, Peer(endpoint=parse("ff02::1"), port=1, allowed_ips=()))
