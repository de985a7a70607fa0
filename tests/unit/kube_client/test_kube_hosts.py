"""/etc/hosts, but for one name."""

from __future__ import annotations

import pytest

from clustermesh.kube.hosts import hosts_text, slices_of

NAME = "etcd.system.svc"
BASE = "127.0.0.1 localhost\n# a word of etcd.system.svc\n::1 localhost\n"


@pytest.mark.parametrize(
    ("before", "addresses", "after"),
    [
        ("", ["10.0.0.1"], f"10.0.0.1\t{NAME}\n"),
        (BASE, ["10.0.0.1", "fd00::1"], f"{BASE}10.0.0.1\t{NAME}\nfd00::1\t{NAME}\n"),
        (f"{BASE}10.9.9.9\t{NAME}\n", ["10.0.0.1"], f"{BASE}10.0.0.1\t{NAME}\n"),
        (f"10.9.9.9 {NAME} x\n10.9.9.8 x{NAME}\n", ["10.0.0.1"], f"10.9.9.8 x{NAME}\n10.0.0.1\t{NAME}\n"),
        ("127.0.0.1 localhost", ["10.0.0.1"], f"127.0.0.1 localhost\n10.0.0.1\t{NAME}\n"),
    ],
)
def test_the_name_leads_to_the_addresses_and_every_other_line_stays(
    before: str, addresses: list[str], after: str
) -> None:
    assert hosts_text(before, NAME, addresses) == after
    assert hosts_text(after, NAME, addresses) == after


def test_only_slices_of_the_service_in_its_namespace_are_asked_for() -> None:
    wanted = slices_of("system", "etcd")
    assert wanted.path == "/apis/discovery.k8s.io/v1/namespaces/system/endpointslices"
    assert wanted.labels == "kubernetes.io/service-name=etcd"
