"""What looks like a secret is in no log and no sysdump, which have one list of what does."""

from __future__ import annotations

import base64

import pytest

from clustermesh.logs import hide
from clustermesh.sysdump.redact import Redactor

KEY = b"-----BEGIN PRIVATE KEY-----\n" + b"MIGHAgEAMBMGByqGSM49unknownCCqGSM49AwEHBG0wawIBAQQg\n" * 3
KEY += b"-----END PRIVATE KEY-----\n"
CERTIFICATE = b"-----BEGIN CERTIFICATE-----\nMIIB\n-----END CERTIFICATE-----\n"
WRAPPED = base64.encodebytes(KEY).decode()
"""As `openssl base64` has it, at 76 columns."""


def inside(secret: bytes, said: str) -> list[str]:
    """Pieces of the base64 of `secret` that are in `said`."""
    bare = base64.b64encode(secret).decode().rstrip("=")
    return [bare[at : at + 16] for at in range(len(bare) - 16) if bare[at : at + 16] in said]


ENCODED = [
    WRAPPED,
    WRAPPED.replace("\n", "\n    "),
    WRAPPED.replace("\n", "\r\n"),
    WRAPPED.replace("\n", "\\n"),
    WRAPPED.replace("\n", "\\\\n"),
    "tls.key: " + WRAPPED,
    "data " + base64.b64encode(KEY).decode() + " and more",
]


@pytest.mark.parametrize("said", ENCODED)
def test_a_key_in_base64_is_taken_out_whole_on_however_many_lines(said: str) -> None:
    assert inside(KEY, "".join(said.split()).replace("\\n", "").replace("\\", ""))
    for cleaned in (Redactor().clean(said.encode()).decode(), hide(said)):
        assert inside(KEY, cleaned) == []


@pytest.mark.parametrize(
    "plain",
    [
        CERTIFICATE + KEY,
        b"a" + KEY,
        b"ab" + KEY,
        b"\xff\xfe " + KEY,
        b"a: b\nclient-key: |\n" + KEY,
        b'{"apiVersion": "v1", "users": [{"token": "sesame-open-sesame"}]}',
    ],
)
def test_a_secret_somewhere_in_base64_is_found(plain: bytes) -> None:
    said = base64.b64encode(plain).decode()
    for cleaned in (Redactor().clean(said.encode()).decode(), hide(said)):
        assert cleaned in ("REDACTED", "[hidden]")


@pytest.mark.parametrize(
    "said",
    [
        "-----BEGIN PGP PRIVATE KEY BLOCK-----\n\nlQOYBFunknown\n-----END PGP PRIVATE KEY BLOCK-----",
        "[Interface]\nPrivateKey = wGunknownGYT0m8rPBlWJvIuCmMnYjCb+Xf4Zk4s=",
        "PresharedKey = wGunknownGYT0m8rPBlWJvIuCmMnYjCb+Xf4Zk4s=",
        "private_key=e84unknown",
        "preshared_key=e84unknown",
        '{"privateKey": "unknown"}',
        "psk: unknown",
        'psk="unknown"',
        "password: /unknown",
        'password: "/unknown',
        '{"token": "/unknown/=="}',
        "run --password /unknown",
        "-----BEGIN EC PRIVATE KEY-----\nMHcCAQEEIBunknown\n-----END EC PRIVATE KEY-----",
        '"-----BEGIN PRIVATE KEY-----\\nMHcCAQEEIBunknown\\n-----END PRIVATE KEY-----\\n"',
        "-----BEGIN PRIVATE KEY-----\nMHcCAQEEIBunknown and the log ends here",
        "token eyJhbGciOiJSUzI1NiJ9.eyJpc3Munknown.c2lnbmF0dXJl was sent",
        "join cmj1.eyJhIjoxfQunknown now",
        "Authorization: Bearer abcunknowndef",
        "authorization: basic YWRtaW46unknown==",
        "etcd at https://root:unknown@192.0.2.1:2379",
        "run --db-password=unknown",
        "run --token unknown --verbose",
        "GET https://h/?a=1&access_token=unknown&b=2",
        "X-Api-Key: unknown",
        "Authorization: Token unknown",
        '"Authorization": "Token unknown"',
        "secret_key=unknown",
        "password: unknown",
        "password: 'it is unknown'",
        '{"joinToken": "very unknown"}',
        r'"note": "{\"joinToken\": \"very unknown\"}"',
        '{"password": "a \\" unknown"}',
        base64.b64encode(b"-----BEGIN PRIVATE KEY-----\nunknown").decode().replace("dW5rbm93bg", "unknown"),
    ],
)
def test_what_looks_like_a_secret_that_nobody_knows_of_is_taken_out(said: str) -> None:
    assert b"unknown" not in Redactor().clean(said.encode())
    assert "unknown" not in hide(said)


@pytest.mark.parametrize(
    "said",
    [
        "the psk of beta; topsk: no; private keys are made by the job",
        "password: /etc/mesh/password",
        "digest sha256:" + "0123456789abcdef" * 4,
        base64.b64encode(CERTIFICATE * 3).decode(),
        CERTIFICATE.decode(),
        "abcdefgh" * 6 + "\n" + "abcdefgh" * 6,
        "Secret clustermesh-apiserver-server-cert was not found",
        '"secretName": "cilium-ca", "automountServiceAccountToken": true, "tokenExpirationSeconds": 3607',
        '"token": 5,\n"secret": {\n"name": "x"',
        "tokenFile: /var/run/token and secret: /etc/secret",
        base64.b64encode(b"-----BEGIN CERTIFICATE-----\nMIIB").decode(),
        "-" * 100_000,
    ],
)
def test_what_only_sounds_like_a_secret_stays(said: str) -> None:
    assert Redactor().clean(said.encode()) == said.encode()
    assert hide(said) == said
