"""The ClusterRole made of the source's list of rules is enough, and there is no verb in it that is not needed."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import pytest
from kube_bed import KubeBed
from kube_mirror import QUICK, Mirror, labelled, mirrored

from clustermesh.kube.client import KubeClient
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
