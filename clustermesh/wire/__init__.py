"""Cilium's keys and values, both directions, pure: what a real Cilium wrote is read, and what is written it reads.

| resource        | under cilium/state/ (own etcd)           | under cilium/cache/ (kvstoremesh) | codec          |
| --------------- | ---------------------------------------- | --------------------------------- | -------------- |
| nodes           | nodes/v1/<cluster>/<node>                | the same                          | node           |
| services        | services/v1/<cluster>/<ns>/<name>        | the same                          | service        |
| identities      | identities/v1/id/<id>                    | identities/v1/<cluster>/id/<id>   | identity       |
| endpoints       | ip/v1/default/<ip>                       | ip/v1/<cluster>/<ip>              | endpoint       |
| service_exports | serviceexports/v1/<cluster>/<ns>/<name>  | the same                          | service_export |
| endpoint_slices | endpointslices/v1/<cluster>/<ns>/<slice> | the same                          | endpoint_slice |

`RESOURCES` (entries.py) is this table for readers, publisher, ledger and mesh state to walk: prefix, canary, name and
decoder of each kind, local_services and stamps of this project included; kinds.py has their names. The canary of a
resource is cilium/synced/<cluster>/cilium/state/<folder>/v1. Beside it stand cilium/cluster-config/<cluster>
(cluster_config), cilium/.heartbeat (timestamp), and this project's own clustermesh/v1/ (local).

A codec is a module with `encode(x) -> bytes`, strict (Invalid for what a reader would refuse), byte for byte what Go
writes, and `decode(data) -> x`, liberal, which raises nothing but DecodeError on any bytes; decode(encode(x)) is x.
The decoders of `RESOURCES` also check that an entry names itself as its key does and is its owner's to write.
"""

from clustermesh.wire.entries import RESOURCES, Entry, Resource, decode_entry, resource_of

__all__ = ["RESOURCES", "Entry", "Resource", "decode_entry", "resource_of"]
