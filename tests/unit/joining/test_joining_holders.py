"""Who else keeps a Secret with certificates, and would undo what is written there."""

from __future__ import annotations

from typing import Any, cast

import msgspec
import pytest
from test_joining_checks import ALPHA

from clustermesh.joining.connect import Site
from clustermesh.joining.holders import InSecrets
from clustermesh.joining.objects import Objects


class Api:
    """One Secret, with what its metadata says."""

    def __init__(self, **meta: Any) -> None:
        self._secret = {"metadata": meta}

    async def read(self, plural: str, name: str, kind: type[Any]) -> Any:
        return msgspec.convert(self._secret, kind)


async def keeper(place: str = "beta-trust", **meta: Any) -> str:
    site = Site(ALPHA, cast(Objects, Api(**meta)))
    return await InSecrets(site, ["beta-trust"]).keeper(place)


def managed(manager: str, operation: str) -> dict[str, Any]:
    fields = {"f:data": {"f:ca.crt": {}}}
    return {"managedFields": [{"manager": manager, "operation": operation, "fieldsV1": fields}]}


WRITERS: tuple[tuple[dict[str, Any], str], ...] = (
    ({"annotations": {"argocd.argoproj.io/tracking-id": "x"}}, "Argo CD"),
    ({"labels": {"kustomize.toolkit.fluxcd.io/name": "x"}}, "Flux"),
    ({"annotations": {"reconcile.external-secrets.io/data-hash": "x"}}, "External Secrets"),
    ({"annotations": {"sealedsecrets.bitnami.com/patch": "true"}}, "Sealed Secrets"),
    ({"annotations": {"kubectl.kubernetes.io/last-applied-configuration": "{}"}}, "`kubectl apply`"),
    ({"labels": {"app.kubernetes.io/instance": "x"}}, "who deploys it (label app.kubernetes.io/instance"),
    ({"labels": {"app.kubernetes.io/instance": "x", "app.kubernetes.io/managed-by": "Helm"}}, "Helm"),
    ({"ownerReferences": [{"kind": "SealedSecret", "name": "x"}]}, "SealedSecret x"),
    (managed("gitops", "Apply"), "gitops"),
    (managed("clustermesh-operator", "Apply"), "clustermesh-operator"),
    (managed("argocd-controller", "Update"), "argocd-controller"),
    (managed("kustomize-controller", "Update"), "kustomize-controller"),
    (managed("helm-controller", "Update"), "helm-controller"),
    (managed("kubectl-client-side-apply", "Update"), "kubectl-client-side-apply"),
)
PLACES = {
    "beta-trust": ", which a ClusterMeshPeer names: put what is to be shown",
    "cilium-ca": " and would put the old authority back: replace it there, in three steps",
    "clustermesh-apiserver-server-cert": ": change it there",
    "cilium-clustermesh": ": change ",
}


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize(("meta", "by"), WRITERS)
async def test_who_writes_a_secret_again_is_its_keeper(meta: dict[str, Any], by: str, place: str) -> None:
    said = await keeper(place, **meta)
    assert said.startswith(by)
    assert f"keeps Secret {place}{PLACES[place]}" in said
    assert ("clustermesh.config.clusters" in said) == (by == "Helm" and place == "cilium-clustermesh")


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize(
    ("manager", "operation"),
    [
        *((each, "Update") for each in ("kubectl-create", "kubectl-edit", "kubectl-patch", "clustermesh")),
        ("clustermesh-0a1b2c3d", "Apply"),  # our own programs make one
        ("clustermesh-peers", "Apply"),  # the API server's entries, which follow
    ],
)
async def test_who_wrote_it_once_keeps_nothing(manager: str, operation: str, place: str) -> None:
    assert await keeper(place, **managed(manager, operation)) == ""
    assert await keeper(place) == ""


async def test_who_applies_a_label_to_it_keeps_nothing() -> None:
    fields = {"f:metadata": {"f:labels": {"f:policy": {}}}}
    assert await keeper("cilium-ca", managedFields=[{"manager": "x", "operation": "Apply", "fieldsV1": fields}]) == ""


async def test_who_applied_the_authority_once_is_told_how_to_say_so() -> None:
    mark = "kubectl.kubernetes.io/last-applied-configuration"
    assert f"annotate secret cilium-ca {mark}-`" in await keeper("cilium-ca", annotations={mark: "{}"})
