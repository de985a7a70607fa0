"""How much of what the kernel's verifier goes through (a million instructions of a program) is used."""

from __future__ import annotations

import pytest
from bpf_run import verified_instructions

from agent.bpf.hooks import PROGRAMS
from agent.bpf.loader import Datapath

pytestmark = pytest.mark.root

MOST = {"libbpf": 200_000, "bcc": 700_000}


def test_every_program_has_room_to_grow(loaded: Datapath) -> None:
    """Older kernels follow more ways than newer ones: a program that takes all here is refused there."""
    found = {program.name: verified_instructions(loaded.program_fd(program.name)) for program in PROGRAMS}
    assert min(found.values()) > 0, "the kernel does not say"
    assert {name: count for name, count in found.items() if count > MOST[loaded.loader]} == {}
