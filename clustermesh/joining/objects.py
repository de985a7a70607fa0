"""Named Secrets and ConfigMaps of one namespace: read, and changed without losing what others change meanwhile."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Mapping
from secrets import token_hex
from typing import Any, Final, TypeVar

import msgspec
from msgspec import Struct, field

from clustermesh.errors import DecodeError, Unavailable
from clustermesh.kube.client import KubeClient, Request
from clustermesh.kube.faults import Conflict, NotServed

T = TypeVar("T")
_TRIES: Final = 20
_LONGEST: Final = 0.5
"""Seconds before another try."""
_PAGE: Final = 500
MANAGER: Final = "clustermesh"
MANAGED_BY: Final = "app.kubernetes.io/managed-by"


class Managed(Struct, frozen=True, rename="camel"):
    """What `manager` has set of an object; `fields` as fieldsV1 has them: {"f:data": {"f:key": {}}}."""

    manager: str = ""
    operation: str = ""
    subresource: str = ""
    fields: dict[str, Any] = field(default={}, name="fieldsV1")


class Meta(Struct, frozen=True, rename="camel"):
    """An object's metadata, as far as it is needed."""

    name: str = ""
    resource_version: str = ""
    labels: dict[str, str] | None = None
    managed_fields: list[Managed] | None = None
    continue_: str = field(default="", name="continue")


class Secret(Struct, frozen=True):
    """`data` is decoded from base64."""

    metadata: Meta = Meta()
    data: dict[str, bytes] | None = None

    def applied_by(self, manager: str) -> frozenset[str]:
        """The keys of its data that `manager` has applied, and nobody has changed since."""
        managed = self.metadata.managed_fields or ()
        found = (each.fields.get("f:data") for each in managed if (each.manager, each.operation) == (manager, "Apply"))
        return frozenset(
            key.removeprefix("f:") for each in found if isinstance(each, dict) for key in each if key != "."
        )


class ConfigMap(Struct, frozen=True):
    metadata: Meta = Meta()
    data: dict[str, str] | None = None


class Named(Struct, frozen=True):
    """Any object, as far as it has a name."""

    metadata: Meta = Meta()


class _List(Struct, frozen=True):
    items: list[msgspec.Raw] = []
    metadata: Meta = Meta()


Edit = Callable[[Mapping[str, bytes]], Mapping[str, bytes]]


