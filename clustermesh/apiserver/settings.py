"""What an API server has to be told of its cluster, wherever that is written down: a folder, or flags."""

from __future__ import annotations

from pathlib import Path

from msgspec import Struct

from clustermesh.model import Cluster
from clustermesh.standalone.context import Context
from clustermesh.store.tls import Tls


class Settings(Struct, frozen=True, kw_only=True):
    """The cluster, and its own etcd.

    Without `tls` the etcd is one that asks nobody who he is: roles and users are left alone. `users_file` says which
    peers may read; where there is none, users that are there stay.
    """

    cluster: Cluster
    endpoints: tuple[str, ...]
    tls: Tls | None = None
    users_file: Path | None = None


def of_folder(context: Context) -> Settings:
    """Those of a cluster that is a folder."""
    return Settings(
        cluster=context.cluster,
        endpoints=(context.endpoint,),
        tls=Tls(context.ca, context.certificate("admin"), context.key("admin")),
        users_file=context.users_file,
    )
