"""`clustermesh-apiserver etcdinit`, as Cilium's chart calls it, and the etcd that is started on what it leaves."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from pki import Authority
from ports import free_port

from clustermesh.errors import Refused, Unavailable
from clustermesh.store.client import EtcdClient
from clustermesh.store.local import LocalEtcd
from clustermesh.wire import keys

PROGRAM = Path(sys.executable).with_name("clustermesh-apiserver")
NAME = "--name=clustermesh-apiserver"


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Path]:
    """As an emptyDir that only its owner may write to; nothing beside it may be."""
    made = tmp_path / "pod" / "etcd"
    made.mkdir(parents=True)
    yield made
    assert [path.name for path in made.parent.iterdir()] == ["etcd"]


def init(folder: Path, *more: str, token: str = "a-pods-uid") -> subprocess.CompletedProcess[str]:
    argv = [PROGRAM, "etcdinit", "--etcd-cluster-name=clustermesh-apiserver"]
    argv += [f"--etcd-initial-cluster-token={token}", f"--etcd-data-dir={folder}", *more]
    environ = {**os.environ, "CILIUM_CLUSTER_NAME": "alpha"}
    return subprocess.run(argv, env=environ, capture_output=True, text=True, timeout=60, check=False)


def etcd_of_the_chart(folder: Path, authority: Authority, token: str = "a-pods-uid") -> LocalEtcd:
    """The container beside the API server, with the flags of the chart."""
    tls = authority.issue("clustermesh-apiserver.cilium.io", "127.0.0.1")
    flags = (NAME, f"--initial-cluster-token={token}", "--initial-cluster=clustermesh-apiserver=http://localhost:2380")
    flags += ("--listen-peer-urls=http://127.0.0.1:0", "--initial-advertise-peer-urls=http://localhost:2380")
    log = authority.folder / "etcd.log"
    url = f"https://127.0.0.1:{free_port()}"
    return LocalEtcd(folder, [url], tls, client_tls=authority.issue("admin-alpha"), flags=flags, log=log)


async def test_the_etcd_of_the_chart_knows_the_clusters_users_from_its_start(folder: Path, tmp_path: Path) -> None:
    done = init(folder)
    assert done.returncode == 0, done.stderr
    assert [path.name for path in folder.iterdir()] == ["member"]
    authority = Authority(tmp_path)
    etcd = etcd_of_the_chart(folder, authority)
    await etcd.start()
    try:
        async with EtcdClient(etcd.endpoints, authority.issue("admin-alpha")) as admin:
            await admin.put(keys.HEARTBEAT, b"now")
        async with EtcdClient(etcd.endpoints, authority.issue("remote")) as peer:
            assert (await peer.range(keys.HEARTBEAT)).kvs
            with pytest.raises(Refused):
                await peer.put(keys.HEARTBEAT, b"later")
        async with EtcdClient(etcd.endpoints, authority.issue("stranger")) as stranger:
            with pytest.raises((Refused, Unavailable)):
                await stranger.range(keys.HEARTBEAT)
    finally:
        await etcd.stop()


async def test_a_try_that_was_cut_short_is_begun_anew_as_an_etcd_of_its_own(folder: Path, tmp_path: Path) -> None:
    authority, ids = Authority(tmp_path), set()
    for token in ("first", "second"):
        assert init(folder, token=token).returncode == 0
        etcd = etcd_of_the_chart(folder, authority, token)
        await etcd.start()
        try:
            async with EtcdClient(etcd.endpoints, authority.issue("admin-alpha")) as admin:
                found = await admin.range(b"cilium/")
                ids.add(found.cluster_id)
                assert not found.kvs
                await admin.put(keys.HEARTBEAT, b"now")
        finally:
            await etcd.stop()
    assert len(ids) == 2


def test_a_folder_with_somebody_elses_files_is_left_alone(folder: Path) -> None:
    (folder / "thesis.txt").write_text("precious")
    done = init(folder)
    assert done.returncode == 1
    assert f"error: {folder}: has thesis.txt, which is no etcd's" in done.stderr
    assert (folder / "thesis.txt").read_text() == "precious"


@pytest.mark.parametrize(
    ("flag", "says"), [("--cluster-name=Alpha", "--cluster-name: 'Alpha'"), ("--timeout=2", "must be a time")]
)
def test_wrong_input_is_named(folder: Path, flag: str, says: str) -> None:
    done = init(folder, flag)
    assert done.returncode == 2
    assert says in done.stderr


def test_a_flag_of_another_release_is_ignored_with_a_warning(folder: Path) -> None:
    done = init(folder, "--debug", "--etcd-flavour=new")
    assert done.returncode == 0, done.stderr
    assert "--etcd-flavour=new: is no flag of this program, and ignored" in done.stderr
