"""Numbers for label sets: unique both ways, stable over restarts, and never anybody else's."""

from __future__ import annotations

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from clustermesh.address import parse
from clustermesh.apiserver.identities import Allocator, Labels
from clustermesh.apiserver.labels import identity_labels, is_relevant
from clustermesh.errors import Refused
from clustermesh.model import Cluster, Identity, Label
from clustermesh.sources.pods import PodEndpoint
from clustermesh.wire import identity, numbering

ALPHA = Cluster(name="alpha", id=1)
GRACE = 100


def labels(number: int) -> Labels:
    return (Label(source="k8s", key="app", value=str(number)),)


class _Small(Allocator):
    """Eight numbers, so that they run out and clash."""

    def __init__(self) -> None:
        super().__init__(ALPHA, GRACE)
        self._range = range(65536, 65544)


class Twin(RuleBasedStateMachine):
    """Beside the allocator: a list of (labels, number, uses, idle since), searched from end to end."""

    def __init__(self) -> None:
        super().__init__()
        self.allocator = _Small()
        self.now = 0
        self.rows: list[list] = []

    def _row(self, wanted: Labels) -> list | None:
        return next((row for row in self.rows if row[0] == wanted), None)

    @rule(number=st.integers(0, 11))
    def acquire(self, number: int) -> None:
        row = self._row(labels(number))
        if row is None and len(self.rows) == 8:
            with pytest.raises(Refused, match="all 8 identities of cluster alpha are taken"):
                self.allocator.acquire(labels(number))
            return
        got = self.allocator.acquire(labels(number)).id
        if row is None:
            assert all(got != other[1] for other in self.rows)
            self.rows.append([labels(number), got, 1, 0])
        else:
            assert got == row[1]
            row[2] += 1

    @rule(number=st.integers(0, 11))
    def release(self, number: int) -> None:
        row = self._row(labels(number))
        if row is not None and row[2]:
            self.allocator.release(labels(number), self.now)
            row[2] -= 1
            row[3] = self.now

    @rule(number=st.integers(0, 11), at=st.integers(65534, 65546))
    def adopt(self, number: int, at: int) -> None:
        free = 65536 <= at < 65544 and all(row[0] != labels(number) and row[1] != at for row in self.rows)
        assert self.allocator.adopt(Identity(id=at, labels=labels(number)), self.now) is free
        if free:
            self.rows.append([labels(number), at, 0, self.now])

    @rule(passed=st.integers(1, 150))
    def expire(self, passed: int) -> None:
        self.now += passed
        gone = [row for row in self.rows if not row[2] and self.now - row[3] > GRACE]
        assert sorted(self.allocator.expire(self.now)) == sorted(row[1] for row in gone)
        self.rows = [row for row in self.rows if row not in gone]

    @invariant()
    def holds_exactly_what_the_twin_holds(self) -> None:
        held = list(self.allocator)
        assert sorted((i.id, i.labels) for i in held) == sorted((row[1], row[0]) for row in self.rows)
        assert len({i.id for i in held}) == len({i.labels for i in held}) == len(held)


Twin.TestCase.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)
TestTwin = Twin.TestCase


@given(st.lists(st.integers(0, 400), max_size=40), st.randoms(use_true_random=False))
def test_a_restart_that_adopts_what_etcd_holds_renumbers_nothing(sets: list[int], order: object) -> None:
    before = Allocator(ALPHA)
    numbers = {number: before.acquire(labels(number)) for number in sets}
    held = list(before)
    order.shuffle(held)  # type: ignore[attr-defined]
    after = Allocator(ALPHA)
    for each in held:
        assert after.adopt(each, now=0)
    order.shuffle(sets)  # type: ignore[attr-defined]
    assert {number: after.acquire(labels(number)) for number in sets} == numbers


class _Narrow(Allocator):
    """So few numbers that many label sets are in each other's way."""

    def __init__(self) -> None:
        super().__init__(ALPHA, GRACE)
        self._range = range(65536, 65536 + 64)


def _usual(each: Identity) -> int:
    return _Narrow().acquire(each.labels).id


@given(st.lists(st.tuples(st.booleans(), st.integers(0, 45)), max_size=120), st.randoms(use_true_random=False))
def test_who_lost_everything_numbers_as_before_once_it_is_told_what_does_not_follow_from_labels(
    history: list[tuple[bool, int]], order: random.Random
) -> None:
    before, used = _Narrow(), set[int]()
    for now, (comes, number) in enumerate(history):
        if comes and number not in used:
            used.add(number)
            before.acquire(labels(number))
        elif not comes and number in used:
            used.remove(number)
            before.release(labels(number), now * GRACE)
        before.expire(now * GRACE)
    held = {each.labels: each.id for each in before if before.uses(each.labels)}
    anew, coming = _Narrow(), list(held)
    order.shuffle(coming)
    numbers = {each: anew.acquire(each).id for each in coming}
    told = {each.labels: each.id for each in before if each.labels in held and _usual(each) != each.id}
    changed = anew.renumber(told)
    assert {each.labels: each.id for each in anew} == held
    assert changed == {each: number for each, number in numbers.items() if number != held[each]}
    assert all(anew.uses(each) == 1 for each in held)


