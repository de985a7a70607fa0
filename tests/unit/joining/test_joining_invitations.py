"""Invitations: what a token holds, when it may be used, and that nobody learns why it may not."""

from __future__ import annotations

import hashlib

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from test_joining_checks import ALPHA, BETA, NOW

from clustermesh.errors import DecodeError, Refused
from clustermesh.joining import invitations
from clustermesh.joining.checks import find_problems
from clustermesh.joining.invitations import Token, create, decode_token, encode_token, read, take
from clustermesh.joining.inviting import Rate
from clustermesh.joining.offers import decode_ask, decode_offer, offer, taken

TOKEN = Token(cluster="alpha", address="203.0.113.7:9443", fingerprint="ab" * 32, id="0123abcd", secret="s" * 43)


def test_a_token_is_one_word_and_comes_back_as_it_was() -> None:
    text = encode_token(TOKEN)
    assert text.startswith("cmj1.")
    assert text.split() == [text]
    assert decode_token(text) == TOKEN


@pytest.mark.parametrize("cut", [0, 3, 5, 20, -1, -4])
def test_half_a_token_is_none_and_is_not_shown(cut: int) -> None:
    text = encode_token(TOKEN)[:cut]
    with pytest.raises(DecodeError) as caught:
        decode_token(text)
    assert TOKEN.secret not in str(caught.value)


@given(st.text() | st.text().map("cmj1.".__add__))
def test_garbage_is_no_token(text: str) -> None:
    with pytest.raises(DecodeError):
        decode_token(text)


@given(st.binary())
def test_garbage_is_no_invitation_and_no_offer(data: bytes) -> None:
    assert read(data) is None
    for decode in (decode_ask, decode_offer):
        with pytest.raises(DecodeError):
            decode(data)


def test_the_secret_is_kept_as_a_hash_alone() -> None:
    data, number, secret = create({}, now=0, ttl=900, uses=1, to="")
    assert secret.encode() not in data[number]
    assert hashlib.sha256(secret.encode()).hexdigest().encode() in data[number]


@pytest.mark.parametrize(
    ("cluster", "authority", "now", "wrong", "taken_"),
    [
        ("beta", b"ca", 899, "", True),
        ("beta", b"ca", 900, "", False),
        ("gamma", b"ca", 0, "", False),  # it is for beta
        ("beta", b"ca", 0, "secret", False),
        ("beta", b"ca", 0, "id", False),
        ("beta", b"ca", 0, "path", False),
    ],
)
def test_who_may_use_it_and_until_when(cluster: str, authority: bytes, now: float, wrong: str, taken_: bool) -> None:
    data, number, secret = create({}, now=0, ttl=900, uses=1, to="beta")
    number = {"id": "00000000", "path": "../" + number}.get(wrong, number)
    shown = (number, "guess" if wrong == "secret" else secret)
    if taken_:
        assert take(data, shown, cluster, authority, now) != data
    else:
        with pytest.raises(Refused, match="unknown, expired, used up, or another cluster's"):
            take(data, shown, cluster, authority, now)


def test_each_use_counts_once_and_who_was_let_in_may_come_again() -> None:
    data, number, secret = create({}, now=0, ttl=900, uses=2, to="")
    token = (number, secret)
    data = take(data, token, "beta", b"ca-b", 1)
    assert take(data, token, "beta", b"ca-b", 2) == data
    with pytest.raises(Refused):
        take(data, token, "beta", b"other", 2)  # somebody else under its name
    data = take(data, token, "gamma", b"ca-g", 3)
    with pytest.raises(Refused):
        take(data, token, "delta", b"ca-d", 4)
    assert take(data, token, "gamma", b"ca-g", 5) == data
    with pytest.raises(Refused):
        take(data, token, "gamma", b"ca-g", 900)


def test_those_that_are_over_go_with_the_next_unless_somebody_joined_and_they_are_bounded() -> None:
    data, number, secret = create({}, now=0, ttl=10, uses=1, to="")
    data = take(data, (number, secret), "beta", b"ca", 1)
    data, over, _ = create(data, now=0, ttl=10, uses=1, to="")
    data, last, _ = create(data, now=20, ttl=10, uses=1, to="")
    assert set(data) == {number, last}
    assert over not in data
    for _ in range(invitations.MOST - 2):
        data, *_ = create(data, now=20, ttl=10, uses=1, to="")
    with pytest.raises(Refused, match="revoke"):
        create(data, now=20, ttl=10, uses=1, to="")


def test_so_many_at_once_and_so_many_a_second() -> None:
    rate = Rate(per_second=0.5, burst=3)
    assert [rate.admits(100.0) for _ in range(4)] == [True, True, True, False]
    assert [rate.admits(102.0), rate.admits(102.0)] == [True, False]
    assert [rate.admits(1000.0) for _ in range(4)] == [True, True, True, False]


def test_an_offer_makes_the_same_cluster_as_reading_it_would() -> None:
    said = decode_offer(msgspec.json.encode(offer(BETA, "alpha", NOW)))
    link = taken(ALPHA, said)
    assert (link.owner.cluster, link.entrance, link.owner.pod_cidrs) == (BETA.cluster, BETA.entrance, BETA.pod_cidrs)
    assert find_problems([ALPHA, link.owner], [link], NOW) == []
    assert BETA.signer.key.decode() not in msgspec.json.encode(said).decode()  # the authority's key stays at home


@pytest.mark.parametrize(
    "changed",
    [
        {"name": "No Name"},
        {"id": 0},
        {"max_clusters": 7},
        {"hosts": []},
        {"hosts": ["a b"]},
        {"hosts": ["a"] * 65},
        {"port": 0},
        {"pod_cidrs": [("n1", "nowhere")]},
        {"shown": {}},
        {"shown": {"beta.etcd-client.crt": "", "beta.etcd-client.key": "", "gamma": "endpoints: [https://evil:1]"}},
    ],
)
def test_an_offer_that_breaks_a_rule_is_not_taken(changed: dict[str, object]) -> None:
    with pytest.raises(DecodeError):
        taken(ALPHA, msgspec.structs.replace(offer(BETA, "alpha", NOW), **changed))
