"""Invitations: what a token holds, when it may be used, and that nobody learns why it may not."""

from __future__ import annotations

import hashlib
from datetime import timedelta

import msgspec
import pytest
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from hypothesis import given
from hypothesis import strategies as st
from test_joining_checks import ALPHA, AUTHORITIES, BETA, NOW, files, joined

from certs.issue import Pair, certify, create_authority, issue
from certs.names import Leaf, cluster_leaves, server
from certs.names import remote as remote_leaf
from clustermesh.address import parse_prefix
from clustermesh.errors import DecodeError, Refused
from clustermesh.joining import invitations, inviting, newcomer
from clustermesh.joining.audit import SentAway
from clustermesh.joining.checks import find_problems
from clustermesh.joining.door import Rate, Rates
from clustermesh.joining.invitations import (
    Token,
    create,
    decode_token,
    disconnected,
    encode_token,
    is_revoked,
    read,
    revoke,
    use_up,
)
from clustermesh.joining.inviting import find_impostor, is_one_of_ours
from clustermesh.joining.links import credentials, entries, known_peers, replaced
from clustermesh.joining.member import CertFiles, Member
from clustermesh.joining.offers import MOST_BYTES, Ask, decode_ask, decode_offer, encode_ask, offer, offered_link
from clustermesh.mesh.authority import Limits
from clustermesh.standalone.pod_cidrs import PodCidr

TOKEN = Token(cluster="alpha", address="203.0.113.7:9443", fingerprint="ab" * 32, id="0123abcd", secret="s" * 43)


def test_a_token_is_one_word_and_comes_back_as_it_was() -> None:
    text = encode_token(TOKEN)
    assert text.startswith("cmj1.")
    assert text.split() == [text]
    assert decode_token(text) == TOKEN
    assert decode_token(f" {text[:30]}\r\n{text[30:]}\n") == TOKEN, "a terminal breaks what is copied from it"


@pytest.mark.parametrize("cut", [0, 3, 5, 20, -1, -4])
def test_half_a_token_is_none_and_is_not_shown(cut: int) -> None:
    text = encode_token(TOKEN)[:cut]
    with pytest.raises(DecodeError) as caught:
        decode_token(text)
    assert TOKEN.secret not in str(caught.value)


@pytest.mark.parametrize(
    "changed", [{"cluster": "../x"}, {"cluster": "Beta"}, {"cluster": ""}, {"address": "0.0.0.0:9443"}]
)
def test_a_token_of_nobody_is_none(changed: dict[str, str]) -> None:
    with pytest.raises(DecodeError):
        decode_token(encode_token(msgspec.structs.replace(TOKEN, **changed)))


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
    data, number, secret = create({}, (), now=0, ttl=900, uses=1, to="")
    assert secret.encode() not in data[number]
    assert hashlib.sha256(secret.encode()).hexdigest().encode() in data[number]


@pytest.mark.parametrize(
    ("cluster", "key", "now", "wrong", "taken_"),
    [
        ("beta", b"key", 899, "", True),
        ("beta", b"key", 900, "", False),
        ("gamma", b"key", 0, "", False),  # it is for beta
        ("beta", b"key", 0, "secret", False),
        ("beta", b"key", 0, "id", False),
        ("beta", b"key", 0, "path", False),
    ],
)
def test_who_may_use_it_and_until_when(cluster: str, key: bytes, now: float, wrong: str, taken_: bool) -> None:
    data, number, secret = create({}, (), now=0, ttl=900, uses=1, to="beta")
    number = {"id": "00000000", "path": "../" + number}.get(wrong, number)
    shown = (number, "guess" if wrong == "secret" else secret)
    if taken_:
        assert use_up(data, shown, cluster, key, now) != data
    else:
        with pytest.raises(Refused, match="unknown, expired, used up, or another cluster's"):
            use_up(data, shown, cluster, key, now)


