"""users.yaml: read, added to, taken from, without harm to what else stands there."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from clustermesh.errors import ClusterMeshError, Invalid, Unavailable
from clustermesh.settling import SETTLED
from clustermesh.standalone.users_file import FollowedUsers, User, add_user, read_users, remote_user, remove_user

BETA = User(name="remote-beta", role="remote")
NAMES = st.sampled_from(["remote-a", "remote-b", "remote-c", "yes", "12", "x: y"])


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "users.yaml"


def test_added_user_is_read_and_added_once(path: Path) -> None:
    assert add_user(path, remote_user("beta"))
    inode = path.stat().st_ino
    assert not add_user(path, "remote-beta")
    assert path.stat().st_ino == inode, "a file that is right is not touched: the API server follows it"
    assert read_users(path) == (BETA,)


def test_what_cilium_writes_is_read(path: Path) -> None:
    path.write_text("users:\n- name: remote-east\n  role: remote\n- name: remote-west\n  role: remote\n")
    assert [u.name for u in read_users(path)] == ["remote-east", "remote-west"]


def test_everything_else_in_the_file_stays(path: Path) -> None:
    path.write_text("# mine\nowner: me\nusers: [{name: monitor, role: local, note: x}]\n")
    add_user(path, "remote-beta")
    remove_user(path, "remote-beta")
    kept = {"owner": "me", "users": [{"name": "monitor", "role": "local", "note": "x"}]}
    assert yaml.safe_load(path.read_text()) == kept


def test_role_of_a_user_is_corrected(path: Path) -> None:
    add_user(path, "remote-beta", "local")
    assert add_user(path, "remote-beta")
    assert read_users(path) == (BETA,)


def test_absent_user_and_absent_file_are_success(path: Path) -> None:
    assert not remove_user(path, "remote-beta")
    add_user(path, "remote-gamma")
    assert not remove_user(path, "remote-beta")


@pytest.mark.parametrize("empty", ["", "users:", "users: []", "{}", "# nothing"])
def test_empty_file_has_no_users(path: Path, empty: str) -> None:
    path.write_text(empty)
    assert read_users(path) == ()
    assert add_user(path, "remote-beta")


@pytest.mark.parametrize("broken", ["users: 3", "users: [x]", "[", "users: [{name: 1, role: r}]", "users: [{name: a}]"])
def test_file_it_does_not_understand_is_left_alone(path: Path, broken: str) -> None:
    path.write_text(broken)
    for change in (add_user, remove_user):
        with pytest.raises(Invalid, match="users"):
            change(path, "remote-beta")
    assert path.read_text() == broken


def test_absent_file_is_not_the_same_as_no_users(path: Path) -> None:
    with pytest.raises(Unavailable):
        read_users(path)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.tuples(st.booleans(), NAMES), max_size=20))
def test_any_sequence_of_changes_is_a_set_of_names(path: Path, changes: list[tuple[bool, str]]) -> None:
    path.write_text("users: []")
    twin: set[str] = set()
    for add, name in changes:
        assert (add_user if add else remove_user)(path, name) is (add != (name in twin))
        (twin.add if add else twin.discard)(name)
        assert {u.name for u in read_users(path)} == twin


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.binary(max_size=200))
def test_garbage_raises_only_the_projects_own_errors(path: Path, data: bytes) -> None:
    path.write_bytes(data)
    try:
        add_user(path, "remote-beta")
    except ClusterMeshError:
        assert path.read_bytes() == data
    else:
        assert BETA in read_users(path)


def write_in_place(path: Path, text: str) -> int:
    """When it was written."""
    with path.open("r+") as file:
        file.truncate()
        file.write(text)
    return path.stat().st_mtime_ns


def test_a_file_that_was_cut_short_in_place_is_not_believed_until_it_rested(path: Path) -> None:
    whole = "users:\n- name: remote-beta\n  role: remote\n"
    path.write_text(whole)
    followed = FollowedUsers(path)
    assert followed.read(path.stat().st_mtime_ns) == (BETA,)
    for part in ("", "users:\n", whole[:-1] + "e"):
        now = write_in_place(path, part)
        with pytest.raises(Unavailable, match="perhaps just being written"):
            followed.read(now)
        assert followed.held
    assert followed.read(write_in_place(path, whole) + SETTLED) == (BETA,)
    now = write_in_place(path, "users: []\n")
    with pytest.raises(Unavailable):
        followed.read(now)
    assert followed.read(now + SETTLED) == ()
    assert not followed.held


def test_a_file_that_was_put_in_place_whole_is_believed_at_once(path: Path) -> None:
    add_user(path, "remote-beta")
    followed = FollowedUsers(path)
    assert followed.read(path.stat().st_mtime_ns) == (BETA,)
    remove_user(path, "remote-beta")
    assert followed.read(path.stat().st_mtime_ns) == ()
