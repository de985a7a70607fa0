"""Which users and roles there are: pure."""

from __future__ import annotations

from clustermesh.apiserver.users import own_users, peers_allowed, roles
from clustermesh.model import Cluster
from clustermesh.standalone.users_file import User
from clustermesh.store.auth import Access

ALPHA = Cluster(name="alpha", id=1)


def test_a_remote_reads_the_ranges_that_cilium_asks_for_and_writes_none() -> None:
    grants = roles(ALPHA)["remote"]
    assert {grant.access for grant in grants} == {Access.READ}
    assert {grant.span for grant in grants} == {
        (b"cilium/.heartbeat", b"cilium/.heartbeau"),
        (b"cilium/state/", b"cilium/state0"),
        (b"cilium/cluster-config/alpha", b""),
        (b"cilium/synced/alpha/", b"cilium/synced/alpha0"),
        (b"clustermesh/v1/changes/", b"clustermesh/v1/changes0"),
    }


def test_only_readers_may_be_listed_and_nobody_takes_a_name_of_ours() -> None:
    listed = [
        User(name="remote-beta", role="remote"),
        User(name="remote", role="remote"),
        User(name="remote-evil", role="root"),
        User(name="root", role="remote"),
        User(name="admin-alpha", role="remote"),
        User(name="admin-beta", role="remote"),
    ]
    allowed, problems = peers_allowed(ALPHA, listed)
    assert allowed == dict.fromkeys(["remote-beta", "remote", "admin-beta"], "remote")
    assert [problem.split(": ")[0] for problem in problems] == ["users[2].role", "users[3].name", "users[4].name"]
    assert own_users(ALPHA) == {"root": "root", "admin-alpha": "root", "local-alpha": "local", "remote": "remote"}