def test_each_use_counts_once_and_who_was_let_in_may_come_again() -> None:
    data, number, secret = create({}, (), now=0, ttl=900, uses=2, to="")
    token = (number, secret)
    data = use_up(data, token, "beta", b"key-b", 1)
    assert use_up(data, token, "beta", b"key-b", 2) == data
    with pytest.raises(Refused):
        use_up(data, token, "beta", b"other", 2)  # somebody else under its name
    data = use_up(data, token, "gamma", b"key-g", 3)
    with pytest.raises(Refused):
        use_up(data, token, "delta", b"key-d", 4)
    assert use_up(data, token, "gamma", b"key-g", 5) == data
    with pytest.raises(Refused):
        use_up(data, token, "gamma", b"key-g", 900)


def test_those_that_are_over_go_with_the_next_unless_who_joined_is_connected_and_open_ones_are_bounded() -> None:
    data, joined = dict[str, bytes](), list[str]()
    for cluster in ("beta", "gamma"):
        data, number, secret = create(data, ("beta", "gamma"), now=0, ttl=10, uses=1, to="")
        data = use_up(data, (number, secret), cluster, b"key", 1)
        joined.append(number)
    data, over, _ = create(data, ("beta", "gamma"), now=0, ttl=10, uses=1, to="")
    assert set(data) == {*joined, over}
    data, last, _ = create(data, ("beta",), now=80, ttl=10, uses=1, to="")
    assert set(data) == {joined[0], last}
    for _ in range(invitations.MOST - 1):
        data, *_ = create(data, ("beta",), now=80, ttl=10, uses=1, to="")
    with pytest.raises(Refused, match="revoke"):
        create(data, ("beta",), now=80, ttl=10, uses=1, to="")
    create(data, ("beta",), now=90, ttl=10, uses=1, to="")


@pytest.mark.parametrize("now", [2, 899, 900, 959])
def test_one_that_was_used_stays_for_who_is_not_connected_yet(now: float) -> None:
    data, number, secret = create({}, (), now=0, ttl=900, uses=1, to="beta")
    data = use_up(data, (number, secret), "beta", b"key", 1)
    data, *_ = create(data, (), now=now, ttl=900, uses=1, to="gamma")
    assert not is_revoked(data, number)
    if now < 900:
        assert use_up(data, (number, secret), "beta", b"key", now) == data  # after what was interrupted
    assert number not in create(data, (), now=960, ttl=900, uses=1, to="gamma")[0]


def test_who_was_disconnected_is_of_no_invitation_and_does_not_come_again() -> None:
    data, number, secret = create({"other": b"?"}, (), now=0, ttl=10, uses=2, to="")
    for cluster in ("beta", "gamma"):
        data = use_up(data, (number, secret), cluster, b"key", 1)
    assert disconnected(data, "delta") == data
    data = disconnected(data, "beta")
    assert disconnected(data, "beta") == data
    found = read(data[number])
    assert found is not None
    assert ([*found.joined], found.connected, found.left) == (["beta", "gamma"], {"gamma"}, 0)
    with pytest.raises(Refused):
        use_up(data, (number, secret), "beta", b"key", 2)
    assert use_up(data, (number, secret), "gamma", b"key", 2) == data
    assert number in create(data, ("beta", "gamma"), now=80, ttl=10, uses=1, to="")[0]
    assert number not in create(data, ("beta",), now=80, ttl=10, uses=1, to="")[0]


def test_one_that_is_revoked_lets_nobody_in_not_even_again() -> None:
    data, number, secret = create({}, (), now=0, ttl=10, uses=2, to="")
    data = use_up(data, (number, secret), "beta", b"key", 1)
    assert not is_revoked(data, number)
    data, revoked = revoke(data, number)
    assert (is_revoked(data, number), is_revoked({}, number), [*revoked.joined]) == (True, True, ["beta"])
    assert not revoked.is_open(2)
    for cluster in ("beta", "gamma"):
        with pytest.raises(Refused):
            use_up(data, (number, secret), cluster, b"key", 2)
    with pytest.raises(Refused, match="there is no invitation"):
        revoke({}, number)


ASKED = encode_ask(BETA, ("0123abcd", "s"), offer(BETA, "alpha", NOW))


