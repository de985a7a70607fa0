"""Where an etcd is reached: "https://host:port"."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Final
from urllib.parse import urlsplit

from msgspec import Struct

from clustermesh.errors import Invalid

ETCD_PORT: Final = 2379
_HOST: Final = re.compile(r"[A-Za-z0-9]([-A-Za-z0-9._]*[A-Za-z0-9])?|[0-9A-Fa-f:.]+")


class EndpointUrl(Struct, frozen=True, kw_only=True):
    """`host` is a DNS name or an address, without brackets."""

    scheme: str
    host: str
    port: int

    def __str__(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{self.scheme}://{host}:{self.port}"


def parse_endpoint(value: str, field: str = "endpoint", schemes: Sequence[str] = ("https",)) -> EndpointUrl:
    """`value`, in which the scheme (the first of `schemes`) and the port (2379) may be left out. Raises Invalid."""
    rule = f"must be {' or '.join(f'{s}://' for s in schemes)} and HOST:PORT, with no path"
    try:
        parts = urlsplit(value if "://" in value else f"{schemes[0]}://{value}")
        port = parts.port
    except ValueError as e:
        raise Invalid(field, value, rule) from e
    host = parts.hostname or ""
    extra = parts.path.removesuffix("/") or parts.query or parts.fragment or "@" in parts.netloc
    if parts.scheme not in schemes or extra or not _HOST.fullmatch(host) or port == 0:
        raise Invalid(field, value, rule)
    return EndpointUrl(scheme=parts.scheme, host=host, port=ETCD_PORT if port is None else port)
