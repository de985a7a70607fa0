"""etcd's users and roles, each call idempotent. Users have no password: etcd takes a certificate's CN for the user.

Every change makes etcd re-check the calls under way, so nothing is written that is already so. None can be part of a
transaction: where the client has a fence, that is looked at right before.
"""

from __future__ import annotations

from collections.abc import Iterable
from enum import Enum
from typing import Any, Final

from msgspec import Struct

from clustermesh.errors import Refused
from clustermesh.store import methods
from clustermesh.store import rpc_pb2 as pb
from clustermesh.store.client import EtcdClient
from clustermesh.store.operations import prefix_end

ROOT: Final = "root"


class Access(Enum):
    """What a role may do with a key; values are etcd's own."""

    READ = pb.Permission.READ
    READWRITE = pb.Permission.READWRITE


class Grant(Struct, frozen=True, kw_only=True):
    """Permission for every key under `prefix`, or for the one `key`."""

    prefix: bytes = b""
    key: bytes = b""
    access: Access = Access.READ

    def __post_init__(self) -> None:
        if bool(self.prefix) == bool(self.key):
            raise ValueError("a grant names a prefix or a key")

    @property
    def span(self) -> tuple[bytes, bytes]:
        """Key and range end, as etcd has them."""
        return (self.prefix, prefix_end(self.prefix)) if self.prefix else (self.key, b"")


async def ensure_role(client: EtcdClient, name: str, grants: Iterable[Grant]) -> None:
    """Make role `name` permit exactly `grants`; of two for one range the last counts."""
    wanted = {grant.span: grant.access.value for grant in grants}
    role = await _find(client, methods.ROLE_GET, pb.AuthRoleGetRequest(role=name))
    if role is None:
        await _change(client, methods.ROLE_ADD, pb.AuthRoleAddRequest(name=name))
    held = {} if role is None else {(perm.key, perm.range_end): perm.permType for perm in role.perm}
    for (key, end), access in wanted.items():
        if held.get((key, end)) != access:
            perm = pb.Permission(permType=access, key=key, range_end=end)
            await _change(client, methods.ROLE_GRANT, pb.AuthRoleGrantPermissionRequest(name=name, perm=perm))
    for key, end in held.keys() - wanted.keys():
        await _change(
            client, methods.ROLE_REVOKE, pb.AuthRoleRevokePermissionRequest(role=name, key=key, range_end=end)
        )


async def ensure_user(client: EtcdClient, name: str, role: str) -> None:
    """Make user `name`, who proves it by a certificate with that CN, have exactly `role`."""
    user = await _find(client, methods.USER_GET, pb.AuthUserGetRequest(name=name))
    if user is None:
        options = pb.UserAddOptions(no_password=True)
        await _change(client, methods.USER_ADD, pb.AuthUserAddRequest(name=name, options=options))
    held = set() if user is None else set(user.roles)
    if role not in held:
        await _change(client, methods.USER_GRANT_ROLE, pb.AuthUserGrantRoleRequest(user=name, role=role))
    for other in held - {role}:
        await _change(client, methods.USER_REVOKE_ROLE, pb.AuthUserRevokeRoleRequest(name=name, role=other))


async def remove_user(client: EtcdClient, name: str) -> None:
    """Make user `name` be unknown."""
    await client.check_fence()
    await _find(client, methods.USER_DELETE, pb.AuthUserDeleteRequest(name=name))


async def list_users(client: EtcdClient) -> list[str]:
    """The names of all users."""
    return list((await client.call(methods.USER_LIST, pb.AuthUserListRequest())).users)


async def enable(client: EtcdClient) -> None:
    """Have etcd ask who is there. Makes the user `root`, without whom etcd does not; from then on only users get in.

    `client` needs a certificate of a user with the role `root`, made before, to do anything afterwards.
    """
    if await _find(client, methods.ROLE_GET, pb.AuthRoleGetRequest(role=ROOT)) is None:
        await _change(client, methods.ROLE_ADD, pb.AuthRoleAddRequest(name=ROOT))
    await ensure_user(client, ROOT, ROOT)
    await _change(client, methods.AUTH_ENABLE, pb.AuthEnableRequest())


async def _change(client: EtcdClient, method: methods.Method, request: Any) -> None:
    await client.check_fence()
    await client.call(method, request)


async def _find(client: EtcdClient, method: methods.Method, request: Any) -> Any:
    """The answer to `request`, None where etcd knows no such user or role."""
    try:
        return await client.call(method, request)
    except Refused as e:
        if "not found" in str(e):
            return None
        raise
