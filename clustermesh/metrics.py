"""Every metric that agents, API servers, mirrors and who answers newcomers expose: one table, from which
docs/metrics.md is made.

What Cilium has too is called as there, with its labels; everything else begins with clustermesh_. A name that ends in
_total counts for ever. `python -m clustermesh.metrics` prints the document.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Final, NamedTuple, TypeAlias

from prometheus_client import CollectorRegistry, Histogram, ProcessCollector
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.registry import Collector

from clustermesh.wire.entries import RESOURCES

HOP_BUCKETS: Final = (0.001, 0.002, 0.005, 0.01, 0.02, 0.03, 0.05, 0.075, 0.1, 0.2, 0.3, 0.5, 1, 2, 5, 10)
"""Seconds."""
_TOTAL: Final = "_total"

Family: TypeAlias = GaugeMetricFamily | CounterMetricFamily


class Metric(NamedTuple):
    """A gauge; a counter where it ends in _total, a histogram where it says so."""

    name: str
    says: str
    labels: tuple[str, ...] = ()
    is_histogram: bool = False

    @property
    def kind(self) -> str:
        return "histogram" if self.is_histogram else "counter" if self.name.endswith(_TOTAL) else "gauge"

    def family(self, values: Mapping[Sequence[object], float]) -> Family:
        """With a sample for each, by the values of its labels."""
        made: Family
        if self.kind == "counter":
            made = CounterMetricFamily(self.name.removesuffix(_TOTAL), self.says, labels=self.labels)
        else:
            made = GaugeMetricFamily(self.name, self.says, labels=self.labels)
        for labels, value in values.items():
            made.add_metric([str(label) for label in labels], float(value))
        return made

    def histogram(self, registry: CollectorRegistry | None = None) -> Histogram:
        return Histogram(self.name, self.says, self.labels, buckets=HOP_BUCKETS, registry=registry)


def _table(*metrics: Metric) -> Mapping[str, Metric]:
    return {metric.name: metric for metric in metrics}


_PEER: Final = ("target_cluster",)
_SCOPE: Final = ("scope", "source_cluster")

AGENT: Final = _table(
    Metric("cilium_clustermesh_remote_clusters", "Clusters connected"),
    Metric("cilium_clustermesh_remote_cluster_readiness_status", "1 when all of it is followed", _PEER),
    Metric("cilium_clustermesh_remote_cluster_failures", "Times the cluster was lost", _PEER),
    Metric("cilium_clustermesh_remote_cluster_last_failure_ts", "When last, in Unix seconds; 0 for never", _PEER),
    Metric(
        "cilium_clustermesh_remote_cluster_cache_revocations",
        "Times its services were withdrawn, for its etcd did not answer",
        _PEER,
    ),
    Metric("cilium_clustermesh_remote_cluster_nodes", "Nodes known", _PEER),
    Metric("cilium_clustermesh_remote_cluster_services", "Global services known", _PEER),
    Metric("cilium_clustermesh_remote_cluster_endpoints", "Endpoints known", _PEER),
    Metric("cilium_clustermesh_global_services", "Services that other clusters share, by different names"),
    Metric("clustermesh_agent_ready", "1 when the kernel holds the whole state"),
    Metric("clustermesh_agent_problems", "Sentences in the status", ("domain",)),
    Metric("clustermesh_identities", "Identities known", _PEER),
    Metric("clustermesh_refused_entries", "Entries that are not used, by the reason", (*_PEER, "reason")),
    Metric("clustermesh_limit", "How much a cluster may make this node remember", (*_PEER, "limit")),
    Metric("clustermesh_limit_used", "How much of it is used", (*_PEER, "limit")),
    Metric("clustermesh_reader_drift_total", "Entries found not as the watches had told", (*_PEER, "kind")),
    Metric(
        "clustermesh_reader_waited_seconds_total",
        "For how long its changes had to wait, for they cost more than their share of the loop",
        _PEER,
    ),
    Metric("clustermesh_datapath_total", "What the programs in the kernel did, by what it was", ("reason",)),
    Metric("cilium_drop_count_total", "What they refused or dropped of it", ("reason", "direction")),
    Metric("cilium_bpf_map_pressure", "How full a map of theirs is: 1 is full", ("map_name",)),
    Metric("clustermesh_bpf_map_entries", "Entries it has; of what programs write an estimate", ("map_name",)),
    Metric("clustermesh_bpf_map_capacity", "Entries it takes", ("map_name",)),
    Metric(
        "clustermesh_sockets_evicted_total",
        "Sockets whose service, backend or cluster (reason) went, by whether they were reset, moved or neither; "
        "and connections translated packet by packet that were forgotten",
        ("reason", "outcome"),
    ),
    Metric(
        "cilium_datapath_conntrack_gc_entries",
        "Entries of conntrack as they were last gone over",
        ("family", "protocol", "status"),
    ),
    Metric("cilium_datapath_conntrack_gc_runs_total", "Times that they were"),
    Metric("clustermesh_conntrack_collected_total", "Entries of conntrack that were over and taken out"),
    Metric("clustermesh_target_desired", "Entries wanted in a table of the kernel", ("target",)),
    Metric("clustermesh_target_pending", "Entries not applied yet", ("target",)),
    Metric("clustermesh_target_failed", "Entries that could not be applied", ("target",)),
    Metric("clustermesh_target_capacity", "Entries there is room for, where that is limited", ("target",)),
    Metric("clustermesh_target_drift_total", "Entries found changed by somebody else", ("target",)),
    Metric(
        "clustermesh_propagation_seconds",
        "From a change in its source to the write of this node's maps",
        ("source_cluster",),
        is_histogram=True,
    ),
    Metric(
        "clustermesh_propagation_hop_seconds",
        "One hop of it: publish (source to own etcd), read (etcd to this agent), apply (agent to maps)",
        ("source_cluster", "hop"),
        is_histogram=True,
    ),
)
"""Of every cluster, or of the other ones where the name is Cilium's."""