class Objects:
    """The objects of `namespace`. Every method raises ClusterMeshError."""

    def __init__(self, client: KubeClient, namespace: str) -> None:
        self.client, self.namespace = client, namespace

    async def read(self, plural: str, name: str, kind: type[T], group: str = "api/v1") -> T | None:
        """None where there is none."""
        return await self.look(f"{self._at(plural, group)}/{name}", f"get {plural}/{name}", kind)

    async def look(self, path: str, what: str, kind: type[T]) -> T | None:
        """What is at `path`, which need not be in the namespace; None where there is none."""
        try:
            data = await self.client.get(path, what, {})
        except NotServed:
            return None
        return _decoded(data, kind, what)

    async def secret(self, name: str) -> dict[str, bytes]:
        """What the Secret holds; nothing where there is none."""
        found = await self.read("secrets", name, Secret)
        return (found.data or {}) if found else {}

    async def config(self, name: str) -> dict[str, str]:
        """What the ConfigMap holds; nothing where there is none."""
        found = await self.read("configmaps", name, ConfigMap)
        return (found.data or {}) if found else {}

    async def list(self, path: str, kind: type[T], selector: str = "") -> list[T]:
        """Every object at `path` with labels as `selector` says, by pages; none where the API has no such kind."""
        what, found, next_page = f"list {path.rpartition('/')[2]}", list[T](), ""
        while True:
            params = {"limit": str(_PAGE)} | ({"labelSelector": selector} if selector else {})
            params |= {"continue": next_page} if next_page else {}
            try:
                page = _decoded(await self.client.get(path, what, params), _List, what)
            except NotServed:
                return []
            found.extend(_decoded(item, kind, what) for item in page.items)
            if not (next_page := page.metadata.continue_):
                return found

    async def change_secret(self, name: str, edit: Edit, kind: str = "Opaque") -> bool:
        """Make the Secret's data what `edit` makes of it; False, and nothing is written, where that is what it is.

        `edit` is called again where somebody else changed the Secret meanwhile. One that is made is of type `kind`.
        """
        return await self._change("secrets", name, edit, {"type": kind})

    async def change_config(self, name: str, edit: Edit) -> bool:
        """As `change_secret`, of a ConfigMap."""
        return await self._change("configmaps", name, edit)

    async def _change(self, plural: str, name: str, edit: Edit, new: Mapping[str, str] = {}) -> bool:
        for attempt in range(_TRIES):
            held = await self._held(plural, name)
            before = {} if held is None else held[1]
            after = dict(edit(before))
            if after == before:
                return False
            try:
                if held is None:
                    await self._create(plural, name, after, new)
                else:
                    await self._patch(plural, name, *held, after)
                return True
            except (Conflict, NotServed) as e:  # changed, made or removed in between
                if isinstance(e, NotServed) and held is None:  # the namespace is not there
                    raise
                await asyncio.sleep(random.uniform(0, min(_LONGEST, 0.01 * 2**attempt)))
        raise Unavailable(f"{plural}/{name}: others change it without end; {_TRIES} tries were not enough")

    async def _held(self, plural: str, name: str) -> tuple[str, dict[str, bytes]] | None:
        if plural == "secrets":
            secret = await self.read(plural, name, Secret)
            return None if secret is None else (secret.metadata.resource_version, secret.data or {})
        config = await self.read(plural, name, ConfigMap)
        if config is None:
            return None
        return config.metadata.resource_version, {key: text.encode() for key, text in (config.data or {}).items()}

    async def _create(self, plural: str, name: str, data: Mapping[str, bytes], new: Mapping[str, str]) -> None:
        made = {
            "apiVersion": "v1",
            "kind": "Secret" if plural == "secrets" else "ConfigMap",
            "metadata": {"name": name, "namespace": self.namespace, "labels": {MANAGED_BY: MANAGER}},
            "data": _encoded(plural, data),
            **new,
        }
        # By its name, so that a Role can say which: a POST to all of them has none. The manager is nobody else's, so
        # that of two who make the same at once one hears Conflict.
        await self.apply(plural, made, f"{MANAGER}-{token_hex(4)}")

    async def _patch(
        self, plural: str, name: str, version: str, before: Mapping[str, bytes], after: Mapping[str, bytes]
    ) -> None:
        changed = {key: value for key, value in after.items() if before.get(key) != value}
        gone = dict.fromkeys(before.keys() - after.keys())
        patch = {"metadata": {"resourceVersion": version}, "data": _encoded(plural, changed) | gone}
        await self.send("PATCH", f"{self._at(plural)}/{name}", f"patch {plural}/{name}", patch)

    async def apply(
        self,
        plural: str,
        document: Mapping[str, Any],
        manager: str,
        group: str = "api/v1",
        part: str = "",
        *,
        force: bool = False,
    ) -> None:
        """Server-side apply of `document`, or of a `part` of it, as "/status": all that `manager` has set there, and
        nothing else. Conflict where it would change what somebody else has set and it is not to be by `force`; of a
        status nobody else is asked."""
        name = document["metadata"]["name"]
        params = {"fieldManager": manager, "force": "true" if part or force else "false"}
        path, what = f"{self._at(plural, group)}/{name}{part}", f"apply {plural}/{name}{part}"
        body, kind = msgspec.json.encode(document), "application/apply-patch+yaml"
        await self.client.send(Request(path=path, what=what, params=params, method="PATCH", body=body, kind=kind))

    async def send(self, method: str, path: str, what: str, document: object) -> bytes:
        """One write; a PATCH is a merge patch."""
        kind = "application/merge-patch+json" if method == "PATCH" else "application/json"
        body, params = msgspec.json.encode(document), {"fieldManager": MANAGER}
        return await self.client.send(Request(path=path, what=what, params=params, method=method, body=body, kind=kind))

    def _at(self, plural: str, group: str = "api/v1") -> str:
        return f"/{group}/namespaces/{self.namespace}/{plural}"


def _encoded(plural: str, data: Mapping[str, bytes]) -> dict[str, object]:
    return dict(data) if plural == "secrets" else {key: value.decode() for key, value in data.items()}


def _decoded(data: bytes | msgspec.Raw, kind: type[T], what: str) -> T:
    try:
        return msgspec.json.decode(data, type=kind)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as e:
        raise DecodeError(what, bytes(data)[:80].decode(errors="replace"), f"must be a {kind.__name__}: {e}") from e
