"""Nothing is dropped without a reason: there is one place for it. What a kernel would not have changed has one, too."""

from __future__ import annotations

import json
import re
import struct
from base64 import b64decode, b64encode
from collections.abc import Iterator
from pathlib import Path

import pytest
from bpf_flows import ACK, SYN, TCP, UDP
from bpf_services import DROP, FAMILIES, NEXT, Bed, call, to_backend

from agent.bpf.hooks import PROGRAMS, Kind
from agent.bpf.layouts import Reason
from agent.bpf.loader import Datapath

pytestmark = pytest.mark.root

_SOURCES = Path(__file__).parents[2] / "bpf"
_COMMENT = re.compile(r"/\*.*?\*/", re.DOTALL)
_ENTRY = re.compile(r'SEC\("(tc|xdp)"\)\nint (\w+)\([^)]*\)\n{\n(.*?)\n}', re.DOTALL)
_HELPERS = {"bpf_skb_store_bytes": 9, "bpf_l4_csum_replace": 11}  # linux/bpf.h
_INSTRUCTION = struct.Struct("<BBhi")
_CALL, _MOVE, _EINVAL = 0x85, 0xB7, 22
_EXECUTABLE = 4  # a section of an ELF


def test_there_is_one_place_where_packets_are_dropped() -> None:
    code = {path.name: _COMMENT.sub("", path.read_text()) for path in _SOURCES.glob("*.[ch]")}
    for verdict in ("TC_ACT_SHOT", "XDP_DROP", "XDP_ABORTED"):
        places = [name for name, text in code.items() for _ in re.findall(rf"\b{verdict}\b", text)]
        assert places == ([] if verdict == "XDP_ABORTED" else ["drop.h"])
    entries = _ENTRY.findall(code["clustermesh.bpf.c"])
    assert len(entries) == code["clustermesh.bpf.c"].count('SEC("tc")') + code["clustermesh.bpf.c"].count('SEC("xdp")')
    own = {program.name for program in PROGRAMS if program.kind is Kind.AGENT}  # these meet nobody's packets
    for kind, name, body in entries:
        assert name in own or re.fullmatch(rf"\treturn finish{'_frame' * (kind == 'xdp')}\(.*\);", body), name


@pytest.fixture(scope="module", params=_HELPERS)
def helper(request: pytest.FixtureRequest) -> str:
    """What a kernel without memory refuses."""
    return str(request.param)


def refused(code: bytes, helper: str) -> bytes:
    """The same program where this helper says no: in the place of each call is its answer."""
    call, answer = _INSTRUCTION.pack(_CALL, 0, 0, _HELPERS[helper]), _INSTRUCTION.pack(_MOVE, 0, 0, -_EINVAL)
    each = (code[at : at + len(call)] for at in range(0, len(code), len(call)))
    return b"".join(answer if instruction == call else instruction for instruction in each)


def refused_in_elf(elf: bytes, helper: str) -> bytes:
    made = bytearray(elf)
    (headers,), (size, count) = struct.unpack_from("<Q", elf, 40), struct.unpack_from("<HH", elf, 58)
    for at in range(headers, headers + size * count, size):
        flags, _, begin, length = struct.unpack_from("<4Q", elf, at + 8)
        if flags & _EXECUTABLE:
            made[begin : begin + length] = refused(elf[begin : begin + length], helper)
    return bytes(made)


@pytest.fixture(scope="module", params=["libbpf", "bcc"])
def refusing(
    request: pytest.FixtureRequest, helper: str, bpf_object: Path, bpffs: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Datapath]:
    """The same programs over such a kernel."""
    folder, made, cache = tmp_path_factory.mktemp("refusing"), bpf_object, None
    if request.param == "bcc":
        cache = folder
        (kept,) = request.getfixturevalue("bcc_cache").glob("bcc-*.json")
        code = {name: refused(b64decode(each), helper) for name, each in json.loads(kept.read_text()).items()}
        (folder / kept.name).write_text(json.dumps({name: b64encode(each).decode() for name, each in code.items()}))
    else:
        made = folder / "made.o"
        made.write_bytes(refused_in_elf(bpf_object.read_bytes(), helper))
    opened = Datapath.open(made, bpffs / f"refusing-{helper}-{request.param}", bcc_cache=cache)
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