def test_who_asks_proves_to_have_the_key_of_the_server_it_offers() -> None:
    ask, said, key = decode_ask(ASKED)
    assert (ask.id, ask.secret, said.name) == ("0123abcd", "s", "beta")
    assert decode_ask(encode_ask(BETA, ("4567abcd", "t"), offer(BETA, "alpha", NOW)))[2] == key
    assert decode_ask(encode_ask(ALPHA, ("4567abcd", "t"), offer(ALPHA, "beta", NOW)))[2] != key


@pytest.mark.parametrize(
    "changed",
    [
        {"id": "0123abce"},
        {"secret": "t"},
        {"signature": b""},
        {"signature": b"0" * 70},
        {"offer": msgspec.Raw(msgspec.json.encode(offer(BETA, "alpha", NOW)))},  # with another key for alpha
    ],
)
def test_what_is_not_signed_by_that_key_is_no_ask(changed: dict[str, object]) -> None:
    ask = msgspec.json.decode(ASKED, type=Ask)
    with pytest.raises(DecodeError, match="signature"):
        decode_ask(msgspec.json.encode(msgspec.structs.replace(ask, **changed)))


def test_who_shows_the_certificate_of_another_has_not_its_key() -> None:
    false = msgspec.structs.replace(ALPHA, server=msgspec.structs.replace(ALPHA.server, cert=BETA.server.cert))
    with pytest.raises(Refused, match="Secret clustermesh-apiserver-server-cert of alpha"):
        encode_ask(false, ("0123abcd", "s"), offer(BETA, "alpha", NOW))
    ask = msgspec.json.decode(encode_ask(ALPHA, ("0123abcd", "s"), offer(BETA, "alpha", NOW)), type=Ask)
    with pytest.raises(DecodeError, match="signature"):  # all that beta says in public, signed by alpha
        decode_ask(msgspec.json.encode(ask))


def test_so_many_at_once_and_so_many_a_second() -> None:
    rate = Rate(per_second=0.5, burst=3)
    assert [rate.admits(100.0) for _ in range(4)] == [True, True, True, False]
    assert [rate.admits(102.0), rate.admits(102.0)] == [True, False]
    assert [rate.admits(1000.0) for _ in range(4)] == [True, True, True, False]


def test_each_source_has_its_own_rate() -> None:
    rates = Rates()

    def asks(source: str) -> int:
        return sum(rates.admits(source, 100.0) for _ in range(50))

    assert [asks("192.0.2.1"), asks("192.0.2.1"), asks("192.0.2.2")] == [10, 0, 10]
    assert [
        asks("2001:db8::1"),
        asks("2001:db8::2"),
        asks("2001:db8:0:ff::1"),
        asks("2001:db8:0:100::1"),
        asks(""),
    ] == [10, 0, 0, 10, 10]
    for number in range(5000):
        rates.admits(f"10.0.{number >> 8}.{number & 255}", 100.0)
    assert asks("192.0.2.1") == 10  # forgotten: they are bounded


def test_who_is_sent_away_is_told_of_once_and_those_who_are_most_first() -> None:
    away = SentAway()
    assert away.tell() == ""
    for status, source in [(404, "192.0.2.1"), *[(429, "192.0.2.2")] * 3, (408, "192.0.2.1"), (404, "192.0.2.1")]:
        away.note(status, source)
    said = "3 times 429 to 192.0.2.2, 2 times 404 to 192.0.2.1, 1 times 408 to 192.0.2.1"
    assert [away.tell(), away.tell()] == [f"6 were sent away who would join: {said}", ""]
    for number in range(5000):
        away.note(429, f"10.0.{number >> 8}.{number & 255}")
    assert away.tell().startswith("5000 were sent away who would join: 4000 times 429 to others, ")
    for number in range(6):
        away.note(429, f"10.0.0.{number}")
    assert away.tell().endswith("1 times 429 to 10.0.0.4, 1 more")


