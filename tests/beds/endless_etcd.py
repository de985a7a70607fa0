"""Something that answers like an etcd of one cluster, whose lists never end."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from itertools import count
from typing import Any

import grpc
import grpc.aio
from ports import free_port

from clustermesh.store import rpc_pb2 as pb

_HEADER = pb.ResponseHeader(cluster_id=77, member_id=1, revision=1000)


@asynccontextmanager
async def endless_etcd(keys: Mapping[bytes, bytes]) -> AsyncIterator[str]:
    """Its URL. One by one `keys` are there, and under every prefix there is always more, a few in a page."""
    numbers = count()

    async def answer(request: Any, _context: object) -> Any:
        if not request.range_end:
            found = [_pair(request.key, keys[request.key])] if request.key in keys else []
            return pb.RangeResponse(header=_HEADER, kvs=found)
        prefix = request.range_end[:-1] + bytes([request.range_end[-1] - 1])
        page = [_pair(prefix + b"%012d" % next(numbers), b"x") for _ in range(10)]
        return pb.RangeResponse(header=_HEADER, kvs=page, more=True)

    server, port = grpc.aio.server(), free_port()
    method = grpc.unary_unary_rpc_method_handler(answer, pb.RangeRequest.FromString, pb.RangeResponse.SerializeToString)
    server.add_generic_rpc_handlers([grpc.method_handlers_generic_handler("etcdserverpb.KV", {"Range": method})])
    server.add_insecure_port(f"127.0.0.1:{port}")
    await server.start()
    try:
        yield f"http://127.0.0.1:{port}"
    finally:
        await server.stop(None)


def _pair(key: bytes, value: bytes) -> Any:
    return pb.KeyValue(key=key, value=value, create_revision=900, mod_revision=900, version=1)
