"""Running an etcd of our own: what it is told, when it is ready, and how it ends."""

import asyncio
import ctypes
import os
import signal
import socket
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from pki import Authority
from ports import free_port

from clustermesh.errors import Refused, Unavailable
from clustermesh.store.client import EtcdClient
from clustermesh.store.local import LocalEtcd, command

PR_SET_CHILD_SUBREAPER = 36


@pytest.fixture
def orphans_are_ours() -> Iterator[None]:
    """Take in the children of a killed child, so that the test can wait for them and leaves no zombie."""
    prctl = ctypes.CDLL(None).prctl
    assert prctl(PR_SET_CHILD_SUBREAPER, 1) == 0
    yield
    assert prctl(PR_SET_CHILD_SUBREAPER, 0) == 0


async def test_it_is_ready_when_started_and_gone_when_stopped(make_etcd, make_client) -> None:
    etcd = make_etcd()
    await etcd.start()
    pid = etcd.pid
    assert pid is not None
    assert await make_client(etcd).put(b"k", b"v") > 0
    await etcd.stop()
    assert etcd.pid is None
    assert not Path(f"/proc/{pid}").exists()
    await etcd.stop()


async def test_data_outlives_a_stop_and_a_kill(make_etcd, make_client) -> None:
    etcd = make_etcd()
    await etcd.start()
    await make_client(etcd).put(b"k", b"v")
    for end in (etcd.stop, lambda: asyncio.sleep(0, etcd.kill())):
        await end()
        await etcd.start()
        found = await make_client(etcd).get(b"k")
        assert found is not None


async def test_every_fresh_data_folder_is_a_cluster_of_its_own(make_etcd, make_client) -> None:
    etcd = make_etcd()
    await etcd.start()
    first = (await make_client(etcd).range(b"")).cluster_id
    await etcd.stop()
    await etcd.start()
    assert (await make_client(etcd).range(b"")).cluster_id == first
    await etcd.stop()
    etcd.data_dir = etcd.data_dir.with_name("empty")
    await etcd.start()
    assert (await make_client(etcd).range(b"")).cluster_id != first


async def test_it_listens_on_several_addresses(tmp_path: Path, stack, make_client) -> None:
    port = free_port()
    etcd = LocalEtcd(tmp_path / "etcd", [f"http://127.0.0.1:{port}", f"http://127.0.0.2:{port}"])
    stack.callback(etcd.kill)
    await etcd.start()
    for endpoint in etcd.endpoints:
        assert await make_client(endpoint).put(b"k", b"v") > 0


async def test_health_is_asked_for_with_the_certificate_given(tmp_path: Path, make_etcd) -> None:
    authority = Authority(tmp_path / "pki")
    server, admin = authority.issue("server", "127.0.0.1"), authority.issue("admin-alpha")
    etcd = make_etcd(tls=server, client_tls=admin)
    await etcd.start()
    stranger = Authority(tmp_path / "other", "other").issue("admin-alpha")
    wrong = make_etcd("wrong", tls=server, client_tls=stranger)
    with pytest.raises(Refused, match="certificate is not accepted"):
        await wrong.start()
    assert wrong.pid is None


async def test_a_taken_port_is_named(make_etcd) -> None:
    etcd = make_etcd()
    with socket.socket() as squatter:
        squatter.bind(("127.0.0.1", int(etcd.endpoints[0].rpartition(":")[2])))
        squatter.listen()
        with pytest.raises(Refused, match=rf"cannot listen on {etcd.endpoints[0]}: Address already in use"):
            await etcd.start()
    assert etcd.pid is None
    await etcd.start()


async def test_a_missing_program_says_what_to_install(make_etcd, monkeypatch) -> None:
    monkeypatch.setenv("PATH", "/nonexistent")
    with pytest.raises(Refused, match="apt-get install etcd-server"):
        await make_etcd().start()


async def test_an_etcd_that_will_not_start_is_quoted(make_etcd) -> None:
    with pytest.raises(Unavailable, match=r"etcd ended at once, see .*etcd\.log: .*no-such-flag"):
        await make_etcd(flags=["--no-such-flag"]).start()
    spoilt = make_etcd("spoilt")
    (spoilt.data_dir / "member" / "wal").mkdir(parents=True)
    (spoilt.data_dir / "member" / "snap").mkdir(parents=True)
    (spoilt.data_dir / "member" / "snap" / "db").write_bytes(b"nonsense" * 1000)
    with pytest.raises(Unavailable, match=r"etcd ended at once, see .*spoilt\.log: "):
        await spoilt.start()


async def test_a_cancelled_start_leaves_no_process(make_etcd) -> None:
    etcd = make_etcd()
    starting = asyncio.create_task(etcd.start())
    async with asyncio.timeout(60):
        while etcd.pid is None:
            await asyncio.sleep(0.001)
    pid = etcd.pid
    starting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await starting
    assert not Path(f"/proc/{pid}").exists()


async def test_a_stopped_process_is_ended_too(make_etcd) -> None:
    etcd = make_etcd()
    await etcd.start()
    pid = etcd.pid
    assert pid is not None
    os.kill(pid, signal.SIGSTOP)
    await etcd.stop(patience=0.2)
    assert not Path(f"/proc/{pid}").exists()


@pytest.mark.usefixtures("orphans_are_ours")
async def test_it_dies_with_its_parent(tmp_path: Path) -> None:
    """Also where the parent is killed and cleans up nothing."""
    script = (
        "import asyncio, sys; from pathlib import Path; from clustermesh.store.local import LocalEtcd\n"
        "async def main():\n"
        "    etcd = LocalEtcd(Path(sys.argv[1]), [sys.argv[2]])\n"
        "    await etcd.start(); print(etcd.pid, flush=True); await asyncio.sleep(600)\n"
        "asyncio.run(main())\n"
    )
    url = f"http://127.0.0.1:{free_port()}"
    parent = await asyncio.create_subprocess_exec(
        sys.executable, "-c", script, str(tmp_path / "etcd"), url, stdout=asyncio.subprocess.PIPE
    )
    assert parent.stdout is not None
    async with asyncio.timeout(60):
        pid = int(await parent.stdout.readline())
        parent.kill()
        await parent.wait()
        while os.waitpid(pid, os.WNOHANG) == (0, 0):  # noqa: ASYNC222  # with WNOHANG it does not wait
            await asyncio.sleep(0.02)
    async with EtcdClient([url], timeout=1.0) as client:
        with pytest.raises(Unavailable):
            await client.status()


def test_the_command_is_complete_for_exec(tmp_path: Path) -> None:
    tls = Authority(tmp_path / "pki").issue("server", "127.0.0.1")
    argv = command(tmp_path / "etcd", ["https://172.20.1.1:2379", "https://127.0.0.1:2379"], tls, flags=["--x=1"])
    assert argv[0] == "etcd"
    assert argv[-1] == "--x=1"
    assert "--listen-client-urls=https://172.20.1.1:2379,https://127.0.0.1:2379" in argv
    assert "--client-cert-auth" in argv
    assert "--auto-compaction-retention=1h" in argv
    assert not any("unsafe" in flag for flag in argv)