@pytest.mark.parametrize("sentences", [["x" * 2_000_000], ["\0" * 2_000] * 50_000, ["x"] * 20, []])
def test_a_refusal_is_short_enough_to_be_read(sentences: list[str]) -> None:
    answer = inviting._problems(409, sentences)
    assert isinstance(answer.body, bytes)
    assert len(answer.body) < MOST_BYTES
    said = newcomer._sentences(answer.body)
    assert len(said) == min(20, len(sentences) or 1)
    assert "without a word" not in said[0] or not sentences


def test_an_offer_makes_the_same_cluster_as_reading_it_would() -> None:
    said = decode_offer(msgspec.json.encode(offer(BETA, "alpha", NOW)))
    link = offered_link(ALPHA, said, NOW, keep=False)
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
        {"pod_cidrs": [("n1", "10.2.0.0/24")] * 10_241},
        {"shown": {}},
        {"shown": {"beta.etcd-client.crt": "", "beta.etcd-client.key": "", "gamma": "endpoints: [https://evil:1]"}},
    ],
)
def test_an_offer_that_breaks_a_rule_is_not_taken(changed: dict[str, object]) -> None:
    with pytest.raises(DecodeError):
        offered_link(ALPHA, msgspec.structs.replace(offer(BETA, "alpha", NOW), **changed), NOW, keep=False)


def padded(text: str, most: int = 30_000) -> str:
    """As `openssl x509 -text` writes it, and worse."""
    return "Certificate:\n    Data:\n" + text.replace("\n", "\r\n") + "# padding\n" * (most // 10)


def test_nothing_but_certificates_and_a_key_goes_on_with_an_offer() -> None:
    said = offer(BETA, "alpha", NOW)
    more = {each: padded(getattr(said, each)) for each in ("trusted", "signer", "server")}
    kept = {"beta.etcd-client.key": said.shown["beta.etcd-client.key"], "beta.etcd-client-ca.crt": "x" * 500_000}
    padding = msgspec.structs.replace(
        said, **more, shown={**{name: padded(text) for name, text in said.shown.items()}, **kept}
    )
    plain, taken = (offered_link(ALPHA, each, NOW, keep=False) for each in (said, padding))
    assert taken == plain
    assert find_problems([ALPHA, taken.owner], [taken], NOW) == []
    assert sum(map(len, entries(taken, credentials(taken, NOW))[0].values())) < 2_000


RSA = rsa.generate_private_key(65537, 2048).private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()).decode()
WIDE = issue(
    AUTHORITIES["beta"], Leaf("x", server=True, hosts=tuple(f"{'h' * 60}.{n}.example" for n in range(60))), NOW
).certificate_pem.decode()  # 6 kB


@pytest.mark.parametrize(
    ("field", "text", "says"),
    [
        ("trusted", BETA.trusted.decode() * 9, "trusted: 9 certificates: must be at most 8"),
        ("trusted", padded(BETA.trusted.decode(), 70_000), "bytes: must be at most 65536"),
        ("trusted", WIDE * 3, "must be at most 16384 bytes together"),
        ("trusted", "", "trusted: holds no readable PEM certificate"),
        ("trusted", "\ud800", "trusted: holds no readable PEM certificate"),
        ("signer", BETA.trusted.decode() * 9, "signer: 9 certificates"),
        ("server", padded(BETA.server.cert.decode(), 70_000), "server: "),
        ("beta.etcd-client.crt", BETA.trusted.decode() * 9, "beta.etcd-client.crt: 9 certificates"),
        ("beta.etcd-client.crt", WIDE * 3, "must be at most 16384 bytes together"),
        ("beta.etcd-client.key", RSA, "bytes: must be at most 1024, an unencrypted ECDSA or Ed25519 key"),
        ("beta.etcd-client.key", padded("", 1_100), "beta.etcd-client.key: "),
        ("beta.etcd-client.key", "x", "beta.etcd-client.key: holds no readable"),
        ("hosts", [f"{'h' * 60}.{'h' * 60}.{'h' * 60}.{'h' * 60}.{n}" for n in range(64)], "16384 bytes together"),
    ],
)
def test_what_an_offer_puts_into_a_secret_is_bounded(field: str, text: object, says: str) -> None:
    said = offer(BETA, "alpha", NOW)
    changed = {"shown": {**said.shown, field: text}} if field in said.shown else {field: text}
    with pytest.raises(DecodeError, match="offer of 'beta'") as caught:
        offered_link(ALPHA, msgspec.structs.replace(said, **changed), NOW, keep=False)
    assert says in str(caught.value)


