"""The calls of etcd's v3 API that this project makes: service path, request, response."""

from __future__ import annotations

from typing import Any, Final, NamedTuple

from google.protobuf.message import DecodeError

from clustermesh.errors import ClusterMeshError, Unavailable
from clustermesh.store import rpc_pb2 as pb
from clustermesh.store.faults import Oversized
from clustermesh.store.parts import BYTES, FIXED, VARINT, varint

MOST_FIELDS: Final = 1 << 17  # of one answer; those of a watch are cut into parts, which have fewer


class Method(NamedTuple):
    """One call. `request` and `response` are protobuf message classes; what a response repeats is in its own fields,
    or behind the fields of `nested`, one in the other."""

    path: str
    request: Any
    response: Any
    nested: tuple[int, ...] = ()


def decode(method: Method, data: bytes | bytearray) -> Any:
    """The response of `method`. Raises Unavailable for what is none, Oversized for what has more than MOST_FIELDS."""
    error: ClusterMeshError
    try:
        if len(data) <= 2 * MOST_FIELDS or not _is_crowded(data, method.nested):  # less has no room for so many
            return method.response.FromString(data)
        error = Oversized(f"what came has more than {MOST_FIELDS} fields, too many for an answer to {method.path}")
    except DecodeError:
        error = Unavailable(f"what came is no answer to {method.path}")
    del data  # else the error's traceback keeps it
    raise error


def _is_crowded(data: bytes | bytearray, nested: tuple[int, ...] = ()) -> bool:
    """Whether it has more than MOST_FIELDS: two bytes here may become an object of hundreds."""
    return _count(data, 0, len(data), nested, MOST_FIELDS) < 0


def _count(data: bytes | bytearray, at: int, end: int, nested: tuple[int, ...], left: int) -> int:
    """How many of the `left` fields are left after those from `at` to `end`; below 0 where they are too many."""
    while at < end and left >= 0:
        left -= 1
        tag, at = varint(data, at)
        size, at = varint(data, at) if tag & 7 in (VARINT, BYTES) else (FIXED.get(tag & 7, 0), at)
        if tag & 7 == VARINT:
            continue
        if nested and tag == nested[0] << 3 | BYTES:
            left = _count(data, at, min(at + size, end), nested[1:], left)
        at += size
    return left


_LISTS: Final = (pb.TxnResponse.RESPONSES_FIELD_NUMBER, pb.ResponseOp.RESPONSE_RANGE_FIELD_NUMBER)
RANGE: Final = Method("/etcdserverpb.KV/Range", pb.RangeRequest, pb.RangeResponse)
PUT: Final = Method("/etcdserverpb.KV/Put", pb.PutRequest, pb.PutResponse)
DELETE_RANGE: Final = Method("/etcdserverpb.KV/DeleteRange", pb.DeleteRangeRequest, pb.DeleteRangeResponse)
TXN: Final = Method("/etcdserverpb.KV/Txn", pb.TxnRequest, pb.TxnResponse, nested=_LISTS)
COMPACT: Final = Method("/etcdserverpb.KV/Compact", pb.CompactionRequest, pb.CompactionResponse)

WATCH: Final = Method("/etcdserverpb.Watch/Watch", pb.WatchRequest, pb.WatchResponse)

LEASE_GRANT: Final = Method("/etcdserverpb.Lease/LeaseGrant", pb.LeaseGrantRequest, pb.LeaseGrantResponse)
LEASE_REVOKE: Final = Method("/etcdserverpb.Lease/LeaseRevoke", pb.LeaseRevokeRequest, pb.LeaseRevokeResponse)
LEASE_TIME_TO_LIVE: Final = Method(
    "/etcdserverpb.Lease/LeaseTimeToLive", pb.LeaseTimeToLiveRequest, pb.LeaseTimeToLiveResponse
)
LEASE_KEEP_ALIVE: Final = Method(
    "/etcdserverpb.Lease/LeaseKeepAlive", pb.LeaseKeepAliveRequest, pb.LeaseKeepAliveResponse
)

STATUS: Final = Method("/etcdserverpb.Maintenance/Status", pb.StatusRequest, pb.StatusResponse)

AUTHENTICATE: Final = Method("/etcdserverpb.Auth/Authenticate", pb.AuthenticateRequest, pb.AuthenticateResponse)
AUTH_ENABLE: Final = Method("/etcdserverpb.Auth/AuthEnable", pb.AuthEnableRequest, pb.AuthResponse)
USER_ADD: Final = Method("/etcdserverpb.Auth/UserAdd", pb.AuthUserAddRequest, pb.AuthResponse)
USER_GET: Final = Method("/etcdserverpb.Auth/UserGet", pb.AuthUserGetRequest, pb.AuthUserGetResponse)
USER_LIST: Final = Method("/etcdserverpb.Auth/UserList", pb.AuthUserListRequest, pb.AuthUserListResponse)
USER_DELETE: Final = Method("/etcdserverpb.Auth/UserDelete", pb.AuthUserDeleteRequest, pb.AuthResponse)
USER_GRANT_ROLE: Final = Method("/etcdserverpb.Auth/UserGrantRole", pb.AuthUserGrantRoleRequest, pb.AuthResponse)
USER_REVOKE_ROLE: Final = Method("/etcdserverpb.Auth/UserRevokeRole", pb.AuthUserRevokeRoleRequest, pb.AuthResponse)
ROLE_ADD: Final = Method("/etcdserverpb.Auth/RoleAdd", pb.AuthRoleAddRequest, pb.AuthResponse)
ROLE_GET: Final = Method("/etcdserverpb.Auth/RoleGet", pb.AuthRoleGetRequest, pb.AuthRoleGetResponse)
ROLE_GRANT: Final = Method("/etcdserverpb.Auth/RoleGrantPermission", pb.AuthRoleGrantPermissionRequest, pb.AuthResponse)
ROLE_REVOKE: Final = Method(
    "/etcdserverpb.Auth/RoleRevokePermission", pb.AuthRoleRevokePermissionRequest, pb.AuthResponse
)
