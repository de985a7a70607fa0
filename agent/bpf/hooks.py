"""The programs of the object as a table: what each is called, where it can be attached, and how."""

from __future__ import annotations

from enum import Enum
from typing import Final, NamedTuple

from agent.bpf.syscalls import AttachType


class Kind(Enum):
    """What a program is attached to."""

    SOCKETS = "a cgroup: the sockets of its processes"
    DEVICE = "a network device: its packets"


class Program(NamedTuple):
    """`reads_back` where it shows what another program has remembered: two generations of it can run side by side, the
    one that finds nothing changing nothing."""

    name: str
    kind: Kind
    attach_type: AttachType
    reads_back: bool = False


PROGRAMS: Final = (
    Program("connect4", Kind.SOCKETS, AttachType.CGROUP_INET4_CONNECT),
    Program("connect6", Kind.SOCKETS, AttachType.CGROUP_INET6_CONNECT),
    Program("sendmsg4", Kind.SOCKETS, AttachType.CGROUP_UDP4_SENDMSG),
    Program("sendmsg6", Kind.SOCKETS, AttachType.CGROUP_UDP6_SENDMSG),
    Program("recvmsg4", Kind.SOCKETS, AttachType.CGROUP_UDP4_RECVMSG, reads_back=True),
    Program("recvmsg6", Kind.SOCKETS, AttachType.CGROUP_UDP6_RECVMSG, reads_back=True),
    Program("getpeername4", Kind.SOCKETS, AttachType.CGROUP_INET4_GETPEERNAME, reads_back=True),
    Program("getpeername6", Kind.SOCKETS, AttachType.CGROUP_INET6_GETPEERNAME, reads_back=True),
    Program("strict_ingress", Kind.DEVICE, AttachType.TCX_INGRESS),
    Program("strict_egress", Kind.DEVICE, AttachType.TCX_EGRESS),
)

SOCKET_PROGRAMS: Final = tuple(program for program in PROGRAMS if program.kind is Kind.SOCKETS)
DEVICE_PROGRAMS: Final = tuple(program for program in PROGRAMS if program.kind is Kind.DEVICE)
