"""What the operator wrote into a peer's file holds before the peer's first word, and over restarts."""

from __future__ import annotations

import asyncio
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import Any

import pytest
from msgspec.structs import replace

from clustermesh.address import parse, parse_prefix
from clustermesh.errors import Invalid, Unavailable
from clustermesh.mesh import last_good
from clustermesh.mesh.authority import Authority
from clustermesh.mesh.peer_files import PeerFile, encode_peer
from clustermesh.mesh.peers import Peers
from clustermesh.mesh.session import State
from clustermesh.mesh.state import MeshState
from clustermesh.mesh.tables import peer_tables
from clustermesh.mesh.view import View
from clustermesh.model import Cluster, ClusterConfig, Endpoint, Node, NodeAddress

CONFIG = ClusterConfig(id=2, max_connected_clusters=255)


class Sink(MeshState):
    """The mesh state, which takes no revisions."""

    def put(self, cluster: str, kind: str, name: Any, value: Any, revision: int = 0) -> None:
        super().put(cluster, kind, name, value)

    def remove(self, cluster: str, kind: str, name: Any, revision: int = 0) -> None:
        super().remove(cluster, kind, name)


class NoEtcd(AbstractAsyncContextManager[Any]):
    async def __aenter__(self) -> Any:
        raise Unavailable("no etcd here")

    async def __aexit__(self, *_error: object) -> None: ...


def write(folder: Path, *allowed: str) -> None:
    prefixes = tuple(map(parse_prefix, allowed))
    (folder / "beta").write_bytes(encode_peer(PeerFile(name="beta", endpoints=("http://192.0.2.9",), allowed=prefixes)))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "peers").mkdir()
    node = Node(
        cluster="beta",
        cluster_id=2,
        name="b1",
        addresses=(NodeAddress(type="InternalIP", ip=parse("192.0.2.2")),),
        pod_cidrs=(parse_prefix("203.0.113.0/25"),),
    )
    pods = {parse(f"203.0.113.{n}"): Endpoint(ip=parse(f"203.0.113.{n}"), identity=n << 16) for n in (1, 2)}
    view = View(nodes={"b1": node}, endpoints=dict(pods))
    last_good.save(tmp_path / "kept", "beta", last_good.encode(CONFIG, view))
    return tmp_path / "peers"


async def test_what_is_restored_is_judged_by_the_file_and_again_when_the_file_changes(folder: Path) -> None:
    state = Sink("alpha")
    state.admit_peers()
    own, keep = Cluster(name="alpha", id=1), folder.parent / "kept"
    write(folder, "203.0.113.0/24")
    peers = Peers(folder, own, state, lambda _file: NoEtcd(), peer_tables, keep, state.authorize)  # type: ignore[arg-type,return-value]
    async with asyncio.TaskGroup() as tasks:
        await peers.sync(tasks)
        assert [node.name for node in state.admitted_nodes()] == ["b1"]
        assert state.endpoint(parse("203.0.113.2")) is not None
        assert state.endpoint(parse("203.0.113.1")) is None, "its identity is ours"
        write(folder)
        await peers.sync(tasks)
        assert list(state.admitted_nodes()) == []
        write(folder, "203.0.113.0/24")
        await peers.sync(tasks)
        assert [node.name for node in state.admitted_nodes()] == ["b1"]
        for task in peers._tasks.values():
            task.cancel()


async def test_a_cluster_that_is_heard_for_the_first_time_is_authorized_by_its_configuration(folder: Path) -> None:
    granted = list[Authority]()
    last_good.forget(folder.parent / "kept", "beta")
    write(folder, "203.0.113.0/24")
    own, keep = Cluster(name="alpha", id=1), folder.parent / "kept"
    peers = Peers(folder, own, Sink("alpha"), lambda _file: NoEtcd(), peer_tables, keep, granted.append)  # type: ignore[arg-type,return-value]
    async with asyncio.TaskGroup() as tasks:
        await peers.sync(tasks)
        assert granted == []
        peers.admit("beta", CONFIG)
        for task in peers._tasks.values():
            task.cancel()
    assert granted == [Authority.of(Cluster(name="beta", id=2), (parse_prefix("203.0.113.0/24"),))]


