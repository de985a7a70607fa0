"""What a cluster's certificates in Secrets must become."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from itertools import pairwise

import pytest

from certs.check import check_leaf, read_certificates
from certs.errors import CertsError
from certs.issue import create_authority, issue
from certs.names import AUTHORITY_SECRET, Leaf, server
from certs.rotation import begin, take
from certs.secrets import Kept, authority_of, keep_authority, keep_leaf

NOW = datetime(2026, 1, 1, tzinfo=UTC)
SERVER = server(["clustermesh-apiserver.kube-system.svc"])


def authority(now: datetime = NOW) -> dict[str, bytes]:
    return dict(keep_authority({}, now).data)


def leaf(ca: dict[str, bytes], wanted: Leaf = SERVER, now: datetime = NOW) -> dict[str, bytes]:
    return dict(keep_leaf("server", wanted, {}, ca, now).data)


def test_an_authority_is_made_once_and_never_again() -> None:
    made = keep_authority({}, NOW)
    assert made.reason == "was absent"
    assert keep_authority(made.data, NOW) == Kept(made.data)


@pytest.mark.parametrize(
    "spoil",
    [
        lambda ca: {"other": b""},
        lambda ca: {**ca, "ca.key": b"no key"},
        lambda ca: {**ca, "ca.key": authority()["ca.key"]},
        lambda ca: {"ca.crt": leaf(ca)["tls.crt"], "ca.key": leaf(ca)["tls.key"]},
        lambda ca: authority(NOW - timedelta(days=4000)),
        lambda ca: authority(NOW + timedelta(days=2)),
    ],
    ids=["empty", "no key", "another's key", "no authority", "expired", "of the future"],
)
def test_an_authority_that_is_unfit_is_said_and_not_replaced(
    spoil: Callable[[dict[str, bytes]], dict[str, bytes]],
) -> None:
    with pytest.raises(CertsError, match=AUTHORITY_SECRET):
        keep_authority(spoil(authority()), NOW)


def test_a_leaf_that_is_good_is_left_alone_until_thirty_days_before_its_end() -> None:
    ca = authority()
    found = leaf(ca)
    for days, is_due in ((0, False), (334, False), (336, True), (400, True)):
        assert bool(keep_leaf("server", SERVER, found, ca, NOW + timedelta(days=days)).reason) is is_due, days


@pytest.mark.parametrize(
    "spoil",
    [
        lambda found: {"other": b""},
        lambda found: {**found, "tls.key": b""},
        lambda found: {**found, "tls.crt": b"-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"},
        lambda found: leaf(authority()),
        lambda found: {**found, "tls.key": leaf(authority())["tls.key"]},
    ],
    ids=["empty", "no key", "garbage", "another authority's", "another's key"],
)
def test_a_leaf_that_is_unfit_is_made_anew(spoil: Callable[[dict[str, bytes]], dict[str, bytes]]) -> None:
    ca = authority()
    due = keep_leaf("server", SERVER, spoil(leaf(ca)), ca, NOW)
    assert due.reason not in {"", "was absent"}
    assert keep_leaf("server", SERVER, due.data, ca, NOW) == Kept(due.data)


def test_a_server_gets_a_name_that_it_lacks() -> None:
    ca = authority()
    assert "mesh.example" in keep_leaf("server", server(["mesh.example"]), leaf(ca), ca, NOW).reason


def test_a_leaf_that_is_good_keeps_its_key_where_more_authorities_are_trusted() -> None:
    ca = authority()
    found = leaf(ca)
    wider = {**ca, "ca.crt": ca["ca.crt"] + create_authority(NOW).certificate_pem}
    due = keep_leaf("server", SERVER, found, wider, NOW)
    assert due.data == {**found, "ca.crt": wider["ca.crt"]}


def test_a_leaf_that_ends_with_its_authority_is_not_made_anew_over_and_over() -> None:
    ca = authority(NOW - timedelta(days=3640))
    found = leaf(ca)
    assert keep_leaf("server", SERVER, found, ca, NOW) == Kept(found)
    assert issue(authority_of(ca), SERVER, NOW).certificate.not_valid_after_utc < NOW + timedelta(days=30)


def test_an_authority_that_somebody_else_keeps_is_replaced_there_in_three_steps() -> None:
    old, new = authority(), authority()
    both = [old["ca.crt"] + new["ca.crt"], new["ca.crt"] + old["ca.crt"]]
    steps = [old, {**old, "ca.crt": both[0]}, {**new, "ca.crt": both[1]}, new]
    stages, found = [], dict[str, bytes]()
    for step in steps:
        found = dict(keep_leaf("server", SERVER, found, step, NOW).data)
        stages.append(found)
    assert [each["tls.crt"] == stages[0]["tls.crt"] for each in stages] == [True, True, False, False]
    assert stages[2]["tls.crt"] == stages[3]["tls.crt"]
    for one, other in pairwise(stages):  # a cluster a step behind the other, and it reads, and is read
        for shown, trusted in ((one, other), (other, one)):
            check_leaf(*read_certificates(shown["tls.crt"], "tls"), read_certificates(trusted["ca.crt"], "ca"), NOW, "")


def test_while_an_authority_is_replaced_by_our_command_what_the_old_one_signed_is_left_to_that() -> None:
    old = authority()
    found, under_way = leaf(old), take(old, begin(old, NOW), NOW)
    kept = keep_leaf("server", SERVER, found, under_way, NOW)
    assert kept.data == {**found, "ca.crt": under_way["ca.crt"]}
