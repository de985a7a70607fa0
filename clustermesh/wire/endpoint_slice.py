"""cilium/state/endpointslices/v1/<cluster>/<namespace>/<slice>: zstd of a protobuf message (see slice.proto).

Cilium 1.20 and later (pkg/clustermesh/types/endpointslice). The one module that needs zstandard and protobuf: it is
imported when the first slice is met. After a change of slice.proto, in the root of the repository:
`python -m grpc_tools.protoc -I . --python_out=. clustermesh/wire/slice.proto`.
"""

from __future__ import annotations

from typing import Any, Final

import zstandard
from google.protobuf.message import DecodeError as ProtobufError

from clustermesh.address import is_ipv4, parse, text
from clustermesh.errors import DecodeError, Invalid
from clustermesh.model import EndpointSlice, SliceEndpoint, SlicePort, check_cluster_id
from clustermesh.wire import slice_pb2
from clustermesh.wire.decoding import decodes
from clustermesh.wire.keys import check_name
from clustermesh.wire.ports import check_port, read_protocol, write_protocol

MAX_SIZE: Final = 4 << 20  # bytes, unpacked: a slice of 1000 endpoints, all Kubernetes allows, is a tenth of it
_LARGEST_ID: Final = 511
_FAMILIES: Final = ("IPv4", "IPv6")


def encode(piece: EndpointSlice) -> bytes:
    """One zstd frame that names its size; Invalid for what Cilium's validator refuses."""
    _check(piece)
    try:
        data = _write(piece).SerializeToString(deterministic=True)
    except UnicodeEncodeError as e:
        raise Invalid("text", e.object, "must be valid Unicode") from e
    if len(data) > MAX_SIZE:
        raise Invalid("endpoint slice", piece.name, f"must be at most {MAX_SIZE} bytes unpacked")
    return zstandard.ZstdCompressor().compress(data)


@decodes("endpoint slice")
def decode(data: bytes) -> EndpointSlice:
    """Raises DecodeError, also for more than MAX_SIZE bytes unpacked."""
    message = slice_pb2.Slice()
    try:
        message.ParseFromString(_unpack(data))
    except ProtobufError as e:
        raise DecodeError("endpoint slice", data[:120], str(e)) from e
    piece = EndpointSlice(
        cluster=message.cluster,
        cluster_id=message.cluster_id,
        namespace=message.namespace,
        name=message.name,
        address_type=message.address_type,
        endpoints=tuple(_read_endpoint(endpoint) for endpoint in message.endpoints),
        ports=tuple(_read_port(port) for port in message.ports),
        labels=dict(message.labels),
        annotations=dict(message.annotations),
    )
    _check(piece)
    return piece


def _unpack(data: bytes) -> bytes:
    try:
        size = zstandard.frame_content_size(data)
        if size > MAX_SIZE:
            raise DecodeError("endpoint slice", size, f"must be at most {MAX_SIZE} bytes unpacked")
        unpacker = zstandard.ZstdDecompressor(max_window_size=MAX_SIZE)
        return bytes(unpacker.decompress(data, max_output_size=MAX_SIZE, allow_extra_data=False))
    except zstandard.ZstdError as e:
        raise DecodeError("endpoint slice", data[:120], str(e)) from e


def _check(piece: EndpointSlice) -> None:
    check_name(piece.cluster, "cluster")
    check_name(piece.namespace, "namespace")
    check_name(piece.name, "name")
    check_cluster_id(piece.cluster_id, _LARGEST_ID)
    if piece.address_type not in _FAMILIES:
        raise Invalid("address type", piece.address_type, "must be IPv4 or IPv6")
    for endpoint in piece.endpoints:
        for ip in endpoint.addresses:
            if is_ipv4(ip) != (piece.address_type == "IPv4"):
                raise Invalid("address", text(ip), f"must be {piece.address_type}")


def _write(piece: EndpointSlice) -> Any:
    return slice_pb2.Slice(
        cluster=piece.cluster,
        cluster_id=piece.cluster_id,
        namespace=piece.namespace,
        name=piece.name,
        labels=piece.labels,
        annotations=piece.annotations,
        address_type=piece.address_type,
        endpoints=[_write_endpoint(endpoint) for endpoint in piece.endpoints],
        ports=[_write_port(port) for port in piece.ports],
    )


def _write_endpoint(endpoint: SliceEndpoint) -> Any:
    message = slice_pb2.Endpoint(addresses=[text(ip) for ip in endpoint.addresses])
    message.conditions.SetInParent()
    for condition in ("ready", "serving", "terminating"):
        value = getattr(endpoint, condition)
        if value is not None:
            setattr(message.conditions, condition, value)
    if endpoint.node_name:
        message.node_name = endpoint.node_name
    if endpoint.zone:
        message.zone = endpoint.zone
    if endpoint.for_zones:
        message.hints.for_zones.extend(slice_pb2.ForZone(name=zone) for zone in endpoint.for_zones)
    return message


def _read_endpoint(message: Any) -> SliceEndpoint:
    conditions = message.conditions
    return SliceEndpoint(
        addresses=tuple(parse(ip) for ip in message.addresses),
        ready=conditions.ready if conditions.HasField("ready") else None,
        serving=conditions.serving if conditions.HasField("serving") else None,
        terminating=conditions.terminating if conditions.HasField("terminating") else None,
        node_name=message.node_name,
        zone=message.zone,
        for_zones=tuple(zone.name for zone in message.hints.for_zones),
    )


def _write_port(port: SlicePort) -> Any:
    message = slice_pb2.Port(name=port.name, protocol=write_protocol(port.protocol))
    if port.port is not None:
        message.port = check_port(port.port)
    return message


def _read_port(message: Any) -> SlicePort:
    return SlicePort(
        name=message.name,
        protocol=read_protocol(message.protocol or "TCP"),
        port=check_port(message.port) if message.HasField("port") else None,
    )
