"""Addresses of etcd servers, as Cilium's and etcd's own configuration write them: https://host:2379."""

from __future__ import annotations

from typing import Final
from urllib.parse import urlsplit

from msgspec import Struct

from clustermesh.errors import Invalid

DEFAULT_PORT: Final = 2379
_RULE: Final = "must be http://host:port or https://host:port"
_LOGIN: Final = f"{_RULE}; who logs in stands beside it, as username and password"


class Endpoint(Struct, frozen=True):
    """Where an etcd server listens for clients. `host` is a name or an address, IPv6 without brackets."""

    host: str
    port: int
    secure: bool

    @property
    def target(self) -> str:
        """host:port, as HTTP and certificates take it."""
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"

    def __str__(self) -> str:
        return f"{'https' if self.secure else 'http'}://{self.target}"


def parse(url: str) -> Endpoint:
    """The endpoint that `url` names; Invalid otherwise."""
    try:
        parts = urlsplit(url)
        port = parts.port
        (parts.hostname or "").encode("idna")  # what no resolver is asked for: empty labels, labels of over 63 bytes
    except ValueError:
        raise _invalid(url) from None  # what was found wrong may be part of a password
    if " " in url or not url.isprintable():  # some of these urlsplit leaves out, at others a resolver chokes
        raise _invalid(url)
    beyond = (parts.username, parts.query, parts.fragment, parts.path.rstrip("/"))
    if parts.scheme not in {"http", "https"} or not parts.hostname or any(beyond) or port == 0:
        raise _invalid(url)
    return Endpoint(parts.hostname, DEFAULT_PORT if port is None else port, parts.scheme == "https")


def without_login(text: str) -> str:
    """`text`, which may be or hold a URL, without what stands before a host in one: that may be a password."""
    before, at, rest = text.rpartition("@")
    scheme, slashes, _ = before.partition("//")
    return f"{scheme if slashes else ''}{slashes}...@{rest}" if at else text


def _invalid(url: str) -> Invalid:
    return Invalid("endpoint", without_login(url), _LOGIN if "@" in url else _RULE)
