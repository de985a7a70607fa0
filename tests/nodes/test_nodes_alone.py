"""The chart on a real kubelet, as a user installs it: our image, our network of pods, no kube-proxy."""

from __future__ import annotations

from ipaddress import ip_address, ip_network

from lab.kubernetes.cluster import Cluster
from lab.kubernetes.workloads import call, run_client, run_web


def test_a_node_is_ready_by_the_chart_alone_and_pods_call_services_without_kube_proxy(
    both: tuple[Cluster, Cluster],
) -> None:
    alpha, _ = both
    run_web(alpha, "alone", replicas=2)
    run_client(alpha, "alone")
    alpha.until_running("alone")
    found = {each["status"]["podIP"] for each in alpha.pods("alone")}
    assert len(found) == 3
    assert all(ip_address(each) in ip_network("10.1.0.0/16") for each in found)
    traffic = call(alpha, "alone")
    assert traffic.answers == {"alpha": traffic.requests}
    assert traffic.requests > 10


def test_the_same_installation_again_changes_nothing(both: tuple[Cluster, Cluster]) -> None:
    assert "nothing to do" in both[0].install()
