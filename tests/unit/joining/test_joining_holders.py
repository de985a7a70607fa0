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


async def keeper(**meta: Any) -> str:
    site = Site(ALPHA, cast(Objects, Api(**meta)))
    return await InSecrets(site, ["beta-trust"]).keeper("beta-trust")


def managed(manager: str, operation: str) -> dict[str, Any]:
    return {"managedFields": [{"manager": manager, "operation": operation}]}


@pytest.mark.parametrize(
    ("meta", "by"),
    [
        ({"annotations": {"argocd.argoproj.io/tracking-id": "x"}}, "Argo CD"),
        ({"labels": {"kustomize.toolkit.fluxcd.io/name": "x"}}, "Flux"),
        ({"annotations": {"kubectl.kubernetes.io/last-applied-configuration": "{}"}}, "`kubectl apply`"),
        ({"labels": {"app.kubernetes.io/instance": "x"}}, "who deploys it (label app.kubernetes.io/instance"),
        ({"labels": {"app.kubernetes.io/instance": "x", "app.kubernetes.io/managed-by": "Helm"}}, "Helm"),
        ({"ownerReferences": [{"kind": "SealedSecret", "name": "beta-trust"}]}, "SealedSecret beta-trust"),
        (managed("gitops", "Apply"), "gitops"),
        (managed("argocd-controller", "Update"), "argocd-controller"),
        (managed("kustomize-controller", "Update"), "kustomize-controller"),
        (managed("helm-controller", "Update"), "helm-controller"),
        (managed("kubectl-client-side-apply", "Update"), "kubectl-client-side-apply"),
    ],
)
async def test_who_writes_a_named_secret_again_is_its_keeper(meta: dict[str, Any], by: str) -> None:
    said = await keeper(**meta)
    assert said.startswith(by)
    assert "keeps Secret beta-trust, which a ClusterMeshPeer names" in said


@pytest.mark.parametrize("manager", ["kubectl-create", "kubectl-edit", "kubectl-patch", "clustermesh"])
async def test_who_wrote_it_once_keeps_nothing(manager: str) -> None:
    assert await keeper(**managed(manager, "Update")) == ""
    assert await keeper() == ""
