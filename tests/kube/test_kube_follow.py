"""Lists and watches of a real API server: whatever happens on the way, what was told equals what there is."""

from __future__ import annotations

from typing import Any

from kube_bed import KubeBed
from kube_mirror import Mirror, labelled, mirrored

from clustermesh.kube.config import from_kubeconfig

SERVICES = labelled("services")


def service(namespace: str, name: str, **labels: str) -> dict[str, Any]:
    metadata = {"name": name, "namespace": namespace, "labels": labels}
    spec = {"clusterIP": "None", "ports": [{"port": 80}]}
    return {"apiVersion": "v1", "kind": "Service", "metadata": metadata, "spec": spec}


def truth(bed: KubeBed) -> dict[tuple[str, str], dict[str, str]]:
    """What there is, asked in another way."""
    found = bed.ask("GET", "/api/v1/services")["items"]
    return {(m["namespace"], m["name"]): m.get("labels", {}) for m in (item["metadata"] for item in found)}


def at(mirror: Mirror, namespace: str) -> dict[str, dict[str, str]]:
    """What was told of one namespace."""
    return {name: labels for (where, name), labels in mirror.state.items() if where == namespace}


async def test_pages_then_changes(bed: KubeBed, namespace: str) -> None:
    bed.create(*(service(namespace, f"s{number}") for number in range(25)))
    async with mirrored(
        from_kubeconfig(str(bed.write_kubeconfig("admin", cert="admin"))), SERVICES, limit=10
    ) as mirror:
        assert len(at(mirror, namespace)) == 25
        bed.create(service(namespace, "new", a="1"))
        bed.merge(service(namespace, "s3"), {"metadata": {"labels": {"b": "2"}}})
        bed.delete(service(namespace, "s4"))
        await mirror.until(lambda: "s4" not in at(mirror, namespace))
        assert at(mirror, namespace)["new"] == {"a": "1"}
        assert at(mirror, namespace)["s3"] == {"b": "2"}
        assert mirror.state == truth(bed)
        assert mirror.interruptions() == []
