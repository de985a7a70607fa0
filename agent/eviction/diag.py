"""Sockets that mean services, found and ended over netlink (inet_diag), where the kernel takes no program for that.

Each TCP socket of each network namespace is asked for with what it has in lb_meant (Linux 5.6). Of UDP sockets that
is not told: they are looked into by copies of their descriptors, and those that nobody here has open are not found.
What is ended is by SOCK_DESTROY (CONFIG_INET_DIAG_DESTROY), as precisely as it was found: by its cookie.
"""

from __future__ import annotations

import errno
import os
import socket
import struct
import sys
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from functools import partial
from socket import htons
from struct import Struct
from typing import Final, NamedTuple

from agent.bpf.layouts import MeantSocket, MeantValue, pack, unpack
from agent.eviction.copies import copied, meaning_of
from agent.eviction.meaning import Meaning, Meant
from agent.eviction.networks import find_networks, inside
from clustermesh.address import Address

_SOCK_DIAG: Final = 4  # NETLINK_SOCK_DIAG
_BY_FAMILY, _DESTROY = 20, 21  # SOCK_DIAG_BY_FAMILY, SOCK_DESTROY
_REQUEST, _DUMP = 1, 0x300  # NLM_F_REQUEST, NLM_F_DUMP
_ERROR, _DONE = 2, 3  # NLMSG_ERROR, NLMSG_DONE
_STORAGES, _TOLD_STORAGES = 2, 20  # INET_DIAG_REQ_SK_BPF_STORAGES, INET_DIAG_SK_BPF_STORAGES
_MAP_VALUE: Final = 3  # SK_DIAG_BPF_STORAGE_MAP_VALUE
_CONNECTED: Final = sum(1 << state for state in (1, 2, 3, 4, 5, 8, 9, 11))  # no listener, none that has ended

_HEAD: Final = Struct("=IHHII")  # struct nlmsghdr
_REQUEST_HEAD: Final = Struct("=BBBxI")  # struct inet_diag_req_v2, up to ...
_ID: Final = Struct("=HH16s16sIII")  # ... struct inet_diag_sockid
_TOLD: Final = Struct("=BBBB48sIIIII")  # struct inet_diag_msg
_ATTRIBUTE: Final = Struct("=HH")
_AT_ONCE: Final = 256  # requests in one message
_ROOM: Final = 1 << 20
_PROTOCOLS: Final = (socket.IPPROTO_TCP, socket.IPPROTO_UDP)
_FAMILIES: Final = (socket.AF_INET, socket.AF_INET6)
_MAPPED: Final = bytes(10) + b"\xff\xff"


class _Connected(NamedTuple):
    """`value` is what it means, None where that is not told."""

    socket: MeantSocket
    peer: tuple[Address, int]
    value: MeantValue | None


class Diag:
    """Both, over the map lb_meant."""

    def __init__(self, meant: int) -> None:
        self._meant = meant

    def close(self) -> None:
        """There is nothing to let go of."""

    def find(self) -> Meant:
        """OSError, where none of the namespaces could be asked."""
        connected: list[_Connected] = []
        networks = find_networks()
        failed: list[OSError] = []
        for inode, path in networks.items():
            try:
                connected += inside(path, partial(self._in_network, inode))
            except OSError as e:  # its last process may just have ended
                failed.append(e)
        if len(failed) == len(networks):
            raise failed[0]
        return self._meant_by(connected)

    def _in_network(self, inode: int) -> list[_Connected]:
        with _opened() as netlink:
            return [
                _connected(told, protocol, inode)
                for protocol in _PROTOCOLS
                for family in _FAMILIES
                for told in _asked(netlink, self._question(family, protocol))
            ]

    def _meant_by(self, connected: Iterable[_Connected]) -> Meant:
        found: defaultdict[Meaning, list[MeantSocket]] = defaultdict(list)
        untold: dict[int, _Connected] = {}
        for each in connected:
            if each.value is not None:
                _take(found, each, each.value)
            elif each.socket.protocol == socket.IPPROTO_UDP and each.socket.inode:
                untold[each.socket.inode] = each
        for inode, held in copied(untold.keys()):
            if (value := meaning_of(held, self._meant)) is not None:
                _take(found, untold[inode], value)
        return dict(found)

    def _question(self, family: int, protocol: int) -> bytes:
        storage = _attribute(1, struct.pack("=I", self._meant))  # SK_DIAG_BPF_STORAGE_REQ_MAP_FD
        head = _REQUEST_HEAD.pack(family, protocol, 0, _CONNECTED) + bytes(_ID.size)
        return _message(_BY_FAMILY, _REQUEST | _DUMP, head + _attribute(_STORAGES, storage))

    def end(self, path: str, gone: Meant) -> set[int]:
        """End these sockets, all of the namespace at `path`; the cookies of those that were. OSError."""
        entries = [(meaning, each) for meaning, sockets in gone.items() for each in sockets]
        return inside(path, lambda: _end_all(entries))


