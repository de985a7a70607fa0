"""The kernel's word that a network device came, went or changed: by name, without asking for what it is now.

Formats: linux/netlink.h, linux/rtnetlink.h, linux/if_link.h; numbers are of the machine's byte order.
"""

from __future__ import annotations

import asyncio
import errno
import os
import socket
import struct
from collections.abc import Iterator
from typing import Final

_GROUP: Final = 1  # RTMGRP_LINK
_HEADER: Final = struct.Struct("=IHHII")  # nlmsghdr: length, type, flags, sequence number, port
_ATTRIBUTE: Final = struct.Struct("=HH")  # rtattr: length with this, type
_LINK_SIZE: Final = 16  # ifinfomsg
_NAME: Final = 3  # IFLA_IFNAME
_KINDS: Final = (16, 17)  # RTM_NEWLINK, RTM_DELLINK
_RECEIVED: Final = 1 << 16


class LinkEvents:
    """What happens in this network namespace from now on."""

    def __init__(self) -> None:
        self._socket = socket.socket(
            socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC, socket.NETLINK_ROUTE
        )
        self._socket.bind((0, _GROUP))

    async def next(self) -> set[str] | None:
        """The names of all devices that something happened to by now, at least one; None where more happened than the
        socket holds: it may have been any."""
        ready, loop = asyncio.Event(), asyncio.get_running_loop()
        loop.add_reader(self._socket, ready.set)
        try:
            await ready.wait()
        finally:
            loop.remove_reader(self._socket)
        return self._drain()

    def _drain(self) -> set[str] | None:
        names, lost = set[str](), False
        while True:
            try:
                names.update(parse_names(self._socket.recv(_RECEIVED)))
            except BlockingIOError:
                return None if lost else names
            except OSError as e:
                if e.errno != errno.ENOBUFS:
                    raise
                lost = True

    def close(self) -> None:
        self._socket.close()


def parse_names(data: bytes) -> Iterator[str]:
    """The devices that the messages in `data` are about. What cannot be read ends it."""
    at = 0
    while at + _HEADER.size <= len(data):
        length, kind, *_ = _HEADER.unpack_from(data, at)
        if not _HEADER.size <= length <= len(data) - at:
            return
        if kind in _KINDS:
            yield from _name(data[at + _HEADER.size + _LINK_SIZE : at + length])
        at += -(-length // 4) * 4


def _name(attributes: bytes) -> Iterator[str]:
    at = 0
    while at + _ATTRIBUTE.size <= len(attributes):
        length, kind = _ATTRIBUTE.unpack_from(attributes, at)
        if not _ATTRIBUTE.size <= length <= len(attributes) - at:
            return
        if kind & 0x3FFF == _NAME:
            yield os.fsdecode(attributes[at + _ATTRIBUTE.size : at + length].rstrip(b"\0"))
            return
        at += -(-length // 4) * 4
