"""etcd's and gRPC's errors as ours: what a caller does next is in the type."""

import pytest

from clustermesh.errors import Refused, Unavailable
from clustermesh.store.faults import (
    AuthChanged,
    AuthDisabled,
    Compacted,
    LeaseLost,
    Replaced,
    TokenEnded,
    TooLarge,
    fault,
    is_severing,
    refusal,
)
from clustermesh.store.status import Code

TABLE = [
    (Code.UNAVAILABLE, "failed to connect to all addresses", Unavailable),
    (Code.UNAVAILABLE, "etcdserver: no leader", Unavailable),
    (Code.DEADLINE_EXCEEDED, "Deadline Exceeded", Unavailable),
    (Code.OUT_OF_RANGE, "etcdserver: mvcc: required revision has been compacted", Compacted),
    (Code.OUT_OF_RANGE, "etcdserver: mvcc: required revision is a future revision", Replaced),
    (Code.NOT_FOUND, "etcdserver: requested lease not found", LeaseLost),
    (Code.PERMISSION_DENIED, "etcdserver: permission denied", Refused),
    (Code.UNAUTHENTICATED, "etcdserver: invalid auth token", TokenEnded),
    (Code.FAILED_PRECONDITION, "etcdserver: authentication is not enabled", AuthDisabled),
    (Code.INVALID_ARGUMENT, "etcdserver: user name is empty", Refused),
    (Code.INVALID_ARGUMENT, "etcdserver: request is too large", Refused),
    (Code.INVALID_ARGUMENT, "etcdserver: revision of auth store is old", AuthChanged),
    (Code.FAILED_PRECONDITION, "etcdserver: user name already exists", Refused),
    (Code.RESOURCE_EXHAUSTED, "CLIENT: Received message larger than max (20 vs. 10)", TooLarge),
    (Code.RESOURCE_EXHAUSTED, "etcdserver: mvcc: database space exceeded", Unavailable),
    (Code.UNIMPLEMENTED, "unknown service etcdserverpb.KV", Refused),
    (Code.UNKNOWN, "raft: stopped", Unavailable),
    (Code.OK, None, Unavailable),
]


@pytest.mark.parametrize(("code", "details", "kind"), TABLE, ids=[f"{c.name}: {d}" for c, d, _ in TABLE])
def test_fault(code, details, kind) -> None:
    error = fault(code, details, "https://a:2379")
    assert type(error) is kind
    assert "https://a:2379" in str(error)
    assert "etcdserver: " not in str(error)


def test_a_cancelled_watch_is_known_by_its_reason() -> None:
    reason = "rpc error: code = PermissionDenied desc = etcdserver: permission denied"
    assert type(refusal(reason, "the watch")) is Refused
    assert type(refusal("watcher was slow", "the watch")) is Unavailable


def test_a_connection_is_given_up_where_a_new_one_may_do_better() -> None:
    assert is_severing(Code.UNAVAILABLE)
    assert is_severing(Code.UNAUTHENTICATED)  # a new handshake shows the certificate again
    assert not is_severing(Code.PERMISSION_DENIED)
    assert not is_severing(Code.OUT_OF_RANGE)