@pytest.mark.parametrize(("kept", "lost", "newcomers"), [(None, set(), {"beta"}), (b"garbage", {"beta"}, set())])
async def test_a_cluster_of_which_something_is_kept_that_cannot_be_read_is_no_newcomer(
    folder: Path, kept: bytes | None, lost: set[str], newcomers: set[str]
) -> None:
    keep = folder.parent / "kept"
    last_good.forget(keep, "beta")
    if kept is not None:
        last_good.save(keep, "beta", kept)
    write(folder)
    peers = Peers(folder, Cluster(name="alpha", id=1), Sink("alpha"), lambda _file: NoEtcd(), peer_tables, keep)  # type: ignore[arg-type,return-value]
    async with asyncio.TaskGroup() as tasks:
        await peers.sync(tasks)
        for task in peers._tasks.values():
            task.cancel()
    assert (peers.lost, peers.newcomers) == (lost, newcomers)


async def test_a_cluster_that_is_known_to_be_kept_otherwise_than_the_kernel_has_it_is_not_restored(
    folder: Path,
) -> None:
    write(folder, "203.0.113.0/24")
    state, keep = Sink("alpha"), folder.parent / "kept"
    own = Cluster(name="alpha", id=1)
    peers = Peers(folder, own, state, lambda _file: NoEtcd(), peer_tables, keep, state.authorize)  # type: ignore[arg-type,return-value]
    peers.lost = {"beta", "disconnected-since"}
    async with asyncio.TaskGroup() as tasks:
        await peers.sync(tasks)
        for task in peers._tasks.values():
            task.cancel()
    assert ("beta" in state.views, peers.newcomers) == (False, set())
    assert peers.lost_files == [keep / "beta.state"]


async def test_a_cluster_whose_file_is_empty_for_a_while_stays_connected(folder: Path) -> None:
    state = Sink("alpha")
    state.admit_peers()
    own, keep = Cluster(name="alpha", id=1), folder.parent / "kept"
    write(folder, "203.0.113.0/24")
    peers = Peers(folder, own, state, lambda _file: NoEtcd(), peer_tables, keep, state.authorize)  # type: ignore[arg-type,return-value]
    async with asyncio.TaskGroup() as tasks:
        await peers.sync(tasks)
        reader = peers.readers["beta"]
        (folder / "beta").write_bytes(b"")
        await peers.sync(tasks)
        assert [problem.split(":")[0] for problem in peers.problems] == ["'beta'"]
        write(folder, "203.0.113.0/24")
        await peers.sync(tasks)
        assert (peers.problems, peers.readers) == ([], {"beta": reader})
        assert reader.session.state is State.STALE
        assert [node.name for node in state.admitted_nodes()] == ["b1"]
        for task in peers._tasks.values():
            task.cancel()


async def test_of_two_clusters_that_come_with_one_id_at_once_one_is_admitted(tmp_path: Path) -> None:
    for name in ("beta", "gamma"):
        (tmp_path / name).write_bytes(encode_peer(PeerFile(name=name, endpoints=("http://192.0.2.9",))))
    granted = list[Authority]()
    own = Cluster(name="alpha", id=1)
    peers = Peers(
        tmp_path,
        own,
        Sink("alpha"),
        lambda _file: NoEtcd(),  # type: ignore[arg-type,return-value]
        peer_tables,
        tmp_path / "kept",
        granted.append,
    )
    async with asyncio.TaskGroup() as tasks:
        await peers.sync(tasks)
        peers.admit("beta", CONFIG)  # its reader hears of it a moment later
        with pytest.raises(Invalid, match="already used by cluster beta"):
            peers.admit("gamma", CONFIG)
        peers.admit("beta", CONFIG)
        peers.admit("beta", replace(CONFIG, id=3))
        peers.admit("gamma", CONFIG)
        (tmp_path / "beta").unlink()
        await peers.sync(tasks)
        peers._leaving["beta"] = 0.0
        peers._forget_drained()
        peers.admit("gamma", replace(CONFIG, id=3))
        for task in peers._tasks.values():
            task.cancel()
    assert [(each.name, each.id) for each in granted][2:] == [("beta", 3), ("gamma", 2), ("gamma", 3)]
