"""Sockets found and ended over netlink (inet_diag), in the network namespace of whoever asks.

What is ended is by SOCK_DESTROY (CONFIG_INET_DIAG_DESTROY), as precisely as it was found: by its cookie.
"""

from __future__ import annotations

import errno
import os
import socket
import sys
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from socket import htons
from struct import Struct
from typing import Any, Final

from agent.bpf.layouts import MeantValue
from agent.eviction.meaning import Located, Socket
from clustermesh.address import Address

_SOCK_DIAG: Final = 4  # NETLINK_SOCK_DIAG
_BY_FAMILY, _DESTROY = 20, 21  # SOCK_DIAG_BY_FAMILY, SOCK_DESTROY
_REQUEST, _DUMP = 1, 0x300  # NLM_F_REQUEST, NLM_F_DUMP
_ERROR, _DONE = 2, 3  # NLMSG_ERROR, NLMSG_DONE
_CONNECTED: Final = sum(1 << state for state in (1, 2, 3, 4, 5, 8, 9, 11))  # no listener, none that has ended

_HEAD: Final = Struct("=IHHII")  # struct nlmsghdr
_REQUEST_HEAD: Final = Struct("=BBBxI")  # struct inet_diag_req_v2, up to ...
_ID: Final = Struct("=HH16s16sIII")  # ... struct inet_diag_sockid
_TOLD: Final = Struct("=BBBB48sIIIII")  # struct inet_diag_msg
_AT_ONCE: Final = 256  # requests in one message
_ROOM: Final = 1 << 20
_PROTOCOLS: Final = (socket.IPPROTO_TCP, socket.IPPROTO_UDP)
_FAMILIES: Final = (socket.AF_INET, socket.AF_INET6)
_MAPPED: Final = bytes(10) + b"\xff\xff"


def locate(gone: Mapping[int, MeantValue]) -> Located:
    """Those of the sockets with these cookies that are here and connected to the backend they mean. OSError."""
    found: defaultdict[MeantValue, list[Socket]] = defaultdict(list)
    with _opened() as netlink:
        for protocol in {value.protocol for value in gone.values()} & {*_PROTOCOLS}:
            for family in _FAMILIES:
                with suppress(FileNotFoundError):
                    for told in _asked(netlink, _question(family, protocol)):
                        _take(found, told, gone)
    return dict(found)


def connected() -> dict[int, set[int]]:
    """The cookies of all sockets here that are connected, by protocol; those of which the kernel tells. OSError."""
    found: dict[int, set[int]] = {}
    with _opened() as netlink:
        for protocol in _PROTOCOLS:
            with suppress(FileNotFoundError):
                told = [each for family in _FAMILIES for each in _asked(netlink, _question(family, protocol))]
                found[protocol] = {_cookie(_ID.unpack(_TOLD.unpack_from(each)[4])) for each in told}
    return found


def _cookie(identity: tuple[Any, ...]) -> int:
    *_, low, high = identity
    return int(low | high << 32)


def _question(family: int, protocol: int) -> bytes:
    head = _REQUEST_HEAD.pack(family, protocol, 0, _CONNECTED) + bytes(_ID.size)
    return _message(_BY_FAMILY, _REQUEST | _DUMP, head)


def _take(found: defaultdict[MeantValue, list[Socket]], told: bytes, gone: Mapping[int, MeantValue]) -> None:
    """One that has been connected to somewhere else since means nothing."""
    family, *_, identity, _, _, _, _, inode = _TOLD.unpack_from(told)
    port, peer_port, source, peer, device, *_ = parts = _ID.unpack(identity)
    value = gone.get(cookie := _cookie(parts))
    if value is not None and (_whole(peer, family), htons(peer_port)) == (value.backend, value.backend_port):
        found[value].append(Socket(_whole(source, family), cookie, inode, device, htons(port), family))


class Diag:
    """Ends sockets of the namespace it is asked in."""

    def close(self) -> None:
        """There is nothing to let go of."""

    def end(self, gone: Located) -> set[int]:
        """End these sockets; the cookies of those that were. OSError."""
        return _end_all([(value, each) for value, sockets in gone.items() for each in sockets])


def _end_all(entries: Sequence[tuple[MeantValue, Socket]]) -> set[int]:
    ended: set[int] = set()
    with _opened() as netlink:
        for at in range(0, len(entries), _AT_ONCE):
            some = entries[at : at + _AT_ONCE]
            requests = [_message(_DESTROY, _REQUEST, _request(*each), number) for number, each in enumerate(some)]
            netlink.send(b"".join(requests))
            refused = dict(_refusals(netlink))
            if errno.EOPNOTSUPP in refused.values():
                raise OSError(errno.EOPNOTSUPP, "the kernel ends no sockets (CONFIG_INET_DIAG_DESTROY)")
            ended |= {each.cookie for number, (_, each) in enumerate(some) if number not in refused}
    return ended


def _request(value: MeantValue, each: Socket) -> bytes:
    """By its two ends and its cookie: no other is meant."""
    ends = (_shown(each.source, each.family), _shown(value.backend, each.family))
    ports = (htons(each.source_port), htons(value.backend_port))
    cookie = (each.cookie & 0xFFFFFFFF, each.cookie >> 32)
    return _REQUEST_HEAD.pack(each.family, value.protocol, 0, 0xFFFFFFFF) + _ID.pack(
        *ports, *ends, each.device, *cookie
    )


def _shown(address: Address, family: int) -> bytes:
    return address[12:] + bytes(12) if family == socket.AF_INET else address


def _whole(address: bytes, family: int) -> Address:
    return Address(_MAPPED + address[:4] if family == socket.AF_INET else address)


def _opened() -> socket.socket:
    made = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, _SOCK_DIAG)
    made.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _ROOM)
    return made


def _asked(netlink: socket.socket, question: bytes) -> Iterator[bytes]:
    """The answers to a dump. OSError; FileNotFoundError where the kernel tells nothing of this family or protocol."""
    netlink.send(question)
    while True:
        for kind, _, body in _messages(netlink.recv(_ROOM)):
            if kind == _DONE:
                return
            if kind == _ERROR:
                code = -int.from_bytes(body[:4], sys.byteorder, signed=True)
                raise OSError(code, os.strerror(code))
            yield body


def _refusals(netlink: socket.socket) -> Iterator[tuple[int, int]]:
    """What was refused of the requests just sent, by their numbers; the kernel has dealt with all of them by now."""
    while True:
        try:
            told = netlink.recv(_ROOM, socket.MSG_DONTWAIT)
        except BlockingIOError:
            return
        for kind, number, body in _messages(told):
            if kind == _ERROR:
                yield number, -int.from_bytes(body[:4], sys.byteorder, signed=True)


def _message(kind: int, flags: int, body: bytes, number: int = 0) -> bytes:
    return _HEAD.pack(_HEAD.size + len(body), kind, flags, number, 0) + body


def _messages(data: bytes) -> Iterator[tuple[int, int, bytes]]:
    at = 0
    while at + _HEAD.size <= len(data):
        length, kind, _, number, _ = _HEAD.unpack_from(data, at)
        if length < _HEAD.size:
            return
        yield kind, number, data[at + _HEAD.size : at + length]
        at += (length + 3) & ~3
