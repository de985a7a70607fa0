"""Routes of the main table, hundreds in a system call: the kernel takes many messages at once and answers each.

Formats: linux/netlink.h, linux/rtnetlink.h; numbers are of the machine's byte order, addresses of the network's. All of
it blocks for as long as the kernel's network lock is taken: to be called in a thread.
"""

from __future__ import annotations

import errno
import os
import socket
import struct
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from contextlib import contextmanager
from types import TracebackType
from typing import Final, NamedTuple

from agent.netlink import MAIN_TABLE, SCOPE_LINK, has_ipv6
from clustermesh.address import V4, Address, Prefix, is_ipv4

UNICAST: Final = 1  # rtm_type
BLACKHOLE: Final = 6
_SCOPE_UNIVERSE: Final = 0
_SCOPE_ANY: Final = 255  # RT_SCOPE_NOWHERE, which a delete takes for a wildcard

_HEADER: Final = struct.Struct("=IHHII")  # nlmsghdr: length, type, flags, sequence number, port
_ROUTE: Final = struct.Struct("=8BI")  # rtmsg: family, lengths of destination and source, tos, table ... type, flags
_ATTRIBUTE: Final = struct.Struct("=HH")  # rtattr: length with this, type
_NUMBER: Final = struct.Struct("=I")
_ERRNO: Final = struct.Struct("=i")
_ERROR, _DONE = 2, 3  # nlmsg_type
_NEW, _DELETE, _GET = 24, 25, 26
_REQUEST, _ACK, _LIST = 0x1, 0x4, 0x300  # nlmsg_flags
_REPLACE, _EXCLUSIVE, _CREATE = 0x100, 0x200, 0x400
_DESTINATION, _DEVICE, _METRIC, _SOURCE, _TABLE = 1, 4, 6, 7, 15  # rta_type
_SOL_NETLINK, _CAP_ACK, _STRICT, _RCVBUFFORCE = 270, 10, 12, 33
_BUFFER: Final = 1 << 20  # bytes of answers that wait to be read, with what the kernel adds
_AT_ONCE: Final = 128  # messages in a call: their answers take some 100 kB of it
_RECEIVED: Final = 1 << 15  # the kernel's parts of a list have no more
_PATIENCE: Final = 10.0  # seconds for an answer, which is there when the call returns
_READINGS: Final = [12_288 + 2_560 * n for n in range(8)]  # of a list of IPv6, at most: bytes of their parts
# RTMGRP_: LINK, IPV6_IFADDR, IPV6_ROUTE. Routes may go with their device, or its address, without a word of their own.
_CHANGES_OF_IPV6: Final = 0x1 | 0x100 | 0x400


class RawRoute(NamedTuple):
    """One of the table. `device` is an interface's index, 0 for none."""

    dst: Prefix
    metric: int
    protocol: int
    kind: int
    device: int = 0
    source: Address | None = None


