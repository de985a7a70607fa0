"""No secret gets into an archive: by where it stands, and by what it is."""

from __future__ import annotations

import base64
import json
from datetime import UTC, datetime
from typing import Any
from urllib.parse import quote

import pytest
from hypothesis import given
from hypothesis import strategies as st

from certs.issue import create_authority
from clustermesh.sysdump.redact import MARK, Redactor

NOW = datetime.now(UTC)
SECRETS = st.one_of(
    st.binary(min_size=8, max_size=80), st.text(min_size=8, max_size=60).map(str.encode), st.just(b"a\nb: c\n" * 5)
).filter(lambda secret: len(secret.strip()) >= 8)


def text_of(secret: bytes) -> str:
    return secret.decode(errors="replace")


@given(SECRETS, st.binary(max_size=20), st.binary(max_size=20))
def test_what_is_in_a_secret_is_nowhere_in_any_form(secret: bytes, before: bytes, after: bytes) -> None:
    redactor = Redactor()
    shown = redactor.take_object({"kind": "Secret", "data": {"it": base64.b64encode(secret).decode()}})
    forms = [
        secret,
        base64.b64encode(secret),
        base64.b64encode(secret.strip() + b"\n"),
        json.dumps(text_of(secret.strip()))[1:-1].encode(),
        quote(text_of(secret.strip()), safe="").encode(),
        base64.b64encode(base64.b64encode(secret.strip())),
        secret.strip().hex().encode(),
        json.dumps(json.dumps(text_of(secret.strip()))[1:-1])[1:-1].encode(),
    ]
    cleaned = redactor.clean(b" ".join(before + form + after for form in forms) + json.dumps(shown).encode())
    for form in forms[:2]:
        assert not [piece for piece in cleaned.split(MARK.encode()) if form in piece]


def test_json_as_go_writes_it_shows_nothing() -> None:
    redactor = Redactor()
    redactor.learn(b"p&ss<word>-1234")
    assert redactor.clean(b'{"a":"p\\u0026ss\\u003cword\\u003e-1234"}') == b'{"a":"REDACTED"}'


def test_what_overlaps_is_taken_out_whole_and_what_is_beside_it_stays() -> None:
    redactor = Redactor()
    for secret in (b"abcdefgh", b"efghijklmnopqrstuvwxyz0123456789", b"0123456789"):
        redactor.learn(secret)
    said = b"before abcdefghijklmnopqrstuvwxyz0123456789 after"
    assert redactor.clean(said) == b"before REDACTED after"
    assert redactor.clean(b"abcdefgh, 0123456789") == b"REDACTED, REDACTED"


@given(st.lists(st.binary(min_size=6, max_size=60), min_size=1, max_size=8), st.binary(max_size=90), st.integers(0, 40))
def test_every_secret_is_found_wherever_it_begins(secrets: list[bytes], around: bytes, shift: int) -> None:
    """Against the simple way: whatever is there is gone afterwards."""
    redactor = Redactor()
    for secret in secrets:
        redactor.learn(secret)
    text = b"\0" * shift + b"\0".join(secret + around for secret in secrets)
    pieces = redactor.clean(text).split(MARK.encode())
    assert not [secret for secret in secrets for piece in pieces if secret in piece]


@given(st.lists(st.binary(min_size=6, max_size=30), min_size=1, max_size=8), st.integers(0, 40))
def test_among_hundreds_of_short_secrets_every_one_is_found_as_among_few(secrets: list[bytes], shift: int) -> None:
    few, many = Redactor(), Redactor()
    for number in range(300):
        many.learn(b"other-%03d" % number)
    for secret in secrets:
        few.learn(secret)
        many.learn(secret)
    text = b"\0" * shift + b"\0".join(secrets)
    assert many.clean(text) == few.clean(text)
    assert many.clean(b"an other-007 here") == b"an REDACTED here"


def test_lines_of_a_key_are_taken_out_wherever_they_are_broken() -> None:
    key = create_authority(NOW).key_pem
    redactor = Redactor()
    redactor.take_object({"kind": "Secret", "stringData": {"ca.key": key.decode()}})
    shown = redactor.clean(b"  indented:\n" + b"\n".join(b"    " + line for line in key.splitlines()))
    for line in key.splitlines()[1:-1]:
        assert line not in shown


