"""Certificates of a cluster mesh: the cluster's own authority, its leaves, and the files they live in. Stands alone.

`names` says which leaves a cluster has, `issue` signs them, `check` reads and judges them (all three pure), `files`
and `pair` write so that an interruption leaves nothing half done, `folder` is a cluster's set of them on disk.
Importing this package costs nothing; `issue`, `check`, `pair` and `folder` load the cryptography library.
"""

from certs.errors import CertsError

__all__ = ["CertsError"]
