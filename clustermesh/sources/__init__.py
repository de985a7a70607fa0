"""Where a cluster's objects come from: a folder of Kubernetes-shaped YAML, as `clustermesh.model` says it.

bytes -> documents -> objects -> table (files folded, duplicates settled) -> translate -> Snapshot. Only `scan` and
`folder` do I/O.
"""
