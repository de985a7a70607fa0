"""What `clustermesh why` may be asked about, and what is said to those who spell it otherwise."""

from __future__ import annotations

import re

import pytest

from clustermesh.address import parse
from clustermesh.errors import Invalid
from clustermesh.why.subject import OfAddress, OfIdentity, OfLabels, OfService, Subject, parse_subject


@pytest.mark.parametrize(
    ("given", "meant"),
    [
        ("demo/web", OfService("demo", "web")),
        ("10.2.0.5", OfAddress(parse("10.2.0.5"))),
        ("fd00::5", OfAddress(parse("fd00::5"))),
        ("131074", OfIdentity(131074)),
        ("app=web", OfLabels(("app=web",))),
        ("app=web,k8s:io.kubernetes.pod.namespace=a/b", OfLabels(("app=web", "k8s:io.kubernetes.pod.namespace=a/b"))),
    ],
)
def test_each_kind_has_one_spelling(given: str, meant: Subject) -> None:
    assert parse_subject(given) == meant


@pytest.mark.parametrize(
    ("given", "hint"),
    [
        ("web@demo", "did you mean demo/web?"),
        ("web.demo.svc.cluster.local", "did you mean demo/web?"),
        ("web", "did you mean default/web?"),
        ("10.96.0.1:80", "did you mean the address 10.96.0.1?"),
        ("10.2.0.0/16", "did you mean the address 10.2.0.0?"),
        ("10.2.0", "must be NAMESPACE/NAME"),
        ("fd00::5::1", "must be NAMESPACE/NAME"),
        ("", "must be NAMESPACE/NAME"),
        ("demo/web/80", "name of the service"),
    ],
)
def test_other_spellings_are_told_what_was_meant(given: str, hint: str) -> None:
    with pytest.raises(Invalid, match=re.escape(hint)):
        parse_subject(given)
