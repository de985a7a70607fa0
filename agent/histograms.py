"""How long changes took. Imported when the first delay is known, or somebody may ask: an agent is ready before that."""

from prometheus_client import REGISTRY

from clustermesh.metrics import AGENT

SECONDS = AGENT["clustermesh_propagation_seconds"].histogram(REGISTRY)
HOP_SECONDS = AGENT["clustermesh_propagation_hop_seconds"].histogram(REGISTRY)
