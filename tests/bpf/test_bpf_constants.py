"""Constants of an object are set by their names, wherever the compiler has laid them."""

from __future__ import annotations

import platform
import subprocess
from pathlib import Path

import pytest
from bpf_run import program_test_run

from agent.bpf.libbpf import Object
from clustermesh.errors import Refused

pytestmark = pytest.mark.root

_SOURCES = Path(__file__).parents[2] / "bpf"
_PROGRAM = """
#include <linux/bpf.h>
#include "maps.h"
DECLARE_LICENSE("Dual BSD/GPL");
CONSTANT(bool, first, false);
CONSTANT(__u32, second, 7);
CONSTANT(bool, third, false);
CONSTANT(__u16, fourth, 1);
SEC("tc") int say(struct __sk_buff *skb) { return first + 10 * third + 100 * fourth + 1000 * second; }
"""


@pytest.fixture(scope="module")
def constants(bpf_object: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`bpf_object` says that there is a compiler."""
    made = tmp_path_factory.mktemp("constants") / "constants.bpf.o"
    command = ["clang", "-O2", "-g", "-target", "bpf", "-mcpu=v3", f"-I{_SOURCES}", "-x", "c", "-"]
    system = f"-isystem/usr/include/{platform.machine()}-linux-gnu"
    subprocess.run([*command, system, "-c", "-o", str(made)], input=_PROGRAM.encode(), check=True, timeout=60)
    return made


def test_each_constant_is_what_it_is_set_to(constants: Path) -> None:
    with Object(constants) as elf:
        elf.set_constants({"third": True, "second": 1234567, "first": True, "fourth": 3})
        elf.load()
        assert program_test_run(elf.program_fd("say"), bytes(64)).verdict == 1 + 10 + 300 + 1234567000


@pytest.mark.parametrize("given", [{}, {"first": 1, "second": 2, "third": 1}, {"has_set_retval": 1}])
def test_an_object_with_other_constants_is_refused_by_their_names(constants: Path, given: dict[str, int]) -> None:
    with Object(constants) as elf, pytest.raises(Refused, match="has the constants first, fourth, second, third, not"):
        elf.set_constants(given)
