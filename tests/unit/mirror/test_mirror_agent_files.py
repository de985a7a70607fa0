"""Agents are given every connected cluster, at the own etcd, and what is remembered of a peer."""

from pathlib import Path

from clustermesh.address import parse_prefix
from clustermesh.mesh.peer_files import PeerFile, read_peers
from clustermesh.mirror.agent_files import AgentAccess, keep_agent_files


def test_the_folder_names_exactly_the_connected_clusters(tmp_path: Path) -> None:
    for name in ("ca", "cert", "key"):
        (tmp_path / name).write_text(name)
    access = AgentAccess(
        folder=tmp_path / "cached",
        endpoints=("https://own:2379",),
        ca=tmp_path / "ca",
        cert=tmp_path / "cert",
        key=tmp_path / "key",
    )
    allowed = (parse_prefix("203.0.113.0/24"),)
    beta = PeerFile(
        name="beta",
        endpoints=("https://beta.mesh.cilium.io:2379",),
        ca=Path("/elsewhere"),
        host_aliases={"beta.mesh.cilium.io": ("192.0.2.2",)},
        cluster_id=2,
        allowed=allowed,
    )
    keep_agent_files([beta, PeerFile(name="gamma", endpoints=("http://gamma:2379",))], access)
    found, problems = read_peers(access.folder, "alpha")
    assert problems == []
    assert found.keys() == {"beta", "gamma"}
    assert found["beta"].endpoints == ("https://own:2379",)
    assert (found["beta"].cert, found["beta"].allowed, found["beta"].cluster_id) == (tmp_path / "cert", allowed, 2)
    assert not found["beta"].host_aliases
    before = (access.folder / "beta").stat().st_ino
    keep_agent_files([beta], access)
    assert [path.name for path in access.folder.iterdir()] == ["beta"]
    assert (access.folder / "beta").stat().st_ino == before, "what is right is left alone"


def test_what_is_no_peers_file_stays(tmp_path: Path) -> None:
    for name in ("cluster.yaml", "users.yaml"):
        (tmp_path / name).write_text("precious")
    (tmp_path / "folder").mkdir()
    (tmp_path / "gone").write_text("endpoints:\n- http://own:2379\n")
    keep_agent_files([], AgentAccess(folder=tmp_path, endpoints=("http://own:2379",)))
    assert {path.name for path in tmp_path.iterdir()} == {"cluster.yaml", "users.yaml", "folder"}


def test_a_folder_that_cannot_be_written_ends_nothing() -> None:
    keep_agent_files(
        [PeerFile(name="beta", endpoints=("http://b:2379",))], AgentAccess(folder=Path("/proc/x"), endpoints=())
    )
