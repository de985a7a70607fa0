"""Where the API has one kind of object, and how one of them is read."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from typing import Generic, TypeVar

from msgspec import Raw, Struct

K = TypeVar("K", bound=Hashable)
V = TypeVar("V")


class Resource(Struct, Generic[K, V], frozen=True, kw_only=True):
    """`plural` of `group` ("" is the core) at `version`, in `namespace` or in every one, narrowed by `fields` and
    `labels`, selectors.

    `decode` makes a key and a value of one object as the API writes it, or raises DecodeError; `key` names the object
    of a namespace and a name. Values that are equal are one: a change of what `decode` leaves out is no change.
    """

    group: str
    version: str
    plural: str
    decode: Callable[[Raw], tuple[K, V]]
    key: Callable[[str, str], K]
    fields: str = ""
    labels: str = ""
    namespace: str = ""

    @property
    def path(self) -> str:
        root = f"/apis/{self.group}" if self.group else "/api"
        within = f"namespaces/{self.namespace}/" if self.namespace else ""
        return f"{root}/{self.version}/{within}{self.plural}"

    @property
    def title(self) -> str:
        """As RBAC's tools spell it: pods, endpointslices.discovery.k8s.io."""
        return f"{self.plural}.{self.group}" if self.group else self.plural