API_SERVER: Final = _table(
    Metric("cilium_clustermesh_apiserver_kvstore_sync_queue_size", "Keys to be written or removed", _SCOPE),
    Metric("cilium_clustermesh_apiserver_kvstore_sync_errors_total", "Writes that failed", _SCOPE),
    Metric(
        "cilium_clustermesh_apiserver_kvstore_initial_sync_completed",
        "1 when everything there was at the start is in etcd",
        (*_SCOPE, "action"),
    ),
    Metric("clustermesh_apiserver_ready", "1 when /readyz is 200"),
    Metric("clustermesh_apiserver_leader_election_master_status", "1 for who writes"),
    Metric("clustermesh_apiserver_source", "Where the objects come from, and in which mode: always 1", ("source",)),
    Metric("clustermesh_apiserver_source_objects", "Objects in the source that concern the mesh", ("kind",)),
    Metric("clustermesh_apiserver_source_drift_total", "Objects found not as the source had told", ("kind",)),
    Metric("clustermesh_apiserver_problems", "Parts of the source that are not acted on"),
    Metric("clustermesh_apiserver_keys", "Keys that etcd holds", _SCOPE),
    Metric("clustermesh_apiserver_drift_total", "Keys found changed by others", _SCOPE),
    Metric("clustermesh_apiserver_identities", "Identities allotted"),
    Metric("clustermesh_apiserver_leases", "Leases kept alive"),
    Metric(
        "clustermesh_apiserver_propagation_seconds",
        "From a service's change in the source to its acknowledged write in the own etcd",
        is_histogram=True,
    ),
)

