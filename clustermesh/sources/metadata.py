"""What every Kubernetes object has."""

from __future__ import annotations

from msgspec import Struct


class Metadata(Struct, frozen=True, gc=False, rename="camel"):
    """The times are RFC 3339, as the API writes them; those and `uid` are "" where there is none, as in a manifest."""

    name: str
    namespace: str = ""
    labels: dict[str, str] = {}
    annotations: dict[str, str] = {}
    creation_timestamp: str = ""
    deletion_timestamp: str = ""
    uid: str = ""
