"""An etcd of the operator's own: where others reach it, and what is said of its users."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from msgspec.structs import replace
from test_joining_checks import ALPHA, BETA, NOW, problems

from clustermesh.apiserver.users import REMOTE_ROLE, roles
from clustermesh.joining.external import find_entrance
from clustermesh.joining.member import CertFiles, Entrance
from clustermesh.joining.offers import offer, offered_link
from clustermesh.mesh.peer_files import PeerFile
from clustermesh.store import auth

DOCUMENT = Path(__file__).parents[3] / "docs" / "install.md"


@pytest.mark.parametrize(
    ("endpoints", "urls", "says"),
    [
        (
            ["https://a.example:2379", "https://b.example:2379"],
            ["https://a.example:2379", "https://b.example:2379"],
            "",
        ),
        (["https://192.0.2.7:32379"], ["https://192.0.2.7:32379"], ""),
        (["https://[fd00::7]:2379", "https://a.example"], ["https://[fd00::7]:2379", "https://a.example:2379"], ""),
        (["http://a.example:2379"], [], "is told by http://"),
        (["https://a.example:2379", "http://b.example:2379"], [], "is told by http://"),
        (["https://a.example:2379", "https://a.example:2380"], [], "at several ports, 2379, 2380"),
    ],
)
def test_others_reach_it_where_its_cluster_does_by_the_same_names(
    endpoints: list[str], urls: list[str], says: str
) -> None:
    found, hidden = find_entrance(PeerFile(name="alpha", endpoints=tuple(endpoints)))
    assert says in hidden
    assert (found is None) == bool(says)
    if found is not None:
        assert found.endpoints("alpha") == tuple(urls)
        assert found.aliases("alpha") == {}


def test_a_certificate_that_its_cluster_does_not_know_is_left_to_the_handshake() -> None:
    at = Entrance(("192.0.2.1",), 2379, as_is=True)
    assert problems(replace(ALPHA, entrance=at), BETA) == []
    assert problems(replace(ALPHA, entrance=at, server=CertFiles()), BETA) == []
    assert (
        problems(replace(ALPHA, entrance=replace(at, as_is=False), server=replace(ALPHA.server, cert=b"")), BETA) == []
    )
    known = replace(ALPHA, entrance=Entrance(("etcd.example",), 2379))
    assert "issue the Secret clustermesh-apiserver-server-cert" in str(problems(known, BETA)[0])


def test_who_is_invited_hears_that_the_certificate_is_good_for_the_addresses() -> None:
    own = replace(ALPHA, entrance=Entrance(("192.0.2.1",), 2379, as_is=True))
    told = offered_link(BETA, offer(own, "beta", NOW), NOW, keep=False)
    assert told.entrance.endpoints("alpha") == ("https://192.0.2.1:2379",)


def test_the_document_grants_what_the_api_server_grants_in_its_own_etcd() -> None:
    said = re.findall(r"^ +etcdctl role grant-permission remote read (--prefix )?(\S+)$", DOCUMENT.read_text(), re.M)
    wanted = roles(ALPHA.cluster)[REMOTE_ROLE]
    assert {(bool(prefix), key) for prefix, key in said} == {
        (bool(each.prefix), (each.prefix or each.key).decode()) for each in wanted
    }
    assert all(each.access is auth.Access.READ for each in wanted)
