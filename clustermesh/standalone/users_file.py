"""users.yaml: which peers may read this cluster's etcd. Cilium's clustermesh-remote-users; the API server follows it.

users:
- name: remote-beta      the common name of the peer's client certificate
  role: remote
"""

from __future__ import annotations

import os
from collections.abc import Set
from pathlib import Path
from typing import Any, Final

from msgspec import Struct

from certs.files import write_atomically
from clustermesh.errors import Invalid, Unavailable
from clustermesh.settling import is_being_written
from clustermesh.yaml_file import dump_yaml, mapping, parse_yaml, read_bytes, shown, text

REMOTE_ROLE: Final = "remote"
_DECLARED: Final = "clustermesh-declared"
"""Beside a user: it is there for a ClusterMeshPeer, and goes with it."""
_MODE: Final = 0o644


class User(Struct, frozen=True, kw_only=True):
    """An etcd user without password: whoever shows a certificate with this common name has this role."""

    name: str
    role: str


def remote_user(cluster: str) -> str:
    """The user as whom the cluster `cluster` comes."""
    return f"remote-{cluster}"


def read_users(path: Path) -> tuple[User, ...]:
    """The users in `path`. Raises Invalid for a file that breaks a rule, Unavailable for one that cannot be read."""
    return _users(_document(path), path)


def users_in(data: bytes, where: str) -> tuple[User, ...]:
    """The users in the bytes of such a file, as of a ConfigMap. Raises Invalid."""
    return _users(parse_yaml(data, where), Path(where))


def readers_in(data: bytes, where: str) -> frozenset[str]:
    """The clusters that may come, by the bytes of such a file. Raises Invalid."""
    prefix = remote_user("")
    return frozenset(each.name.removeprefix(prefix) for each in users_in(data, where) if each.name.startswith(prefix))


class FollowedUsers:
    """users.yaml as who follows it reads it. `held` while it may just be being written: look again once it rested."""

    def __init__(self, path: Path) -> None:
        self.path, self.size, self.inode, self.held = path, 0, 0, False

    @property
    def is_yet_to_come(self) -> bool:
        """Where the ConfigMap of a chart is mounted before the first cluster is connected, its folder is empty."""
        return self.inode == 0 and self.path.parent.is_dir() and not self.path.exists()

    def read(self, now: int) -> tuple[User, ...]:
        """As `read_users` at `now`, Unix nanoseconds. Unavailable also for a file that was cut short in place."""
        data = read_bytes(self.path)
        status = _status(self.path)  # after what was read: what was cut short by then was written just now
        self.held = is_being_written(self, data, status.st_ino, status.st_mtime_ns, now)
        if self.held:
            self.inode = status.st_ino
            raise Unavailable(f"{self.path}: is {'cut short' if data.strip() else 'empty'}, perhaps just being written")
        users = _users(parse_yaml(data, str(self.path)), self.path)
        self.size, self.inode = len(data), status.st_ino
        return users


def add_user(path: Path, name: str, role: str = REMOTE_ROLE) -> bool:
    """Make `name` a user with `role`; False when it was one already. Everything else in the file stays as it is.

    Raises Invalid, Unavailable as `read_users`, and leaves a file it does not understand alone.
    """
    document = _document(path) if path.exists() else {}
    changed = with_user(document, path, name, role)
    if changed != document:
        _write(path, changed)
    return changed != document


def remove_user(path: Path, name: str) -> bool:
    """Make `name` no user any more; False when it was none. Raises as `add_user`."""
    if not path.exists():
        return False
    document = _document(path)
    changed = without_user(document, path, name)
    if changed != document:
        _write(path, changed)
    return changed != document


def with_user(document: dict[str, Any], path: Path, name: str, role: str = REMOTE_ROLE) -> dict[str, Any]:
    """`document`, of the file `path`, with that user, who stays when no ClusterMeshPeer asks for it any more; itself
    where it has it. Raises Invalid."""
    entries = _entries(document, path)
    users = [(entry, _user(entry, i)) for i, entry in enumerate(entries)]
    if any(user == User(name=name, role=role) and not entry.get(_DECLARED) for entry, user in users):
        return document
    others = [entry for entry, user in users if user.name != name]
    return {**document, "users": [*others, {"name": name, "role": role}]}


def without_user(document: dict[str, Any], path: Path, name: str) -> dict[str, Any]:
    """`document`, of the file `path`, without that user; itself where it has none. Raises Invalid."""
    entries = _entries(document, path)
    kept = [entry for i, entry in enumerate(entries) if _user(entry, i).name != name]
    return document if len(kept) == len(entries) else {**document, "users": kept}


def with_declared(document: dict[str, Any], path: Path, wanted: Set[str], kept: Set[str]) -> dict[str, Any]:
    """`document`, of the file `path`, in which the users that are marked as declared are those `wanted`, and those of
    `kept` that were there; itself where it has them. Raises Invalid."""
    entries = _entries(document, path)
    users = [(entry, _user(entry, i).name) for i, entry in enumerate(entries)]
    left = [entry for entry, name in users if not entry.get(_DECLARED) or name in wanted | kept]
    missing = sorted(wanted - {name for _, name in users})
    made = [{"name": name, "role": REMOTE_ROLE, _DECLARED: True} for name in missing]
    return {**document, "users": [*left, *made]} if made or len(left) < len(entries) else document


def _users(document: object, path: Path) -> tuple[User, ...]:
    return tuple(_user(entry, i) for i, entry in enumerate(_entries(mapping(document, str(path)), path)))


def _status(path: Path) -> os.stat_result:
    try:
        return path.stat()
    except OSError as e:
        raise Unavailable(f"{path}: {e.strerror}") from e


def _document(path: Path) -> dict[str, Any]:
    return mapping(parse_yaml(read_bytes(path), str(path)), str(path))


def _entries(document: dict[str, Any], path: Path) -> list[Any]:
    entries = document.get("users") or []
    if not isinstance(entries, list):
        raise Invalid(f"{path}: users", shown(entries), "must be a list of {name, role}")
    return entries


def _user(entry: object, position: int) -> User:
    field = f"users[{position}]"
    fields = mapping(entry, field)
    user = User(name=text(fields.get("name"), f"{field}.name"), role=text(fields.get("role"), f"{field}.role"))
    if not user.name:
        raise Invalid(f"{field}.name", user.name, "must not be empty")
    return user


def _write(path: Path, document: dict[str, Any]) -> None:
    try:
        write_atomically(path, dump_yaml(document), _MODE)
    except OSError as e:
        raise Unavailable(f"{path}: {e.strerror}") from e
