"""The other loader: the same maps, the same programs, exchanged for those of the first one and back under traffic.

What programs do is tested with both loaders by the tests that ask for `datapath` (see conftest.py).
"""

from __future__ import annotations

import socket
import struct
import subprocess
from contextlib import closing
from pathlib import Path

import pytest
from bpf_node import Node

from agent.bpf import bcc
from agent.bpf.bcc import BccObject, find_sources
from agent.bpf.hooks import PROGRAMS, SOCKET_PROGRAMS
from agent.bpf.libbpf import Object
from agent.bpf.links import Outcome
from agent.bpf.loader import Datapath, constants
from clustermesh.errors import Refused

pytestmark = pytest.mark.root


def test_both_loaders_declare_the_same_maps(bpf_object: Path, bcc_cache: Path) -> None:
    with Object(bpf_object) as elf, BccObject(find_sources(), constants(), bcc_cache) as compiled:
        assert {name: compiled.shape(name) for name in compiled.maps} == {name: elf.shape(name) for name in elf.maps}
        compiled.load([program.name for program in PROGRAMS])
        assert len({compiled.program_fd(program.name) for program in PROGRAMS}) == len(PROGRAMS)


def test_one_loader_takes_over_from_the_other_and_finds_its_maps(
    bpf_object: Path, bcc_cache: Path, pin_dir: Path, cgroup: Path, node: Node
) -> None:
    ids = None
    for cache, outcome in ((None, Outcome.ATTACHED), (bcc_cache, Outcome.REPLACED), (bcc_cache, Outcome.ADOPTED),
                           (None, Outcome.REPLACED)):  # fmt: skip
        opened = Datapath.open(bpf_object, pin_dir, bcc_cache=cache)
        with closing(opened):
            assert opened.loader == ("libbpf" if cache is None else "bcc")
            assert ids in (None, opened.map_ids)
            ids = opened.map_ids
            opened.attach_sockets(cgroup)
            assert {opened.hooks[each.name].outcome for each in SOCKET_PROGRAMS} == {outcome}
            node.socket(socket.AF_INET, socket.SOCK_DGRAM).connect(("127.0.0.1", 9))


def test_what_was_compiled_once_is_not_compiled_again(
    bcc_cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = bcc.compiled(find_sources(), constants(), bcc_cache)
    monkeypatch.setattr(bcc, "_PYTHON", "/nowhere/python3")
    assert bcc.compiled(find_sources(), constants(), bcc_cache) == first
    with pytest.raises(Refused, match="/nowhere/python3"):
        bcc.compiled(find_sources(), constants() | {"node_netns": 2}, tmp_path)


def test_a_compilers_error_is_the_reason(bcc_cache: Path, tmp_path: Path) -> None:
    subprocess.run(["cp", "-r", str(find_sources()), str(tmp_path / "bpf")], check=True, timeout=60)
    with (tmp_path / "bpf" / "clustermesh.bpf.c").open("a") as source:
        source.write("\nint broken(void) { return nosuchthing; }\n")
    with pytest.raises(Refused, match="nosuchthing"):
        bcc.compiled(tmp_path / "bpf", constants(), tmp_path / "cache")
    assert not (tmp_path / "cache").exists()


def test_a_program_the_kernel_rejects_carries_the_verifier_s_reason(
    bcc_cache: Path, pin_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    code = bcc.compiled(find_sources(), constants(), bcc_cache)
    leave = struct.pack("=BBhi", 0x95, 0, 0, 0)  # without a result
    monkeypatch.setattr(bcc, "compiled", lambda *_: code | {PROGRAMS[0].name: leave})
    with pytest.raises(Refused, match="R0 !read_ok"):
        Datapath.open(None, pin_dir, bcc_cache=bcc_cache)
    assert list((pin_dir / "v2").iterdir()) == []