HIDDEN: list[dict[str, Any]] = [
    {"kind": "Pod", "spec": {"containers": [{"env": [{"name": "ETCD_PASSWORD", "value": "sesame-open"}]}]}},
    {
        "kind": "Deployment",
        "spec": {"template": {"spec": {"containers": [{"args": ["--token", "sesame-open", "--v=1"]}]}}},
    },
    {"kind": "Pod", "spec": {"httpHeaders": [{"name": "Authorization", "value": "sesame-open"}]}},
    {"kind": "Deployment", "spec": {"template": {"metadata": {"annotations": {"a/api-key": "sesame-open"}}}}},
    {"kind": "ConfigMap", "data": {"client-secret": "sesame-open"}},
    {"kind": "Service", "metadata": {"annotations": {"example.com/api-key": "sesame-open"}}},
    {
        "kind": "Secret",
        "metadata": {
            "annotations": {"kubectl.kubernetes.io/last-applied-configuration": '{"stringData":{"a":"sesame-open"}}'},
            "managedFields": ["sesame-open"],
        },
    },
]


@pytest.mark.parametrize("found", HIDDEN)
def test_what_is_named_as_a_secret_is_hidden_there_and_everywhere(found: dict[str, Any]) -> None:
    redactor = Redactor()
    assert "sesame" not in json.dumps(redactor.take_object([found]))
    if found["kind"] != "Secret":
        assert b"sesame" not in redactor.clean(b"a log says sesame-open")


def test_values_of_a_chart_keep_what_is_no_secret() -> None:
    said = {
        "tls": {"caCert": "Y2VydA==", "key": "a2V5" * 20},
        "tolerations": [{"key": "node.example/taint", "operator": "Exists"}],
        "extraEnv": [{"name": "API_TOKEN", "value": "sesame-open"}, {"name": "MODE", "value": "fast"}],
        "secretName": "clustermesh-apiserver-server-cert",
        "etcd": {"rootPassword": "sesame", "keyFile": "/var/lib/key"},
    }
    shown = Redactor().take_values(said)
    assert shown == {
        **said,
        "tls": {"caCert": "Y2VydA==", "key": MARK},
        "extraEnv": [{"name": "API_TOKEN", "value": MARK}, {"name": "MODE", "value": "fast"}],
        "etcd": {"rootPassword": MARK, "keyFile": "/var/lib/key"},
    }


def test_objects_keep_what_support_needs() -> None:
    pod = {
        "kind": "Pod",
        "metadata": {"name": "p", "managedFields": []},
        "spec": {
            "tolerations": [{"key": "node-role.kubernetes.io/control-plane"}],
            "volumes": [{"secret": {"secretName": "clustermesh-apiserver-server-cert"}}],
            "containers": [{"args": ["--key-file=/var/lib/tls.key"], "env": [{"name": "A", "value": "b"}]}],
        },
    }
    redactor = Redactor()
    assert redactor.take_object(pod) == {**pod, "metadata": {"name": "p"}}
    assert redactor.clean(b"clustermesh-apiserver-server-cert") == b"clustermesh-apiserver-server-cert"


def test_what_is_named_as_a_secret_in_one_of_a_registry_is_known() -> None:
    redactor, auth = Redactor(), base64.b64encode(b"me:sesame-one").decode()
    said = {"auths": {"r.example": {"username": "me", "password": "sesame-two", "auth": auth}}}
    data = {".dockerconfigjson": base64.b64encode(json.dumps(said).encode()).decode()}
    redactor.take_object({"kind": "Secret", "data": data})
    assert redactor.clean(f"sesame-one sesame-two {auth} me".encode()) == b"REDACTED REDACTED REDACTED me"


def test_what_was_applied_before_is_in_no_template_and_binary_data_nowhere() -> None:
    applied = {"kubectl.kubernetes.io/last-applied-configuration": "sesame-open", "a": "b"}
    template = {"template": {"metadata": {"annotations": applied}}}
    shown = Redactor().take_object({"kind": "Deployment", "spec": template})
    assert shown["spec"] == {"template": {"metadata": {"annotations": {"a": "b"}}}}
    assert "c2VzYW1l" not in str(Redactor().take_object({"kind": "ConfigMap", "binaryData": {"a": "c2VzYW1l"}}))


def test_one_who_knows_no_secrets_leaves_no_text() -> None:
    redactor = Redactor()
    redactor.blind = True
    container = {"name": "c", "image": "i", "args": ["sesame"], "env": [{"name": "A", "value": "sesame"}]}
    found = [
        {"kind": "Pod", "metadata": {"name": "p", "annotations": {"a": "sesame"}}, "spec": {"containers": [container]}},
        {"kind": "ConfigMap", "data": {"a": "sesame"}},
        {"kind": "Event", "message": "sesame", "reason": "Failed"},
    ]
    shown = json.dumps(redactor.take_object(found))
    assert "sesame" not in shown
    assert all(word in shown for word in ('"image": "i"', '"reason": "Failed"', '"name": "p"'))
