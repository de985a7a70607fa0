"""Who may do what in this cluster's etcd: roles, the cluster's own users, and those of users.yaml, followed live.

A user is the CN of a client certificate. Roles and ranges are Cilium's (clustermesh-apiserver's etcd init), with this
project's own prefix beside them. Users that nobody listed are removed, once users.yaml was read without a fault. What a
removed user has open ends too: etcd asks nobody again who watches already, so every connection to it but ours is cut,
and whoever still may comes back and hears on where it was. Who is to be cut off stands in etcd until that was tried.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from typing import Final

from clustermesh.errors import ClusterMeshError, Invalid, Refused, Unavailable
from clustermesh.model import Cluster
from clustermesh.own_cluster import Settings
from clustermesh.settling import SETTLED
from clustermesh.standalone.users_file import REMOTE_ROLE, FollowedUsers, User
from clustermesh.store import auth, endpoint
from clustermesh.store.auth import Access, Grant
from clustermesh.store.backoff import Backoff
from clustermesh.store.client import EtcdClient
from clustermesh.store.sever import Connection, cut, find_connections
from clustermesh.wire import keys
from clustermesh.yaml_file import read_bytes

LOCAL_ROLE: Final = "local"
POLL: Final = 0.25
"""Seconds between two looks at users.yaml."""
REPEAT: Final = 60.0
"""Seconds after which roles and users are compared with etcd again although nothing is known to have changed."""

_LOG: Final = logging.getLogger(__name__)


def roles(cluster: Cluster) -> dict[str, list[Grant]]:
    """What each role but root may do. The heartbeat is granted as readers ask for it: as a prefix without a slash."""
    own = [Grant(prefix=prefix, access=Access.READWRITE) for prefix in (keys.AGENTS, keys.STATUSES)]
    return {
        LOCAL_ROLE: [Grant(prefix=b"cilium/"), Grant(prefix=keys.OWN), *own],
        REMOTE_ROLE: [
            Grant(prefix=keys.HEARTBEAT),
            Grant(prefix=keys.STATE),
            Grant(key=keys.cluster_config_key(cluster.name)),
            Grant(prefix=keys.canary_prefix(cluster.name)),
            Grant(prefix=keys.CHANGES),
        ],
    }


def own_users(cluster: Cluster) -> dict[str, str]:
    """Role by user, whatever users.yaml says."""
    return {
        auth.ROOT: auth.ROOT,
        f"admin-{cluster.name}": auth.ROOT,
        f"local-{cluster.name}": LOCAL_ROLE,
        REMOTE_ROLE: REMOTE_ROLE,
    }


def peers_allowed(cluster: Cluster, listed: Sequence[User]) -> tuple[dict[str, str], list[str]]:
    """Role by user of those listed that may be let in, and a sentence for each that may not: a peer only ever reads."""
    allowed: dict[str, str] = {}
    problems = []
    for number, user in enumerate(listed):
        if user.role != REMOTE_ROLE:
            problems.append(str(Invalid(f"users[{number}].role", user.role, f"must be {REMOTE_ROLE}")))
        elif user.name in own_users(cluster) and user.name != REMOTE_ROLE:
            problems.append(str(Invalid(f"users[{number}].name", user.name, "must not be one of this cluster's own")))
        else:
            allowed[user.name] = user.role
    return allowed, problems


async def set_up(client: EtcdClient, cluster: Cluster) -> set[str]:
    """Roles, the cluster's own users, and that etcd asks who is there; the users that it had before."""
    for role, grants in roles(cluster).items():
        await auth.ensure_role(client, role, grants)
    present = set(await auth.list_users(client))
    await _ensure(client, own_users(cluster), present)  # ourselves among them, or we should lock ourselves out
    await auth.enable(client)
    return present