def _end_all(entries: Sequence[tuple[Meaning, MeantSocket]]) -> set[int]:
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


def _request(meaning: Meaning, each: MeantSocket) -> bytes:
    """By its two ends and its cookie: no other is meant."""
    ends = (_shown(each.source, each.family), _shown(meaning.value.backend, each.family))
    ports = (htons(each.source_port), htons(meaning.value.backend_port))
    cookie = (each.cookie & 0xFFFFFFFF, each.cookie >> 32)
    return _REQUEST_HEAD.pack(each.family, meaning.protocol & 0xFF, 0, 0xFFFFFFFF) + _ID.pack(
        *ports, *ends, each.device, *cookie
    )


def _shown(address: Address, family: int) -> bytes:
    return address[12:] + bytes(12) if family == socket.AF_INET else address


def _connected(told: bytes, protocol: int, inode: int) -> _Connected:
    """The socket of one answer, of the namespace `inode`."""
    family, *_, identity, _, _, _, _, own_inode = _TOLD.unpack_from(told)
    port, peer_port, source, peer, device, low, high = _ID.unpack(identity)
    found = MeantSocket(
        _whole(source, family), low | high << 32, own_inode, inode, device, htons(port), protocol, family
    )
    return _Connected(found, (_whole(peer, family), htons(peer_port)), _storage(told[_TOLD.size :]))


def _take(found: defaultdict[Meaning, list[MeantSocket]], each: _Connected, value: MeantValue) -> None:
    """One that has been connected to somewhere else since means nothing."""
    if each.peer == (value.backend, value.backend_port):
        found[Meaning(value, each.socket.protocol)].append(each.socket)


def _whole(address: bytes, family: int) -> Address:
    return Address(_MAPPED + address[:4] if family == socket.AF_INET else address)


def _storage(attributes: bytes) -> MeantValue | None:
    size = len(pack(MeantValue(Address(bytes(16)), Address(bytes(16)), 0, 0, 0)))
    for kind, storages in _attributes(attributes):
        if kind == _TOLD_STORAGES:
            for _, storage in _attributes(storages):
                for name, value in _attributes(storage):
                    if name == _MAP_VALUE and len(value) == size:
                        return unpack(MeantValue, value)
    return None


def _opened() -> socket.socket:
    made = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, _SOCK_DIAG)
    made.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _ROOM)
    return made


def _asked(netlink: socket.socket, question: bytes) -> Iterator[bytes]:
    """The answers to a dump. A family or protocol that the kernel does not have has none."""
    netlink.send(question)
    while True:
        for kind, _, body in _messages(netlink.recv(_ROOM)):
            if kind == _DONE:
                return
            if kind == _ERROR:
                code = -int.from_bytes(body[:4], sys.byteorder, signed=True)
                if code == errno.ENOENT:
                    return
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


def _attribute(kind: int, value: bytes) -> bytes:
    return _ATTRIBUTE.pack(_ATTRIBUTE.size + len(value), kind) + value + bytes(-len(value) % 4)


def _attributes(data: bytes) -> Iterator[tuple[int, bytes]]:
    at = 0
    while at + _ATTRIBUTE.size <= len(data):
        length, kind = _ATTRIBUTE.unpack_from(data, at)
        if length < _ATTRIBUTE.size:
            return
        yield kind & 0x3FFF, data[at + _ATTRIBUTE.size : at + length]
        at += (length + 3) & ~3
