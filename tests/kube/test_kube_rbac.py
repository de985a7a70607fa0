"""The ClusterRole made of the source's list of rules is enough, and there is no verb in it that is not needed."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Sequence

import pytest
from kube_bed import KubeBed
from kube_mirror import QUICK, Mirror, labelled, mirrored

from clustermesh.kube.client import KubeClient, Request
from clustermesh.kube.config import from_kubeconfig
from clustermesh.kube.faults import Forbidden
from clustermesh.kube.follow import Interrupted
from clustermesh.kube.rbac import FOLLOW, Rule, cluster_role
from clustermesh.sources.objects import KINDS, Kind
from clustermesh.sources.served import RULES as ALL

CORE = ("", "discovery.k8s.io")  # there are no CustomResourceDefinitions here
SERVED = [kind for kind in KINDS.values() if kind.group in CORE]
RULES = [rule for rule in ALL if rule.group in CORE]


def allowed(bed: KubeBed, user: str, rules: Sequence[Rule]) -> str:
    """A kubeconfig of `user`, who may do just this."""
    bed.allow(user, cluster_role(user, rules))
    return str(bed.write_kubeconfig(user, cert=user))


@pytest.mark.parametrize("kind", SERVED, ids=lambda kind: kind.plural)
async def test_every_kind_can_be_followed(bed: KubeBed, kind: Kind) -> None:
    user = f"all-{kind.plural}"
    access = from_kubeconfig(allowed(bed, user, RULES))
    async with mirrored(access, labelled(kind.plural, kind.group)) as mirror:
        await mirror.until_following()
        assert mirror.interruptions() == []


@pytest.mark.parametrize("verb", FOLLOW)
@pytest.mark.parametrize("kind", SERVED, ids=lambda kind: kind.plural)
async def test_without_one_verb_it_is_said_which_is_missing(bed: KubeBed, kind: Kind, verb: str) -> None:
    user = f"no-{verb}-{kind.plural}"
    rules = [
        Rule(rule.group, rule.resource, tuple(v for v in rule.verbs if v != verb))
        if rule.resource == kind.plural
        else rule
        for rule in RULES
    ]
    mirror = Mirror(labelled(kind.plural, kind.group), 500)
    access = from_kubeconfig(allowed(bed, user, rules))
    async with KubeClient(access, QUICK) as client, asyncio.TaskGroup() as group:
        task = group.create_task(mirror.run(client))
        await mirror.until(lambda: any(isinstance(item, Interrupted) for item in mirror.told))
        (error,) = [item.error for item in mirror.told if isinstance(item, Interrupted)][:1]
        assert isinstance(error, Forbidden)
        assert f"may not {verb} {mirror.resource.title}" in str(error)
        task.cancel()


async def test_who_a_kubeconfig_says_to_act_as_is_who_asks(bed: KubeBed) -> None:
    said = {
        "as": "half",
        "as-uid": "7",
        "as-groups": ["one", "two"],
        "as-user-extra": {"Example.com/Reason": ["a", "b"]},
    }
    admin = {"client-certificate": str(bed.admin.cert), "client-key": str(bed.admin.key)}
    access = from_kubeconfig(str(bed.write_kubeconfig("half", user={**admin, **said})))
    review = {"apiVersion": "authentication.k8s.io/v1", "kind": "SelfSubjectReview"}
    path = "/apis/authentication.k8s.io/v1/selfsubjectreviews"
    async with KubeClient(access, QUICK) as client:
        with pytest.raises(Forbidden, match='"half"'):
            await client.get("/api/v1/secrets", "list secrets", {})
        request = Request(path=path, what="ask who", method="POST", body=json.dumps(review).encode())
        found = json.loads(await client.send(request))["status"]["userInfo"]
    assert (found["username"], found["uid"]) == ("half", "7")
    assert {"one", "two"} <= {*found["groups"]}
    assert found["extra"]["example.com/reason"] == ["a", "b"]
