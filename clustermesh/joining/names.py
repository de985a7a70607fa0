"""What the objects of a cluster's mesh are called: the names of Cilium's chart, which this project's keeps."""

from __future__ import annotations

from pathlib import Path
from typing import Final

from certs.names import AUTHORITY_SECRET, leaf_secret

NAMESPACE: Final = "kube-system"
CONFIG: Final = "cilium-config"
"""ConfigMap: the cluster's name, id and maximum, and whether it encrypts."""
API_SERVER: Final = "clustermesh-apiserver"
"""Service and Deployment."""
AGENTS: Final = "clustermesh-agent"
"""DaemonSet."""
CILIUM: Final = "cilium"
"""That of Cilium's agents."""
AUTHORITY: Final = AUTHORITY_SECRET
SERVER_CERT: Final = leaf_secret("server")
REMOTE_CERT: Final = leaf_secret("remote")
LOCAL_CERT: Final = leaf_secret("local")
LEAVES: Final = ("server", "admin", "local", "remote")
"""Whom the certificates' job makes one for: the names of their Secrets have it."""
PRODUCTS: Final = ("clustermesh", "cilium")
"""What objects say that they are part of: ours, and Cilium's."""
ETCD_CERT: Final = "cilium-etcd-secrets"
"""What is shown to an etcd that the chart has not made, with the names of files that Cilium's chart has for it."""
ETCD_CONFIG: Final = "etcd-config"
"""In the ConfigMap: where that is, as a file of etcd's client."""
USERS: Final = "clustermesh-remote-users"
"""ConfigMap: which peers may read."""
USERS_KEY: Final = "users.yaml"
PEERS: Final = "cilium-clustermesh"
"""Secret: what agents read, a file for each peer."""
COPIED: Final = "cilium-kvstoremesh"
"""Secret: what the mirror reads, where there is one. Agents then read its copies."""
INVITATIONS: Final = "clustermesh-invitations"
"""Secret: the invitations that are open, and who came by one."""
INVITING: Final = "clustermesh-invitations"
"""Service: where the chart answers newcomers, where it does."""
DECLARED: Final = "clustermeshpeers"
"""The ClusterMeshPeers: clusters that the API server connects by itself."""
DECLARED_GROUP: Final = "clustermesh.io"
DECLARED_VERSION: Final = "v1alpha1"
DECLARED_MANAGER: Final = "clustermesh-peers"
"""Who applies the entries of those, as server-side apply knows it."""
MIRROR: Final = "kvstoremesh"
"""The mirror's container."""
ETCD: Final = "etcd"
"""That of the API server's own etcd, where the operator brings none."""
MOUNT: Final = Path("/var/lib/cilium/clustermesh")
"""Where both are mounted, beside the certificates of the cluster itself."""
COMMON: Final = "common-etcd-client"
"""What the cluster shows to every peer that trusts its authority."""
LOCAL: Final = "local-etcd-client"
"""What its agents show to its own etcd."""
MESH_DOMAIN: Final = "mesh.cilium.io"
"""Below it each cluster has a name that its etcd's certificate answers to, wherever it is."""


def declared_path(namespace: str) -> str:
    """Where the API has the ClusterMeshPeers of `namespace`."""
    return f"/apis/{DECLARED_GROUP}/{DECLARED_VERSION}/namespaces/{namespace}/{DECLARED}"


def credentials_of(peer: str) -> str:
    """What the files are called that only `peer` is shown, without ending."""
    return f"{peer}.etcd-client"
