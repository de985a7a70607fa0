"""Endpoint slices: protobuf by the numbers of the wire format, in a zstd frame that cannot blow up."""

from __future__ import annotations

import subprocess
import sys

import pytest
import zstandard
from msgspec.structs import replace

from clustermesh.address import parse
from clustermesh.errors import DecodeError, Invalid
from clustermesh.model import EndpointSlice, Protocol, SliceEndpoint, SlicePort
from clustermesh.wire import endpoint_slice, slice_pb2

SLICE = EndpointSlice(
    cluster="west",
    cluster_id=300,
    namespace="shop",
    name="cart-1",
    address_type="IPv4",
    endpoints=(
        SliceEndpoint(
            addresses=(parse("10.20.1.8"), parse("10.20.1.9")),
            ready=False,
            serving=True,
            node_name="w1",
            zone="z1",
            for_zones=("z1", "z2"),
        ),
    ),
    ports=(SlicePort(name="http", port=8080), SlicePort(protocol=Protocol.UDP)),
    labels={"a": "b"},
    annotations={"c": ""},
)


def field(number: int, content: bytes | int) -> bytes:
    """One protobuf field, by hand: a varint below 2^14, or bytes shorter than 128."""
    if isinstance(content, int):
        low = bytes([content]) if content < 128 else bytes([content & 127 | 128, content >> 7])
        return bytes([number << 3]) + low
    return bytes([number << 3 | 2, len(content)]) + content


def by_hand() -> bytes:
    conditions = field(1, 0) + field(2, 1)
    hints = field(1, field(1, b"z1")) + field(1, field(1, b"z2"))
    topology = field(1, b"x") + field(2, b"y")  # read by nobody
    endpoint = field(1, b"10.20.1.8") + field(1, b"10.20.1.9") + field(2, conditions) + field(5, topology)
    endpoint += field(6, b"w1") + field(7, b"z1") + field(8, hints)
    ports = field(9, field(1, b"http") + field(2, b"TCP") + field(3, 8080)) + field(9, field(2, b"UDP"))
    labels = field(5, field(1, b"a") + field(2, b"b")) + field(6, field(1, b"c") + field(2, b""))
    named = field(1, b"west") + field(2, 300) + field(3, b"shop") + field(4, b"cart-1")
    return named + labels + field(7, b"IPv4") + field(8, endpoint) + ports


def pack(data: bytes) -> bytes:
    return zstandard.ZstdCompressor().compress(data)


def test_fields_have_the_numbers_of_the_wire_format() -> None:
    assert endpoint_slice.decode(pack(by_hand())) == SLICE
    assert endpoint_slice.decode(endpoint_slice.encode(SLICE)) == SLICE


def test_nameless_port_is_written_with_its_empty_name() -> None:
    written = slice_pb2.Slice.FromString(zstandard.ZstdDecompressor().decompress(endpoint_slice.encode(SLICE)))
    assert all(port.HasField("name") for port in written.ports)


def test_endpoint_of_unknown_condition_is_written_with_empty_conditions() -> None:
    piece = replace(SLICE, endpoints=(SliceEndpoint(addresses=(parse("10.20.1.8"),)),))
    written = slice_pb2.Slice.FromString(zstandard.ZstdDecompressor().decompress(endpoint_slice.encode(piece)))
    assert written.endpoints[0].HasField("conditions")
    assert not written.endpoints[0].conditions.HasField("ready")


def test_frame_that_does_not_tell_its_size_is_read() -> None:
    packer = zstandard.ZstdCompressor(write_content_size=False).compressobj()
    frame = packer.compress(by_hand()) + packer.flush()
    assert zstandard.frame_content_size(frame) == -1
    assert endpoint_slice.decode(frame) == SLICE


def bomb(tells: bool) -> bytes:
    """A frame of a few kilobytes that unpacks to 64 MiB."""
    packer = zstandard.ZstdCompressor(write_content_size=tells).compressobj(size=64 << 20 if tells else -1)
    return b"".join([packer.compress(bytes(1 << 20)) for _ in range(64)]) + packer.flush()


@pytest.mark.parametrize("tells", [True, False])
def test_frame_that_unpacks_to_too_much_is_refused(tells: bool) -> None:
    frame = bomb(tells)
    assert len(frame) < 10_000
    with pytest.raises(DecodeError):
        endpoint_slice.decode(frame)


def test_frame_that_lies_about_its_size_is_refused() -> None:
    honest = pack(by_hand())
    size = len(by_hand())
    for lie in (
        b"\x00\x00\x00\x00\x00\x00\x00\x40",
        (size - 1).to_bytes(8, "little"),
        (size + 1).to_bytes(8, "little"),
    ):
        header = honest[:4] + bytes([0b1110_0000]) + lie  # 8 bytes of size, single segment
        with pytest.raises(DecodeError):
            endpoint_slice.decode(header + honest[frame_header(honest) :])


def frame_header(frame: bytes) -> int:
    return zstandard.frame_header_size(frame)


def test_frame_cut_short_or_followed_by_more_is_refused() -> None:
    frame = pack(by_hand())
    for length in range(len(frame)):
        with pytest.raises(DecodeError):
            endpoint_slice.decode(frame[:length])
    with pytest.raises(DecodeError):
        endpoint_slice.decode(frame + b"x")


@pytest.mark.parametrize(
    "message",
    [
        b"",
        b"\xff" * 20,
        by_hand()[:-1],
        by_hand().replace(b"west", b"\xff\xfe\xfd\xfc"),
        by_hand().replace(b"IPv4", b"FQDN"),
        by_hand().replace(b"IPv4", b"IPv6"),
        by_hand().replace(b"10.20.1.8", b"10.20.1.x"),
        by_hand().replace(b"10.20.1.8", b"\xff0.20.1.8"),
        by_hand().replace(b"UDP", b"XYZ"),
        by_hand() + field(9, field(3, 1) + b"\x18\xff\xff\xff\xff\xff\xff\xff\xff\xff\x01"),  # port -1
    ],
    ids=repr,
)
def test_message_that_is_no_slice_is_refused(message: bytes) -> None:
    with pytest.raises(DecodeError):
        endpoint_slice.decode(pack(message))


def test_slice_too_large_to_be_read_is_not_written() -> None:
    with pytest.raises(Invalid, match="at most"):
        endpoint_slice.encode(replace(SLICE, labels={"a": "x" * endpoint_slice.MAX_SIZE}))


def test_wire_is_imported_without_protobuf_and_zstandard() -> None:
    code = "import sys, clustermesh.wire; print(*(m for m in ('google.protobuf', 'zstandard') if m in sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.strip() == ""
