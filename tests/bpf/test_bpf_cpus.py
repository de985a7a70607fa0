"""Programs of packets on two CPUs at once: both ends of a connection from outside send again what may be lost.

client   a process ──from_outside──> entries of both directions, which are made anew until he has proven to be one
backend  a process ──to_outside────> the same entries
"""

from __future__ import annotations

import mmap
import os
from collections.abc import Sequence

import pytest
from bpf_flows import ACK, SYN, TCP
from bpf_outside import Outside, call, locally
from bpf_run import fork, program_test_run
from bpf_services import key_of, to_backend

from agent.bpf.layouts import CtFlag

pytestmark = pytest.mark.root

PORTS, AT_ONCE = range(40000, 40050), 5
Frames = Sequence[bytes]


@pytest.fixture(scope="module")
def sizes() -> dict[str, int]:
    return {"ct": 2048}


class End:
    """A process that sends the frames of each step once the other one has come to it, too."""

    def __init__(self, place: int, program: int, device: int, steps: Sequence[Frames], met: mmap.mmap) -> None:
        self._place, self._program, self._device, self._steps, self._met = place, program, device, steps, met
        self.pid = 0

    def start(self) -> None:
        """In the network namespace of whoever calls."""
        self.pid = fork(self._send)

    def _send(self) -> None:
        allowed = sorted(os.sched_getaffinity(0))
        os.sched_setaffinity(0, {allowed[self._place % len(allowed)]})
        mine, other = 2 * self._place, 2 * (1 - self._place)
        for number, frames in enumerate(self._steps, 1):
            self._met[mine : mine + 2] = number.to_bytes(2, "little")
            while int.from_bytes(self._met[other : other + 2], "little") < number:
                os.sched_yield()
            for frame in frames:
                program_test_run(self._program, frame, self._device)


def test_nothing_of_a_connection_is_lost_whose_ends_send_again_at_once(outside: Outside) -> None:
    locally(outside)
    calls = [call(outside, TCP, port) for port in PORTS]
    client, backend = list[Frames](), list[Frames]()
    for few in (calls[at : at + AT_ONCE] for at in range(0, len(calls), AT_ONCE)):
        syn, proof = ([sent.to(**of).frame() for sent in few] for of in ({}, {"flags": ACK, "ack": 7001}))
        answer, more = (
            [to_backend(outside, sent).back().to(flags=flags, seq=7000).frame() for sent in few]
            for flags in (SYN | ACK, ACK)
        )
        client += [syn * 2, syn * 5, proof, proof * 2, proof, []]
        backend += [[], answer * 5, answer * 2, more * 2, [], more]
    met = mmap.mmap(-1, 4)
    programs = [outside.datapath.program_fd(name) for name in ("from_outside", "to_outside")]
    ends = [End(place, programs[place], outside.device, steps, met) for place, steps in enumerate((client, backend))]
    for end in ends:
        outside.net.call(end.start)
    for end in ends:
        assert os.waitstatus_to_exitcode(os.waitpid(end.pid, 0)[1]) == 0
    known = outside.entries()
    for sent in calls:
        forward, reply = known.get(key_of(sent)), known.get(key_of(to_backend(outside, sent).back()))
        assert forward is not None, sent
        assert reply is not None, sent
        assert (forward.flags & CtFlag.REPLY, reply.flags & CtFlag.REPLY) == (0, CtFlag.REPLY)
        assert forward.flags & reply.flags & CtFlag.ESTABLISHED, sent
