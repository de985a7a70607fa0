"""One table of kinds: whoever reads, holds or writes them walks that one."""

from __future__ import annotations

from clustermesh.apiserver.resources import DATA, canary_keys
from clustermesh.mesh.tables import own_tables, peer_tables
from clustermesh.mesh.view import KINDS, View
from clustermesh.model import Cluster, ClusterConfig
from clustermesh.wire import RESOURCES

OWN, CACHED = ClusterConfig(id=1), ClusterConfig(id=1, cached=True)


def test_a_view_has_a_table_for_each_kind_that_is_kept() -> None:
    assert set(View.__struct_fields__) - {"refused"} == set(KINDS)
    assert all(View().table(kind) == {} for kind in KINDS)


def test_of_a_peer_its_shared_data_is_read_and_behind_kvstoremesh_nothing_of_this_project() -> None:
    kinds = [table.kind for table in peer_tables("beta", OWN)]
    assert kinds == ["nodes", "identities", "endpoints", "services", "stamps"]
    assert [table.kind for table in peer_tables("beta", CACHED)] == kinds[:-1]
    assert all(table.prefix.startswith(b"cilium/cache/") for table in peer_tables("beta", CACHED))


def test_of_the_own_cluster_services_are_read_where_peers_read_them_and_where_agents_alone_do() -> None:
    tables = {table.kind: table for table in own_tables("alpha", OWN)}
    assert list(tables) == ["nodes", "identities", "endpoints", "services", "local_services"]
    for kind, other in (("services", "local_services"), ("local_services", "services")):
        twin = tables[kind].twin
        assert twin is not None
        assert twin.kind == other
        assert {key.startswith(tables[other].prefix) for key in twin.keys_of(("shop", "cart"))} == {True, False}
    assert not any(table.twin for table in [*peer_tables("beta", OWN), tables["nodes"], tables["endpoints"]])


def test_whatever_is_published_has_a_canary_and_whatever_is_read_is_published() -> None:
    assert len(canary_keys(Cluster(name="alpha", id=1))) == len(DATA)
    assert {r.name for r in RESOURCES.values() if (r.of_peers or r.of_own) and not r.optional} <= set(DATA)