def test_what_came_with_an_offer_is_not_in_the_secret_yet() -> None:
    alpha = msgspec.structs.replace(ALPHA, peers={"gone.etcd-client.key": b"x" * 1_015_000})
    link = offered_link(alpha, offer(BETA, "alpha", NOW), NOW, keep=False)
    (problem,) = find_problems([alpha, link.owner], [link], NOW)
    assert "Secret cilium-clustermesh of alpha has no room for beta" in str(problem)


def test_who_asks_with_more_than_a_few_certificates_is_none() -> None:
    said = offer(BETA, "alpha", NOW)
    changed = msgspec.structs.replace(said, server=said.server * 2_000)
    with pytest.raises(DecodeError, match="must be at most 65536"):
        decode_ask(encode_ask(BETA, ("0123abcd", "s"), changed))


def test_of_too_many_pod_cidrs_nothing_is_said_by_invitation() -> None:
    cidrs = [PodCidr(parse_prefix(f"10.{2 + (n >> 8)}.{n & 255}.0/24"), "beta", f"n{n}") for n in range(10_241)]
    assert (
        len(offer(msgspec.structs.replace(BETA, pod_cidrs=[*cidrs[:-1], *cidrs[:-1]]), "alpha", NOW).pod_cidrs)
        == 10_240
    )
    with pytest.raises(Refused, match=r"beta has 10241 pod CIDRs.*clustermesh connect"):
        offer(msgspec.structs.replace(BETA, pod_cidrs=cidrs), "alpha", NOW)


def test_who_comes_again_keeps_what_an_operator_has_allowed_it() -> None:
    prefix, limits = parse_prefix("203.0.113.0/24"), Limits(prefixes=20_000)
    before = joined(ALPHA, BETA)
    allowed = msgspec.structs.replace(
        offered_link(before, offer(BETA, "alpha", NOW), NOW, keep=False), allowed=(prefix,), limits=limits
    )
    for mirrored in (False, True):
        reader = msgspec.structs.replace(ALPHA, mirrored=mirrored)
        agents, mirror = entries(allowed, credentials(allowed, NOW))
        kept = {"copied" if mirrored else "peers": replaced({}, "beta", agents | mirror)}
        link = offered_link(msgspec.structs.replace(reader, **kept), offer(BETA, "alpha", NOW), NOW, keep=False)
        assert (link.allowed, link.limits) == ((prefix,), limits)
        assert link.reader.entries["beta.etcd-client.crt"] != before.entries.get("beta.etcd-client.crt")
    assert offered_link(ALPHA, offer(BETA, "alpha", NOW), NOW, keep=False).limits == Limits()


@pytest.mark.parametrize(
    ("keep", "later", "signer", "stays"),
    [
        (True, 0, "beta", True),
        (False, 0, "beta", False),  # an invitation to come again
        (True, 340, "beta", False),  # it ends in less than 30 days
        (True, 0, "gamma", False),  # not by the authority that it has now
    ],
)
def test_what_is_good_stays_where_the_same_token_is_used_again(
    keep: bool, later: int, signer: str, stays: bool
) -> None:
    first = offer(BETA, "alpha", NOW)
    files = {key: value.encode() for key, value in first.shown.items()}
    if signer != "beta":
        pair = issue(AUTHORITIES[signer], remote_leaf("alpha"), NOW)
        files |= {"beta.etcd-client.crt": pair.certificate_pem, "beta.etcd-client.key": pair.key_pem}
    agents, _ = entries(offered_link(ALPHA, first, NOW, keep=False), files)
    alpha, now = msgspec.structs.replace(ALPHA, peers=agents), NOW + timedelta(days=later)
    link = offered_link(alpha, offer(BETA, "alpha", now), now, keep=keep)
    again, _ = entries(link, credentials(link, now))
    assert (again == agents) == stays