class RouteSocket:
    """Raises OSError: what the kernel says of a list, or that it says nothing. A context."""

    def __init__(self) -> None:
        self._socket = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, socket.NETLINK_ROUTE)
        self._sequence = 0
        try:
            self._socket.settimeout(_PATIENCE)
            self._socket.setsockopt(socket.SOL_SOCKET, _RCVBUFFORCE, _BUFFER)
            self._socket.setsockopt(_SOL_NETLINK, _CAP_ACK, 1)  # an answer without the question
            self._socket.setsockopt(_SOL_NETLINK, _STRICT, 1)  # a list of what is asked for alone
            self._socket.bind((0, 0))
        except BaseException:
            self._socket.close()
            raise

    def __enter__(self) -> RouteSocket:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._socket.close()

    def dump(self, protocol: int = 0) -> list[RawRoute]:
        """The table's routes of both families, of one protocol where it is not 0."""
        families = [socket.AF_INET, *([socket.AF_INET6] if has_ipv6() else [])]
        parts = [part for family in families for part in self._read(family, protocol)]
        found = [route for part in parts if (route := _parse(part)) is not None]
        return [route for route in found if protocol in (0, route.protocol)]

    def add(self, routes: Sequence[RawRoute]) -> list[int]:
        """The errno of each, 0 where it was made: EEXIST where anybody's has its destination and metric."""
        return self._change(_NEW, _CREATE | _EXCLUSIVE, routes)

    def replace(self, routes: Sequence[RawRoute]) -> list[int]:
        """As `add`, in the place of whatever has it."""
        return self._change(_NEW, _CREATE | _REPLACE, routes)

    def delete(self, routes: Sequence[RawRoute]) -> list[int]:
        """As `add`; to IPv4 the metric 0 means any."""
        return self._change(_DELETE, 0, routes)

    # -- writing ------------------------------------------------------------------------------------------------------

    def _change(self, verb: int, flags: int, routes: Sequence[RawRoute]) -> list[int]:
        head, flags = _HEADER.size, flags | _REQUEST | _ACK
        codes = list[int]()
        for at in range(0, len(routes), _AT_ONCE):
            bodies = [_pack(route, verb) for route in routes[at : at + _AT_ONCE]]
            numbers = range(self._sequence + 1, self._sequence + 1 + len(bodies))
            self._sequence += len(bodies)
            sent = zip(numbers, bodies, strict=True)
            self._socket.send(b"".join(_HEADER.pack(head + len(b), verb, flags, number, 0) + b for number, b in sent))
            codes += self._answers(numbers)
        return codes

    def _answers(self, numbers: Collection[int]) -> list[int]:
        codes = dict[int, int]()
        while len(codes) < len(numbers):
            for kind, _, number, payload in self._receive():
                if kind == _ERROR and number in numbers:
                    codes[number] = -_ERRNO.unpack_from(payload)[0]
        return [codes[number] for number in numbers]

    # -- reading ------------------------------------------------------------------------------------------------------

    def _read(self, family: int, protocol: int) -> Iterable[bytes]:
        """The routes as messages. Where anybody changes a route of IPv6 meanwhile, a list lacks others behind the end
        of any of its parts and says nothing of it: it is read again, in parts that end elsewhere, but eight times at
        most. The kernel makes the first as long as the largest that its socket has asked for, hence one of its own."""
        if family == socket.AF_INET:
            return self._read_once(family, protocol, _RECEIVED)
        found = dict[bytes, None]()
        with RouteSocket() as kernel:
            for size in _READINGS:
                with _hearing_changes() as hears:
                    found |= dict.fromkeys(kernel._read_once(family, protocol, size))
                    if not hears():
                        break
        return found

    def _read_once(self, family: int, protocol: int, size: int) -> Iterator[bytes]:
        self._sequence += 1
        body = _ROUTE.pack(family, 0, 0, 0, MAIN_TABLE, protocol, 0, 0, 0)
        self._socket.send(_HEADER.pack(_HEADER.size + len(body), _GET, _REQUEST | _LIST, self._sequence, 0) + body)
        while True:
            for kind, _, number, payload in self._receive(size):
                if number == self._sequence and kind in (_DONE, _ERROR):
                    return _raise_for(-_ERRNO.unpack_from(payload)[0])
                if number == self._sequence and kind == _NEW:
                    yield bytes(payload)

    def _receive(self, size: int = _RECEIVED) -> Iterator[tuple[int, int, int, memoryview]]:
        """The messages of one answer: type, flags, number, what follows the header. The kernel makes none longer than
        the largest `size` so far."""
        data, at = memoryview(self._socket.recv(size)), 0
        while at + _HEADER.size <= len(data):
            length, verb, flags, number, _ = _HEADER.unpack_from(data, at)
            if length < _HEADER.size:
                raise OSError(errno.EBADMSG, os.strerror(errno.EBADMSG))
            yield verb, flags, number, data[at + _HEADER.size : at + length]
            at += -(-length // 4) * 4


@contextmanager
def _hearing_changes() -> Iterator[Callable[[], bool]]:
    """Whether anybody has changed a route of IPv6, or what it rests on, since."""
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, socket.NETLINK_ROUTE) as ear:
        ear.bind((0, _CHANGES_OF_IPV6))
        yield lambda: _has_heard(ear)


def _has_heard(ear: socket.socket) -> bool:
    try:
        return bool(ear.recv(1, socket.MSG_DONTWAIT))
    except BlockingIOError:
        return False
    except OSError:  # more than it could hold
        return True


def _raise_for(code: int) -> None:
    if code not in (0, errno.ENOENT):  # a family without such a table has no route in it
        raise OSError(code, os.strerror(code))


def _pack(route: RawRoute, verb: int) -> bytes:
    skip, family = (12, socket.AF_INET) if is_ipv4(route.dst.address) else (0, socket.AF_INET6)
    scope = _SCOPE_ANY if verb == _DELETE else SCOPE_LINK if route.device else _SCOPE_UNIVERSE
    packed = _ROUTE.pack(
        family, route.dst.length - skip * 8, 0, 0, MAIN_TABLE, route.protocol, scope, route.kind, 0
    ) + _attribute(_METRIC, _NUMBER.pack(route.metric))
    packed += _attribute(_DESTINATION, route.dst.address[skip:])
    if route.device:
        packed += _attribute(_DEVICE, _NUMBER.pack(route.device))
    if route.source is not None:
        packed += _attribute(_SOURCE, route.source[skip:])
    return packed


def _attribute(kind: int, value: bytes) -> bytes:
    """Values of four and sixteen bytes, which need no filling up."""
    return _ATTRIBUTE.pack(_ATTRIBUTE.size + len(value), kind) + value


def _parse(payload: bytes) -> RawRoute | None:
    """None for what is of another table."""
    family, length, _, _, table, protocol, _, kind, _ = _ROUTE.unpack_from(payload)
    found, at = dict[int, bytes](), _ROUTE.size
    while at + _ATTRIBUTE.size <= len(payload):
        size, name = _ATTRIBUTE.unpack_from(payload, at)
        if size < _ATTRIBUTE.size:
            break
        found[name] = payload[at + _ATTRIBUTE.size : at + size]
        at += -(-size // 4) * 4
    if _number(found.get(_TABLE), table) != MAIN_TABLE:
        return None
    short = family == socket.AF_INET
    before = V4.address[:12] if short else b""
    dst = before + bytes(found[_DESTINATION]) if _DESTINATION in found else V4.address if short else bytes(16)
    source = Address(before + bytes(found[_SOURCE])) if _SOURCE in found else None
    prefix = Prefix(Address(dst), length + 96 if short else length)
    return RawRoute(prefix, _number(found.get(_METRIC), 0), protocol, kind, _number(found.get(_DEVICE), 0), source)


def _number(packed: bytes | None, other: int) -> int:
    return other if packed is None else int(_NUMBER.unpack(packed)[0])
