"""The programs of the object as a table: what each is called, what it is attached to, and on which of its hooks.

Of several programs on one hook of a device the first in the table runs first.
"""

from __future__ import annotations

from enum import Enum
from typing import Final, NamedTuple

from agent.bpf.syscalls import AttachType, ProgramType


class Kind(Enum):
    """What a program is attached to."""

    SOCKETS = "a cgroup: the sockets of its processes"
    UNDERLAY = "the device that leads to the other nodes: its packets"
    POD = "the node's end of a pod's veth pair: what the pod sends comes in there"
    OUTSIDE = "a device by which others than pods are reached: default routes, the Node's addresses"
    FRAMES = "a device by which others than pods are reached: its frames, before they are packets"
    TUNNEL = "the mesh's own device: what comes in there was decrypted"
    AGENT = "nothing: the agent runs it over frames of its own"


class Program(NamedTuple):
    """`reads_back` where it shows what another program has remembered: two generations of it can run side by side, the
    one that finds nothing changing nothing."""

    name: str
    kind: Kind
    attach_type: AttachType
    reads_back: bool = False

    @property
    def program_type(self) -> ProgramType:
        """What the kernel takes it as."""
        if self.kind is Kind.FRAMES:
            return ProgramType.XDP
        if self.kind is not Kind.SOCKETS:
            return ProgramType.SCHED_CLS
        is_end = self.attach_type is AttachType.CGROUP_INET_SOCK_RELEASE
        return ProgramType.CGROUP_SOCK if is_end else ProgramType.CGROUP_SOCK_ADDR


class Attached(NamedTuple):
    """What runs on a device as it should: the device's index (0 where it is gone), and the programs' names in the order
    of the table."""

    ifindex: int
    programs: tuple[str, ...] = ()


class Accelerated(NamedTuple):
    """A device whose frames are translated as they should be: its index (0 where that is not so), and its Ethernet
    address."""

    ifindex: int
    address: bytes = b""


PROGRAMS: Final = (
    Program("socket_release", Kind.SOCKETS, AttachType.CGROUP_INET_SOCK_RELEASE),
    Program("bind4", Kind.SOCKETS, AttachType.CGROUP_INET4_BIND),
    Program("bind6", Kind.SOCKETS, AttachType.CGROUP_INET6_BIND),
    Program("connect4", Kind.SOCKETS, AttachType.CGROUP_INET4_CONNECT),
    Program("connect6", Kind.SOCKETS, AttachType.CGROUP_INET6_CONNECT),
    Program("sendmsg4", Kind.SOCKETS, AttachType.CGROUP_UDP4_SENDMSG),
    Program("sendmsg6", Kind.SOCKETS, AttachType.CGROUP_UDP6_SENDMSG),
    Program("recvmsg4", Kind.SOCKETS, AttachType.CGROUP_UDP4_RECVMSG, reads_back=True),
    Program("recvmsg6", Kind.SOCKETS, AttachType.CGROUP_UDP6_RECVMSG, reads_back=True),
    Program("getpeername4", Kind.SOCKETS, AttachType.CGROUP_INET4_GETPEERNAME, reads_back=True),
    Program("getpeername6", Kind.SOCKETS, AttachType.CGROUP_INET6_GETPEERNAME, reads_back=True),
    Program("strict_ingress", Kind.UNDERLAY, AttachType.TCX_INGRESS),
    Program("strict_egress", Kind.UNDERLAY, AttachType.TCX_EGRESS),
    Program("from_pod", Kind.POD, AttachType.TCX_INGRESS),
    Program("to_pod", Kind.POD, AttachType.TCX_EGRESS),
    Program("from_outside", Kind.OUTSIDE, AttachType.TCX_INGRESS),
    Program("to_outside", Kind.OUTSIDE, AttachType.TCX_EGRESS),
    Program("xdp_outside", Kind.FRAMES, AttachType.XDP),
    Program("from_tunnel", Kind.TUNNEL, AttachType.TCX_INGRESS),
    Program("to_tunnel", Kind.TUNNEL, AttachType.TCX_EGRESS),
    Program("sweep_meant", Kind.AGENT, AttachType.TCX_INGRESS),
)

SOCKET_PROGRAMS: Final = tuple(program for program in PROGRAMS if program.kind is Kind.SOCKETS)
UNDERLAY_PROGRAMS: Final = tuple(program for program in PROGRAMS if program.kind is Kind.UNDERLAY)
(XDP_PROGRAM,) = (program for program in PROGRAMS if program.kind is Kind.FRAMES)