@given(st.sets(st.integers(0, 60)), st.randoms(use_true_random=False))
def test_without_anybody_to_tell_it_the_numbers_follow_from_all_labels_whoever_came_first(
    sets: set[int], order: random.Random
) -> None:
    def numbered() -> dict[Labels, int]:
        allocator, coming = _Narrow(), sorted(sets)
        order.shuffle(coming)
        for number in coming:
            allocator.acquire(labels(number))
        allocator.renumber({})
        return {each.labels: each.id for each in allocator}

    assert numbered() == numbered()


def test_what_is_told_of_others_labels_or_of_numbers_that_are_not_ours_changes_nothing() -> None:
    allocator = Allocator(ALPHA)
    number = allocator.acquire(labels(1)).id
    other = allocator.acquire(labels(2)).id
    assert allocator.renumber({labels(3): number, labels(1): 131072, labels(2): other}) == {}


@pytest.mark.parametrize(("cluster", "limit"), [(1, 255), (255, 255), (1, 511), (511, 511)])
def test_numbers_are_in_the_range_of_the_cluster(cluster: int, limit: int) -> None:
    allocator = Allocator(Cluster(name="c", id=cluster, max_clusters=limit))
    numbers = {allocator.acquire(labels(n)).id for n in range(50)}
    assert len(numbers) == 50
    assert numbers <= set(numbering.identity_range(cluster, limit))


# -- which labels ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("key", "relevant"),
    [
        ("app", True),
        ("app.kubernetes.io/name", True),
        ("example.org/tier", True),
        ("kubernetes.io/hostname", False),
        ("k8s.io/x", False),
        ("beta.kubernetes.io/os", False),
        ("node.beta.kubernetes.io/x", False),
        ("pod-template-hash", False),
        ("controller-revision-hash", False),
        ("statefulset.kubernetes.io/pod-name", False),
        ("statefulset.kubernetes.io/other", True),
        ("apps.kubernetes.io/pod-index", False),
        ("batch.kubernetes.io/job-completion-index", False),
        ("io.kubernetes.pod.namespace", False),
        ("io.cilium.k8s.policy.cluster", False),
        ("io.cilium.k8s/x", False),
        ("io.cilium.k8s.namespace.labels.team", False),
    ],
)
def test_labels_that_count(key: str, relevant: bool) -> None:
    assert is_relevant(key) is relevant


def test_every_label_of_the_namespace_counts_but_those_of_beta_kubernetes_io() -> None:
    endpoint = PodEndpoint(
        ip=parse("10.1.0.5"),
        namespace="shop",
        pod_name="cart-0",
        service_account="robot",
        node="n1",
        host_ip=None,
        labels={},
        namespace_labels={"controller-uid": "7", "x.beta.kubernetes.io/zone": "z", "io.kubernetes": "k"},
    )
    found = [label.key for label in identity_labels("alpha", endpoint)]
    assert [key for key in found if key.startswith("io.cilium.k8s.namespace.labels.")] == [
        "io.cilium.k8s.namespace.labels.controller-uid",
        "io.cilium.k8s.namespace.labels.io.kubernetes",
    ]


def test_a_pod_cannot_pass_for_one_of_another_namespace_or_cluster() -> None:
    endpoint = PodEndpoint(
        ip=parse("10.1.0.5"),
        namespace="shop",
        pod_name="cart-0",
        service_account="robot",
        node="n1",
        host_ip=None,
        labels={
            "app": "cart",
            "io.kubernetes.pod.namespace": "bank",
            "io.cilium.k8s.policy.cluster": "beta",
            "io.cilium.k8s.namespace.labels.team": "gold",
        },
        namespace_labels={"team": "red", "kubernetes.io/metadata.name": "shop"},
    )
    text = identity.encode(Identity(id=65536, labels=identity_labels("alpha", endpoint))).decode()
    assert text == (
        "k8s:app=cart;k8s:io.cilium.k8s.namespace.labels.kubernetes.io/metadata.name=shop;"
        "k8s:io.cilium.k8s.namespace.labels.team=red;k8s:io.cilium.k8s.policy.cluster=alpha;"
        "k8s:io.cilium.k8s.policy.serviceaccount=robot;k8s:io.kubernetes.pod.namespace=shop;"
    )
