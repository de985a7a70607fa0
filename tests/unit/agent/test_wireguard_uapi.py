"""The UAPI: what is written reads back, bad peers are never sent, garbage never raises anything but DecodeError."""

from __future__ import annotations

import base64
import socket as sockets
from contextlib import suppress
from ipaddress import IPv4Address, IPv6Address
from pathlib import Path

import pytest
from fake_wireguard import numbered_key, serve
from hypothesis import example, given
from hypothesis import strategies as st

from agent.wireguard import uapi
from agent.wireguard.peer import Peer, Settings, sort_allowed_ips
from clustermesh.address import Address, Prefix, is_ipv4, masked, parse, parse_prefix
from clustermesh.errors import DecodeError, Invalid, Unavailable

KEY = numbered_key(1)
ONE, PREFIX = parse("10.0.0.1"), parse_prefix("10.1.0.0/24")
SETTINGS = Settings(private_key=bytes([8]) + bytes(30) + bytes([64]), listen_port=51871, fwmark=0xE00)


def is_one_machine(ip: IPv4Address | IPv6Address) -> bool:
    return not (ip.is_unspecified or ip.is_multicast or getattr(ip, "ipv4_mapped", None))


addresses = st.binary(min_size=16, max_size=16).map(Address) | st.ip_addresses(v=4).map(lambda ip: parse(str(ip)))
cidrs = st.tuples(addresses, st.integers(0, 32)).map(
    lambda t: Prefix(masked(t[0], 96 + t[1]), 96 + t[1]) if is_ipv4(t[0]) else Prefix(masked(t[0], 4 * t[1]), 4 * t[1])
)
peers = st.builds(
    Peer,
    endpoint=st.ip_addresses().filter(is_one_machine).map(lambda ip: parse(str(ip))),
    port=st.integers(1, 65535),
    allowed_ips=st.lists(cidrs, max_size=5).map(sort_allowed_ips),
    keepalive=st.integers(0, 65535),
)
PEER = Peer(endpoint=parse("192.0.2.1"), port=51871, allowed_ips=(parse_prefix("10.2.0.0/24"),))
public_keys = st.integers(1, 2**256 - 1).map(numbered_key)


def as_answer(request: bytes) -> bytes:
    """What a device that holds just what `request` says would answer to `get`."""
    skipped = (b"set=1", b"replace_allowed_ips=true")
    lines = [line for line in request.split(b"\n") if line and line not in skipped]
    return b"\n".join([*lines, b"errno=0", b"", b""])


@given(st.dictionaries(public_keys, peers, max_size=5))
def test_what_is_set_reads_back_the_same(wanted: dict[str, Peer]) -> None:
    state = uapi.parse_get(as_answer(uapi.encode_set(SETTINGS, wanted)))
    assert state.settings == SETTINGS
    assert {
        key: Peer(endpoint=p.endpoint[0], port=p.endpoint[1], allowed_ips=p.allowed_ips, keepalive=p.keepalive)
        for key, p in state.peers.items()
        if p.endpoint
    } == wanted


def test_request_is_as_the_protocol_page_shows_it() -> None:
    cidrs = tuple(map(parse_prefix, ("10.2.0.0/24", "10.3.0.0/24", "fd00:10:2::/64")))
    peer = Peer(endpoint=parse("fd00::2"), port=51871, allowed_ips=cidrs)
    raw = base64.b64decode(KEY).hex()
    assert uapi.encode_set(peers={KEY: peer}, removals=[numbered_key(2)]).decode().split("\n") == [
        "set=1",
        f"public_key={base64.b64decode(numbered_key(2)).hex()}",
        "remove=true",
        f"public_key={raw}",
        "endpoint=[fd00::2]:51871",
        "replace_allowed_ips=true",
        "allowed_ip=10.2.0.0/24",
        "allowed_ip=10.3.0.0/24",
        "allowed_ip=fd00:10:2::/64",
        "persistent_keepalive_interval=25",
        "",
        "",
    ]


def test_an_extended_peer_has_its_allowed_ips_added() -> None:
    whole, added = (uapi.encode_set(peers={KEY: PEER}, extended=keys) for keys in ((), (KEY,)))
    assert added == whole.replace(b"replace_allowed_ips=true\n", b"") != whole


def test_keepalive_is_changed_without_making_a_peer() -> None:
    assert uapi.encode_keepalives({KEY: 25}).decode().split("\n") == [
        "set=1",
        f"public_key={base64.b64decode(KEY).hex()}",
        "update_only=true",
        "persistent_keepalive_interval=25",
        "",
        "",
    ]


@pytest.mark.parametrize(
    ("key", "peer"),
    [
        ("short", Peer(endpoint=ONE, port=1, allowed_ips=())),
        (KEY, Peer(endpoint=parse("0.0.0.0"), port=1, allowed_ips=())),
        (KEY, Peer(endpoint=parse("::"), port=1, allowed_ips=())),
        (KEY, Peer(endpoint=parse("224.0.0.1"), port=1, allowed_ips=())),
        (KEY, Peer(endpoint=parse("ff02::1"), port=1, allowed_ips=())),
        (KEY, Peer(endpoint=ONE, port=0, allowed_ips=())),
        (KEY, Peer(endpoint=ONE, port=65536, allowed_ips=())),
        (KEY, Peer(endpoint=ONE, port=1, allowed_ips=(Prefix(ONE, 120),))),
        (KEY, Peer(endpoint=ONE, port=1, allowed_ips=(PREFIX, parse_prefix("10.0.0.0/24")))),
        (KEY, Peer(endpoint=ONE, port=1, allowed_ips=(PREFIX, PREFIX))),
        (KEY, Peer(endpoint=ONE, port=1, allowed_ips=(), keepalive=65536)),
    ],
)
def test_bad_peer_is_never_sent(key: str, peer: Peer) -> None:
    with pytest.raises(Invalid):
        uapi.encode_set(peers={key: peer})


