"""Which leaves a cluster has and what they are called: the names Cilium uses for its clustermesh-apiserver.

Source: Cilium's chart (clustermesh-apiserver certificates) and its etcd users. etcd takes the common name of a client
certificate as the user, so a client's common name is its permission.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

AUTHORITY_NAME = "Cilium CA"
AUTHORITY_SECRET: Final = "cilium-ca"
SERVER_NAME = "clustermesh-apiserver.cilium.io"
MESH_NAMES = "*.mesh.cilium.io"

HOST_RULE: Final = "must be an address, or a DNS name: labels of 1 to 63 letters, digits, '-' and '_', 253 in all"
COMMON_NAME_RULE: Final = "must be 1 to 64 bytes of printable characters"
_LABEL: Final = "[A-Za-z0-9_]([A-Za-z0-9_-]{0,61}[A-Za-z0-9_])?"
_DNS_NAME: Final = re.compile(rf"(\*\.)?{_LABEL}(\.{_LABEL})*")


@dataclass(frozen=True, slots=True)
class Leaf:
    """What a leaf certificate says: its common name, whether a server may show it, and the names it answers to.

    `hosts` are DNS names and addresses in one tuple, canonical, without repeats.
    """

    common_name: str
    server: bool = False
    hosts: tuple[str, ...] = ()


def leaf_secret(leaf: str) -> str:
    """The Secret of the leaf `leaf`, as "server"."""
    return f"clustermesh-apiserver-{leaf}-cert"


def server(hosts: Iterable[str] = ()) -> Leaf:
    """The etcd server's leaf: Cilium's names, the loopback, and `hosts` (where peers reach it)."""
    always = (SERVER_NAME, MESH_NAMES, "localhost", "127.0.0.1", "::1")
    return Leaf(SERVER_NAME, server=True, hosts=unique((*always, *hosts)))


def cluster_leaves(cluster: str, hosts: Iterable[str] = ()) -> dict[str, Leaf]:
    """Every leaf of the cluster `cluster` by file name: server, admin, local, remote."""
    return {
        "server": server(hosts),
        "admin": Leaf(f"admin-{cluster}"),
        "local": Leaf(f"local-{cluster}"),
        "remote": remote(cluster),
    }


def remote(cluster: str) -> Leaf:
    """What the cluster `cluster` shows to its peers; each peer knows it as the etcd user of this name."""
    return Leaf(f"remote-{cluster}")


def unique(hosts: Iterable[str]) -> tuple[str, ...]:
    """`hosts` canonical and without repeats, in order: addresses compressed, names in lower case without final dot."""
    return tuple(dict.fromkeys(map(canonical_host, hosts)))


def canonical_host(host: str) -> str:
    """One spelling per host: "[FD00::0:1]" is "fd00::1", "Etcd.Example." is "etcd.example"."""
    bare = host.strip().removeprefix("[").removesuffix("]")
    try:
        return str(ipaddress.ip_address(bare))
    except ValueError:
        return bare.lower().removesuffix(".")


def is_host(host: str) -> bool:
    """Whether a certificate can name `host`, canonical: an address, or a DNS name whose first label may be "*"."""
    return _is_address(host) or (len(host) <= 253 and _DNS_NAME.fullmatch(host) is not None)


def is_common_name(name: str) -> bool:
    return name.isprintable() and 1 <= len(name.encode()) <= 64


def covers(hosts: Iterable[str], host: str) -> bool:
    """Whether a certificate for `hosts` is good for a client that dials `host`; "*" stands for exactly one label."""
    wanted = canonical_host(host)
    names = set(hosts)
    if wanted in names:
        return True
    label, dot, rest = wanted.partition(".")
    return bool(label and dot) and not _is_address(wanted) and f"*.{rest}" in names


def _is_address(host: str) -> bool:
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True
