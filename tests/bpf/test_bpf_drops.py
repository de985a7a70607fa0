"""Nothing is dropped without a reason: there is one place for it. What a kernel would not have changed has one, too."""

from __future__ import annotations

import platform
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from bpf_flows import ACK, SYN, TCP, UDP
from bpf_services import DROP, FAMILIES, NEXT, Bed, call, to_backend

from agent.bpf.layouts import Reason
from agent.bpf.loader import Datapath

pytestmark = pytest.mark.root

_SOURCES = Path(__file__).parents[2] / "bpf"
_COMMENT = re.compile(r"/\*.*?\*/", re.DOTALL)
_ENTRY = re.compile(r'SEC\("(tc|xdp)"\)\nint (\w+)\([^)]*\)\n{\n(.*?)\n}', re.DOTALL)
_REFUSING = """
#include <stdbool.h>
#include <linux/bpf.h>
#include <linux/types.h>
#include <bpf/bpf_helpers.h>
#define {helper}(skb, at, from, to, flags) {helper}(skb, at, from, to, 1ULL << 40)
"""


def test_there_is_one_place_where_packets_are_dropped() -> None:
    code = {path.name: _COMMENT.sub("", path.read_text()) for path in _SOURCES.glob("*.[ch]")}
    for verdict in ("TC_ACT_SHOT", "XDP_DROP", "XDP_ABORTED"):
        places = [name for name, text in code.items() for _ in re.findall(rf"\b{verdict}\b", text)]
        assert places == ([] if verdict == "XDP_ABORTED" else ["drop.h"])
    entries = _ENTRY.findall(code["clustermesh.bpf.c"])
    assert len(entries) == code["clustermesh.bpf.c"].count('SEC("tc")') + code["clustermesh.bpf.c"].count('SEC("xdp")')
    for kind, name, body in entries:
        assert re.fullmatch(rf"\treturn finish{'_frame' * (kind == 'xdp')}\(.*\);", body), name


@pytest.fixture(scope="module", params=["bpf_skb_store_bytes", "bpf_l4_csum_replace"])
def helper(request: pytest.FixtureRequest) -> str:
    """What a kernel without memory refuses; here it is given flags that there are none of."""
    return str(request.param)


@pytest.fixture(scope="module")
def refusing(
    helper: str, bpf_object: Path, bpffs: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Datapath]:
    """The same programs over such a kernel; `bpf_object` says that there is a compiler."""
    folder = tmp_path_factory.mktemp("refusing")
    (folder / "refusing.h").write_text(_REFUSING.replace("{helper}", helper))
    command = ["clang", "-O2", "-g", "-target", "bpf", "-mcpu=v3", "-include", str(folder / "refusing.h")]
    command += [f"-isystem/usr/include/{platform.machine()}-linux-gnu", "-c", str(_SOURCES / "clustermesh.bpf.c")]
    subprocess.run([*command, "-o", str(folder / "made.o")], check=True, timeout=60)
    opened = Datapath.open(folder / "made.o", bpffs / f"refusing-{helper}")
    yield opened
    opened.close()
    Datapath.remove(opened.pin_dir)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("protocol", [TCP, UDP])
def test_what_the_kernel_would_not_have_changed_is_dropped_and_counted(
    refusing: Datapath, helper: str, family: str, protocol: int
) -> None:
    bed = Bed(*FAMILIES[family])
    bed.reset(refusing)
    sent = call(bed, protocol)
    assert bed.from_pod(sent) == (DROP, None)
    answer = to_backend(bed, sent).back().to(flags=SYN | ACK)
    assert bed.to_pod(answer) == (DROP, None)
    error = bed.error(bed.router, bed.pod, to_backend(bed, sent))
    assert bed.to_pod(error) == (DROP, None)
    assert bed.count(Reason.DROP_BROKEN) == 3
    assert not any(map(bed.count, (Reason.NAT_FORWARD, Reason.NAT_REPLY, Reason.NAT_ERROR)))
    if helper == "bpf_skb_store_bytes":  # there is no answer either
        assert bed.from_pod(call(bed, protocol, bed.empty)) == (DROP, None)
        assert (bed.count(Reason.DROP_NO_BACKEND), bed.count(Reason.DROP_BROKEN)) == (1, 4)


def test_an_answer_that_its_way_is_too_narrow_for_has_that_for_a_reason(bed: Bed) -> None:
    """No such way is planned; were there one, it went on as it came, in the backend's name."""
    sent = call(bed, UDP)
    bed.from_pod(sent)
    answer = to_backend(bed, sent).back()
    assert bed.to_pod(answer) == (NEXT, sent.back())
    bed.change(answer, mtu=20)
    assert bed.to_pod(answer) == (DROP, None)
    assert bed.count(Reason.DROP_TOO_LARGE) == 1