KVSTOREMESH: Final = _table(
    Metric("cilium_kvstoremesh_remote_clusters", "Clusters connected"),
    Metric("cilium_kvstoremesh_remote_cluster_readiness_status", "1 when all of it is copied and followed", _PEER),
    Metric("cilium_kvstoremesh_remote_cluster_failures", "Times the cluster was lost", _PEER),
    Metric("cilium_kvstoremesh_remote_cluster_last_failure_ts", "When last, in Unix seconds; 0 for never", _PEER),
    Metric(
        "cilium_kvstoremesh_remote_cluster_cache_revocations",
        "Times copies of its services were withdrawn, for its etcd did not answer",
        _PEER,
    ),
    Metric("cilium_kvstoremesh_leader_election_master_status", "1 for who copies", ("name",)),
    Metric("cilium_kvstoremesh_kvstore_sync_queue_size", "Keys to be written or removed", _SCOPE),
    Metric("cilium_kvstoremesh_kvstore_sync_errors_total", "Writes that failed", _SCOPE),
    Metric(
        "cilium_kvstoremesh_kvstore_initial_sync_completed",
        "1 when all that a cluster had is copied",
        (*_SCOPE, "action"),
    ),
    Metric("clustermesh_kvstoremesh_ready", "1 when /readyz is 200"),
    Metric("clustermesh_kvstoremesh_problems", "What is not copied, and peers that are lost"),
    Metric("clustermesh_kvstoremesh_entries", "Entries of a cluster that are held, copied or not", (*_PEER, "kind")),
    Metric("clustermesh_kvstoremesh_refused_entries", "Entries that are not copied", (*_PEER, "reason")),
    Metric("clustermesh_kvstoremesh_limit", "How much a cluster may have copied", (*_PEER, "limit")),
    Metric("clustermesh_kvstoremesh_limit_used", "How much of it is used", (*_PEER, "limit")),
    Metric("clustermesh_kvstoremesh_drift_total", "Keys found changed by others", ("scope",)),
    Metric("clustermesh_kvstoremesh_leases", "Leases kept alive"),
    Metric(
        "clustermesh_kvstoremesh_propagation_seconds",
        "From a service's change in its source to its acknowledged copy in the own etcd",
        ("source_cluster",),
        is_histogram=True,
    ),
    Metric(
        "clustermesh_kvstoremesh_propagation_hop_seconds",
        "One hop of it: publish (source to its etcd), read (its etcd to this mirror), copy (mirror to own etcd)",
        ("source_cluster", "hop"),
        is_histogram=True,
    ),
)

INVITATIONS: Final = _table(
    Metric("clustermesh_invitations_answers_total", "Answers to who would join, by the status of HTTP", ("status",)),
)

PROGRAMS: Final = {
    "agent": AGENT,
    "apiserver": API_SERVER,
    "kvstoremesh": KVSTOREMESH,
    "invitations": INVITATIONS,
}


def scope_of(kind: str) -> str:
    """What Cilium's metrics call a kind of data: the end of its folder in etcd."""
    resource = RESOURCES.get(kind)
    return f"{resource.directory}/v1" if resource is not None and resource.directory else kind


def make_registry(*collectors: Collector) -> CollectorRegistry:
    """One with these, and with what the process itself uses."""
    registry = CollectorRegistry()
    ProcessCollector(registry=registry)
    for collector in collectors:
        registry.register(collector)
    return registry


def document() -> str:
    """docs/metrics.md."""
    return "\n".join([*_HEAD, *(line for program, table in PROGRAMS.items() for line in _section(program, table))])


_HEAD: Final = (
    "# Metrics",
    "",
    "Made by `python -m clustermesh.metrics`; a test compares it with what is exposed.",
    "",
    "Names that begin with `cilium_` are Cilium's, with its labels and its words for `scope` (`services/v1`):",
    "dashboards made for Cilium show them. The others are this project's. Each program exposes `process_*`, too, and",
    "the agent `python_*`.",
)


def _section(program: str, table: Mapping[str, Metric]) -> Iterator[str]:
    yield from (
        "",
        f"## {_TITLES[program]}",
        "",
        "| name | kind | labels | what it says |",
        "| --- | --- | --- | --- |",
    )
    for metric in table.values():
        labels = ", ".join(f"`{label}`" for label in metric.labels) or "-"
        yield f"| `{metric.name}` | {metric.kind} | {labels} | {metric.says} |"


_TITLES: Final = {
    "agent": "Agent, on 127.0.0.1:9962",
    "apiserver": "API server, on 127.0.0.1:9880",
    "kvstoremesh": "Mirror, on 127.0.0.1:9881",
    "invitations": "Invitations, where `clustermesh invite serve --metrics` says; the chart's on port 9882",
}


if __name__ == "__main__":
    print(document())