@given(st.binary(max_size=300))
@example(b"\xff\n\n")
@example(b"errno=0")
@example(b"rx_bytes=1_0\nerrno=0\n\n")
def test_garbage_never_raises_anything_but_decode_error(data: bytes) -> None:
    with suppress(DecodeError, uapi.UapiError):
        uapi.parse_get(data)


names = st.sampled_from(
    [
        "public_key",
        "private_key",
        "endpoint",
        "allowed_ip",
        "rx_bytes",
        "last_handshake_time_nsec",
        "listen_port",
        "new",
    ]
)
values = st.sampled_from(
    ["", "0", "-1", "1" * 25, "ab" * 32, "zz", "10.0.0.0/8", "10.0.0.1/8", "[::1]:5", ":", "é", "٣"]
)


@given(st.lists(st.tuples(names, values).map("=".join), max_size=8))
def test_wrong_values_never_raise_anything_but_decode_error(lines: list[str]) -> None:
    with suppress(DecodeError):
        uapi.parse_get("\n".join([*lines, "errno=0", "", ""]).encode())


def test_answer_in_the_order_a_device_gives_is_read() -> None:
    lines = [
        f"private_key={'c8' * 31}48",
        "listen_port=12912",
        "protocol_version=1",
        f"public_key={'ab' * 32}",
        f"preshared_key={'00' * 32}",
        "allowed_ip=10.2.0.0/24",
        "endpoint=[fd00::33%2]:51820",
        "last_handshake_time_sec=1700000000",
        "last_handshake_time_nsec=500000000",
        "tx_bytes=38333",
        "rx_bytes=2224",
        "errno=0",
    ]
    state = uapi.parse_get("\n".join([*lines, "", ""]).encode())
    assert state.settings is not None
    assert (state.settings.listen_port, state.settings.fwmark) == (12912, 0)
    (peer,) = state.peers.values()
    assert peer.endpoint == (parse("fd00::33"), 51820)
    assert (peer.last_handshake, peer.rx, peer.tx, peer.keepalive) == (1700000000.5, 2224, 38333, 0)


def test_device_without_a_key_has_no_settings() -> None:
    assert uapi.parse_get(b"errno=0\n\n").settings is None
    assert uapi.parse_get(b"private_key=" + b"00" * 32 + b"\nerrno=0\n\n").settings is None


async def test_answer_is_read_to_its_end_however_it_is_cut(tmp_path: Path) -> None:
    answer = as_answer(uapi.encode_set(SETTINGS))
    async with serve(tmp_path / "wg.sock", {b"get=1\n\n": answer}) as seen:
        assert (await uapi.UapiClient(tmp_path / "wg.sock").get()).settings == SETTINGS
    assert seen == [b"get=1\n\n"]


async def test_refusal_carries_its_errno(tmp_path: Path) -> None:
    request = uapi.encode_set(SETTINGS)
    async with serve(tmp_path / "wg.sock", {request: b"errno=-22\n\n"}):
        with pytest.raises(uapi.UapiError) as caught:
            await uapi.UapiClient(tmp_path / "wg.sock").set(request)
    assert caught.value.errno == 22


async def test_nobody_listens_where_the_socket_is_absent_stale_or_cut(tmp_path: Path) -> None:
    stale = tmp_path / "stale.sock"
    with sockets.socket(sockets.AF_UNIX) as dead:
        dead.bind(str(stale))
    for path in (tmp_path / "absent.sock", stale):
        with pytest.raises(uapi.NobodyListens):
            await uapi.UapiClient(path).get()
    async with serve(tmp_path / "cut.sock", {b"get=1\n\n": b"listen_port=1\n"}):
        with pytest.raises(uapi.NobodyListens, match="ends after 14 bytes"):
            await uapi.UapiClient(tmp_path / "cut.sock").get()


async def test_process_that_hangs_is_unavailable_in_time_and_its_silence_is_known(tmp_path: Path) -> None:
    path = tmp_path / "hung.sock"
    client = uapi.UapiClient(path, timeout=0.05, clock=iter([100.0, 200.0, 300.0, 400.0]).__next__)
    with sockets.socket(sockets.AF_UNIX) as hung:
        hung.bind(str(path))
        hung.listen(4)
        for _ in range(2):
            with pytest.raises(Unavailable, match=r"no answer within 0\.05 s") as caught:
                await client.get()
            assert not isinstance(caught.value, uapi.NobodyListens)
            assert client.silent_since == 100.0
    path.unlink()
    async with serve(path, {b"get=1\n\n": as_answer(uapi.encode_set(SETTINGS))}):
        await client.get()
    assert client.silent_since is None


async def test_more_peers_are_given_more_time(tmp_path: Path) -> None:
    added = uapi.encode_set(peers={numbered_key(n): PEER for n in range(1, 101)})
    with sockets.socket(sockets.AF_UNIX) as hung:
        hung.bind(str(tmp_path / "hung.sock"))
        hung.listen(4)
        with pytest.raises(Unavailable, match=r"no answer within 0\.51 s"):
            await uapi.UapiClient(tmp_path / "hung.sock", timeout=0.01).set(added)
