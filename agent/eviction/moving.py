"""Connected UDP sockets moved to another backend of the service they mean: connected to it anew, by a copy of their
descriptor. Whoever has them open notices nothing; the programs choose, and write down what was chosen."""

from __future__ import annotations

import socket
from contextlib import suppress

from agent.bpf.layouts import MeantValue
from agent.eviction.copies import cookie_of, copied
from agent.eviction.meaning import Located, meaning_of
from clustermesh.address import text


def move(gone: Located, meant: int) -> set[int]:
    """The cookies of those of these sockets that mean another backend now. `meant` is the map lb_meant."""
    wanted = {each.inode: (value, each) for value, sockets in gone.items() for each in sockets if each.inode}
    moved = set()
    for inode, held in copied(wanted.keys()):
        value, each = wanted[inode]
        with suppress(OSError):  # nobody is left, and it is refused
            if cookie_of(held) == each.cookie and meaning_of(meant, each.cookie) == value:
                held.connect(_where(value, each.family))
                if meaning_of(meant, each.cookie) not in (None, value):
                    moved.add(each.cookie)
    return moved


def _where(value: MeantValue, family: int) -> tuple[str, int]:
    address = text(value.address)
    return (f"::ffff:{address}" if family == socket.AF_INET6 and ":" not in address else address), value.port