KNOWN, NEW = AUTHORITIES["beta"], create_authority(NOW)
CROSS, STRANGER = certify(KNOWN, NEW), AUTHORITIES["gamma"]
GAMMAS = issue(KNOWN, remote_leaf("gamma"), NOW)  # what beta has given to gamma: no authority, whatever it signs
FALSE = Pair(certify(STRANGER, GAMMAS), GAMMAS.key, (GAMMAS.certificate,))


def shown(signer: Pair, leaf: Leaf | None = None, *chain: Pair) -> bytes:
    pair = issue(signer, leaf or server(), NOW)
    return pair.certificate_pem + b"".join(each.certificate_pem for each in chain)


@pytest.mark.parametrize(
    ("cert", "is_beta"),
    [
        (BETA.server.cert, True),
        (shown(KNOWN), True),  # issued anew
        (shown(NEW, None, Pair(CROSS, NEW.key)), True),  # its authority is being replaced
        (shown(NEW), False),
        (shown(NEW, None, NEW), False),
        (shown(NEW, None, Pair(certify(STRANGER, NEW), NEW.key), STRANGER), False),
        (GAMMAS.certificate_pem, False),
        *((shown(KNOWN, leaf), False) for name, leaf in cluster_leaves("beta").items() if name != "server"),
        (shown(KNOWN, Leaf("x", server=True, hosts=("gamma.mesh.cilium.io",))), False),
        (shown(FALSE, None, *(Pair(each, GAMMAS.key) for each in FALSE.chain)), False),
        (shown(STRANGER), False),
        (shown(STRANGER) + BETA.server.cert, False),
        (b"", False),
    ],
)
@pytest.mark.parametrize("as_is", [False, True])
def test_who_comes_again_shows_the_certificate_of_that_clusters_server(cert: bytes, is_beta: bool, as_is: bool) -> None:
    alpha = _connected_by_invitation()
    assert BETA.entrance is not None
    entrance = msgspec.structs.replace(BETA.entrance, as_is=as_is)
    newcomer = msgspec.structs.replace(BETA, server=CertFiles(cert=cert), entrance=entrance)
    found = find_impostor(alpha, known_peers(alpha.entries)["beta"], newcomer, NOW)
    assert (found is None) == is_beta, found


@pytest.mark.parametrize(
    ("cert", "is_ours"),
    [
        (shown(AUTHORITIES["alpha"]), True),
        (BETA.server.cert, False),
        (shown(AUTHORITIES["alpha"], remote_leaf("beta")), False),  # what is given to who reads
        (shown(AUTHORITIES["alpha"], Leaf("x", server=True, hosts=("gamma.mesh.cilium.io",))), False),
        (shown(STRANGER, None, AUTHORITIES["alpha"]), False),
        (b"", False),
    ],
)
def test_who_has_the_certificate_of_a_server_by_the_own_authority_is_no_stranger(cert: bytes, is_ours: bool) -> None:
    newcomer = msgspec.structs.replace(BETA, server=CertFiles(cert=cert))
    assert is_one_of_ours(ALPHA, newcomer, NOW) == is_ours


def test_who_comes_again_and_was_known_by_an_authority_for_both_is_refused() -> None:
    alpha = msgspec.structs.replace(ALPHA, remote=files(KNOWN, issue(KNOWN, remote_leaf("alpha"), NOW)))
    alpha = joined(alpha, BETA)
    assert "beta.etcd-client-ca.crt" not in alpha.entries
    assert find_impostor(alpha, known_peers(alpha.entries)["beta"], BETA, NOW) is not None


def _connected_by_invitation() -> Member:
    link = offered_link(ALPHA, offer(BETA, "alpha", NOW), NOW, keep=False)
    agents, _ = entries(link, credentials(link, NOW))
    return msgspec.structs.replace(ALPHA, peers=agents)