class Users:
    """Keeps etcd's users as they should be. `problems` says what in users.yaml is not acted on.

    etcd listens for clients in this network namespace. `open` says whose connections could not be cut.
    """

    def __init__(self, client: EtcdClient, settings: Settings, changed: Callable[[], None]) -> None:
        self.client, self.cluster, self._changed = client, settings.cluster, changed
        self._file = FollowedUsers(settings.users_file) if settings.users_file else None
        self._managed = settings.manages_users
        self._certificate = settings.tls.cert if settings.tls else None
        self._ports = {endpoint.parse(each).port for each in settings.endpoints}
        self.problems: list[str] = []
        self.open = ""
        self._revoked: set[str] = set()
        self._left: frozenset[Connection] | None = None
        self.error: str | None = None
        self.enabled = asyncio.Event()
        self._again = asyncio.Event()

    def check(self) -> None:
        """Compare with etcd now: it may be another one."""
        self._again.set()

    async def run(self) -> None:
        """Until cancelled."""
        if not self._managed:
            self.enabled.set()
            return
        backoff = Backoff(last=5.0)
        while True:
            seen = self._stamp()
            try:
                await self._apply()
                self.error, wait = None, SETTLED / 1e9 if self._file and self._file.held else REPEAT
                backoff = Backoff(last=5.0)
                self.enabled.set()
            except ClusterMeshError as e:
                wait = backoff.next()
                if str(e) != self.error:
                    _LOG.warning("waiting for etcd, to set up its users: %s", e)
                self.error = str(e)
            self._changed()
            await self._wait_for_news(seen, wait)

    async def _apply(self) -> None:
        peers = self._peers()
        present = await set_up(self.client, self.cluster)
        wanted = {**(peers or {}), **own_users(self.cluster)}
        await _ensure(self.client, peers or {}, present)
        if peers is not None:
            gone = present - wanted.keys()
            await self._revoke(gone - self._ourselves() if gone else gone)
        await self._end_connections()

    def _ourselves(self) -> set[str]:
        """The user that etcd takes us for: without it nobody could put anything right any more."""
        certificate = self._certificate
        if certificate is None:
            return set()
        from certs.check import facts, read_certificates  # much to load for what seldom happens
        from certs.errors import CertsError

        try:
            return {facts(read_certificates(read_bytes(certificate), str(certificate))[0]).common_name}
        except CertsError as e:
            raise Refused(str(e)) from e

    async def _revoke(self, names: set[str]) -> None:
        for name in sorted(names):
            _LOG.info("user %s is removed from etcd", name)
            await self.client.put(_revoked(name), b"")  # before: perhaps it is done, and we do not live to hear of it
            self._left = None
            await auth.remove_user(self.client, name)

    async def _end_connections(self) -> None:
        """Of who was removed: now, or by an API server that ended before it came to this."""
        noted = {kv.key[len(keys.REVOKED) :].decode() for kv in (await self.client.range(keys.REVOKED)).kvs}
        self._revoked |= noted
        if self._revoked:
            await asyncio.to_thread(self._cut_off)
        for name in noted:
            await self.client.delete(_revoked(name))

    def _cut_off(self) -> None:
        """End every connection that a removed user may have from before; a later one etcd itself has refused."""
        try:
            now = frozenset[Connection]().union(*map(find_connections, self._ports))
            self._left = now if self._left is None else self._left & now
            cut(self._left)
        except Refused as e:
            names = ", ".join(sorted(self._revoked))
            what = "removed, and may still hear what was asked for before"
            self.open = f"{names}: {what}: {e}; restart etcd, then this API server"
            return
        self.open, self._left = "", None
        self._revoked.clear()

    def _peers(self) -> dict[str, str] | None:
        """Role by user of users.yaml; None where it cannot be read, so that nobody is locked out by a typing error, or
        nobody has written it yet."""
        if self._file is None or self._file.is_yet_to_come:
            self.problems = []
            return None
        try:
            peers, self.problems = peers_allowed(self.cluster, self._file.read(time.time_ns()))
            return peers
        except (Invalid, Unavailable) as e:
            self.problems = [f"{e}; users stay as they are"]
            return None

    def _stamp(self) -> tuple[int, int, int] | None:
        if self._file is None:
            return None
        try:
            status = self._file.path.stat()
        except OSError:
            return None
        return status.st_mtime_ns, status.st_size, status.st_ino

    async def _wait_for_news(self, seen: object, wait: float) -> None:
        """Until users.yaml is no longer as it was `seen`, `check` is called, or `wait` seconds are over."""
        clock = asyncio.get_running_loop().time
        until = clock() + wait
        while clock() < until and not self._again.is_set() and self._stamp() == seen:
            with suppress(TimeoutError):
                async with asyncio.timeout(min(POLL, wait)):
                    await self._again.wait()
        self._again.clear()


async def _ensure(client: EtcdClient, wanted: Mapping[str, str], present: set[str]) -> None:
    for name, role in wanted.items():
        if name not in present:
            _LOG.info("user %s is added to etcd with role %s", name, role)
        await auth.ensure_user(client, name, role)


def _revoked(user: str) -> bytes:
    return keys.REVOKED + user.encode()
