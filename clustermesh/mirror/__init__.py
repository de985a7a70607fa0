"""kvstoremesh: what peers say, byte for byte in the own etcd, where every agent of this cluster reads it at one place.

    peers' etcds ─> readers (mesh) ─> MirrorSink ─> Cache ─> own etcd: cilium/cache/, cluster-config, synced

`copies` says what is copied where, `sink` what of it stands (the authority is the one that agents have), `departures`
and `readiness` decide; all of them are pure. `following` reads the own etcd, `cache` writes there, `report` says how
it goes, `server` is the wiring.
"""

from clustermesh.mirror.server import run

__all__ = ["run"]
