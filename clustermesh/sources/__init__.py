"""Where a cluster's objects come from: a folder of Kubernetes-shaped YAML or the Kubernetes API, as a `Source`.

A folder: bytes -> documents -> objects -> table (files folded, duplicates settled) -> translate -> Snapshot.
The API: JSON -> objects, the large ones lean -> translate -> Snapshot.
Only `scan`, `folder` and `kubernetes` do I/O.
"""
