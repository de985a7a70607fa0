"""The API server of a cluster: publishes the cluster's own services, identities, endpoints and nodes into its etcd.

`labels`, `identities` and `publish` decide, without I/O. `keys_target` writes, `ledger` remembers what etcd holds,
`users`, `health` and `server` are the shells. `run` is all of it.
"""

from clustermesh.apiserver.server import run, run_folder

__all__ = ["run", "run_folder"]
