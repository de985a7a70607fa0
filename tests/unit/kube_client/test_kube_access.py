"""Credentials: from where, how often they are read, and what happens to those that expire."""

from __future__ import annotations

import asyncio
import errno
import os
import stat
import sys
import tempfile
import zlib
from collections.abc import Callable
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import msgspec
import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from pki import Authority

from clustermesh.errors import ClusterMeshError, Invalid, Refused, Unavailable
from clustermesh.kube import credentials
from clustermesh.kube.access import Access, Grant, tls_context
from clustermesh.kube.client import KubeClient
from clustermesh.kube.config import find_access, from_kubeconfig, in_cluster
from clustermesh.kube.credentials import read
from clustermesh.kube.kubeconfig import MOST_BYTES, check_kubeconfig

SERVER = "https://192.0.2.1:6443"


_KEYS = st.sampled_from(
    ["clusters", "users", "contexts", "current-context", "name", "cluster", "user", "token", "exec"]
)


def _nested(inner: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    return st.lists(inner, max_size=3) | st.dictionaries(_KEYS, inner, max_size=4)


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    return Authority(tmp_path / "pki")


def kubeconfig(path: Path, user: dict[str, Any], **cluster: Any) -> str:
    config = {
        "clusters": [{"name": "c", "cluster": {"server": SERVER, **cluster}}],
        "users": [{"name": "u", "user": user}],
        "contexts": [
            {"name": "first", "context": {"cluster": "c", "user": "u"}},
            {"name": "nobody", "context": {"cluster": "c"}},
        ],
        "current-context": "first",
    }
    path.write_text(yaml.safe_dump(config))
    return str(path)


def plugin(path: Path, status: dict[str, Any], *before: str) -> dict[str, Any]:
    """An exec plugin that says `status` after the lines `before`; how often it ran is the size of `path`.ran."""
    said = {"apiVersion": "client.authentication.k8s.io/v1", "kind": "ExecCredential", "status": status}
    lines = [f"#!{sys.executable}", "import json, time", f"open({str(path) + '.ran'!r}, 'a').write('x')", *before]
    path.write_text("\n".join([*lines, f"print(json.dumps({said!r}))"]))
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    return {"exec": {"apiVersion": "client.authentication.k8s.io/v1", "command": str(path), "args": []}}


async def test_a_certificate_of_a_kubeconfig(tmp_path: Path, authority: Authority) -> None:
    pair = authority.issue("somebody")
    user = {"client-certificate": "pki/somebody.leaf.crt", "client-key": str(pair.key)}
    path = kubeconfig(tmp_path / "config", user, **{"certificate-authority": "pki/ca.crt", "tls-server-name": "kube"})
    grant = await from_kubeconfig(path).grant()
    assert (grant.server, grant.server_name, grant.header) == (SERVER, "kube", "")
    assert grant.tls is not None
    assert {file.name for file in grant.files} == {"config", "ca.crt", "somebody.leaf.crt", "somebody.leaf.key"}


async def test_a_token_file_is_read_again_when_it_changes(tmp_path: Path) -> None:
    (tmp_path / "token").write_text("one")
    access = from_kubeconfig(kubeconfig(tmp_path / "config", {"tokenFile": "token"}))
    assert (await access.grant()).header == "Bearer one"
    (tmp_path / "token.new").write_text("two")
    (tmp_path / "token.new").rename(tmp_path / "token")
    assert (await access.grant()).header == "Bearer two"


async def test_a_token_file_may_end_with_a_line_end(tmp_path: Path) -> None:
    (tmp_path / "token").write_text(" one \r\n\n")
    access = from_kubeconfig(kubeconfig(tmp_path / "config", {"tokenFile": "token"}))
    assert (await access.grant()).header == "Bearer one"


async def test_a_token_file_of_two_lines_is_refused(tmp_path: Path) -> None:
    (tmp_path / "token").write_text("one\ntwo\n")
    with pytest.raises(Refused, match="must be one line"):
        await from_kubeconfig(kubeconfig(tmp_path / "config", {"tokenFile": "token"})).grant()


async def test_a_token_file_of_nothing_but_white_space_is_refused(tmp_path: Path) -> None:
    (tmp_path / "token").write_text(" \n")
    with pytest.raises(Refused, match="is empty"):
        await from_kubeconfig(kubeconfig(tmp_path / "config", {"tokenFile": "token"})).grant()


async def test_what_is_wrong_is_said(tmp_path: Path) -> None:
    with pytest.raises(Refused, match="there is no context third; there are: first, nobody"):
        await from_kubeconfig(kubeconfig(tmp_path / "config", {"token": "secret"}), "third").grant()


def test_another_context(tmp_path: Path) -> None:
    path = kubeconfig(tmp_path / "config", {"token": "secret"})
    assert read(path, "").header == "Bearer secret"
    assert read(path, "nobody").header == ""


@pytest.mark.parametrize("users", [[], [{"name": "other", "user": {"token": "t"}}]])
def test_a_user_who_is_not_there_is_said_and_nobody_asks_without_credentials(tmp_path: Path, users: list[Any]) -> None:
    path = Path(kubeconfig(tmp_path / "config", {"token": "secret"}))
    path.write_text(yaml.safe_dump(yaml.safe_load(path.read_text()) | {"users": users}))
    with pytest.raises(Refused, match="context first: its user u is not among the users"):
        read(str(path), "")
    assert read(str(path), "nobody").header == ""


async def test_a_plugin_runs_again_when_what_it_gave_expires(tmp_path: Path) -> None:
    soon = (datetime.now(UTC) + timedelta(seconds=20)).strftime("%Y-%m-%dT%H:%M:%SZ")
    user = plugin(tmp_path / "plugin", {"token": "t", "expirationTimestamp": soon})
    access = from_kubeconfig(kubeconfig(tmp_path / "config", user))
    assert (await access.grant()).header == "Bearer t"
    await access.grant()
    assert (tmp_path / "plugin.ran").stat().st_size == 2, "20 s are as good as over"


async def test_a_plugin_runs_once_for_what_lasts(tmp_path: Path) -> None:
    access = from_kubeconfig(kubeconfig(tmp_path / "config", plugin(tmp_path / "plugin", {"token": "t"})))
    first = await access.grant()
    assert await access.grant() is first
    second = await access.grant(refused=first)
    assert second is not first
    assert await access.grant(refused=first) is second, "who comes late with the old one gets what there is"
    assert (tmp_path / "plugin.ran").stat().st_size == 2


def test_a_plugin_that_gives_a_certificate(tmp_path: Path, authority: Authority) -> None:
    pair = authority.issue("somebody")
    status = {"clientCertificateData": pair.cert.read_text(), "clientKeyData": pair.key.read_text()}
    found = read(kubeconfig(tmp_path / "config", plugin(tmp_path / "plugin", status)), "")
    assert (found.cert, found.key, found.header) == (pair.cert.read_text(), pair.key.read_text(), "")


def test_a_plugin_that_fails_is_said(tmp_path: Path) -> None:
    user = plugin(tmp_path / "plugin", {"token": "t"}, "raise SystemExit('no ticket')")
    with pytest.raises(PermissionError, match="no ticket"):
        read(kubeconfig(tmp_path / "config", user), "")


@pytest.mark.long
async def test_a_plugin_that_hangs_is_ended(tmp_path: Path) -> None:
    before = (f"import os; open({str(tmp_path / 'pid')!r}, 'w').write(str(os.getpid()))", "time.sleep(600)")
    user = plugin(tmp_path / "plugin", {"token": "t"}, *before)
    with pytest.raises(Unavailable, match="exec plugin"):
        await from_kubeconfig(kubeconfig(tmp_path / "config", user), patience=1.0).grant()
    if (tmp_path / "pid").exists():  # else it had not even begun
        async with asyncio.timeout(30):  # a kill takes its time on a busy machine
            while _runs(int((tmp_path / "pid").read_text())):
                await asyncio.sleep(0.01)


def _runs(pid: int) -> bool:
    """Whether the process lives; one that nobody has waited for yet does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


@pytest.mark.parametrize("text", ["", "[]", "{", "clusters: 7", "current-context: x\ncontexts: []\n"])
def test_garbage_is_an_error(tmp_path: Path, text: str, capfdbinary: pytest.CaptureFixture[bytes]) -> None:
    (tmp_path / "config").write_text(text)
    credentials.main([str(tmp_path / "config"), ""])
    assert msgspec.json.decode(capfdbinary.readouterr().out)["error"]


@pytest.mark.parametrize(
    ("spoilt", "says"),
    [
        ({"clusters": 5}, "clusters: 'int': must be a list"),
        ({"clusters": [5]}, r"clusters\[0\]: 'int': must be a mapping"),
        ({"clusters": [{"name": 5}]}, r"clusters\[0\].name: 'int': must be text"),
        ({"clusters": [{"name": "c", "cluster": []}]}, r"clusters\[0\].cluster: 'list': must be a mapping"),
        ({"clusters": [{"name": "c", "cluster": {"server": 5}}]}, "cluster.server: 'int': must be text"),
        ({"users": {}}, "users: 'dict': must be a list"),
        ({"users": [{"name": "u", "user": {"token": 5}}]}, "user.token: 'int': must be text"),
        ({"users": [{"name": "u", "user": {"exec": "x"}}]}, "user.exec: 'str': must be a mapping"),
        ({"users": [{"name": "u", "user": {"as": 5}}]}, "user.as: 'int': must be text"),
        ({"users": [{"name": "u", "user": {"as-groups": "x"}}]}, "user.as-groups: 'str': must be a list"),
        (
            {"users": [{"name": "u", "user": {"as-user-extra": {"a": [5]}}}]},
            r"as-user-extra.a\[0\]: 'int': must be text",
        ),
        ({"contexts": "x"}, "contexts: 'str': must be a list"),
        ({"current-context": ["first"]}, "current-context: 'list': must be text"),
    ],
)
def test_a_kubeconfig_of_another_shape_names_file_and_field(tmp_path: Path, spoilt: dict[str, Any], says: str) -> None:
    path = Path(kubeconfig(tmp_path / "config", {"token": "secret"}))
    path.write_text(yaml.safe_dump(yaml.safe_load(path.read_text()) | spoilt))
    with pytest.raises(Invalid, match=f"{path}: .*{says}"):
        read(str(path), "")


@pytest.mark.parametrize("data", [b"", b"[a, b]", b"hello", b"5", b"\xff\xfe\x00", b"a: [b", b"[" * 5000, b"a: \x00"])
def test_what_is_no_kubeconfig_is_said_in_one_line_with_its_name(
    tmp_path: Path, data: bytes, capfdbinary: pytest.CaptureFixture[bytes]
) -> None:
    path = tmp_path / "config"
    path.write_bytes(data)
    credentials.main([str(path), ""])
    error = msgspec.json.decode(capfdbinary.readouterr().out)["error"]
    assert error.startswith(f"{path}: ")
    assert "must " in error
    assert error.isprintable(), "a line of a log"


@pytest.mark.parametrize("make", [Path.mkdir, os.mkfifo])
def test_a_folder_or_a_pipe_in_a_kubeconfigs_place_is_said_at_once(tmp_path: Path, make: Callable[..., None]) -> None:
    make(tmp_path / "config")
    with pytest.raises((Invalid, Unavailable), match=r"config: .*(directory|must be a regular file)"):
        read(str(tmp_path / "config"), "")


def test_a_large_kubeconfig_is_refused_before_it_is_parsed(tmp_path: Path) -> None:
    path = Path(kubeconfig(tmp_path / "config", {"token": "secret"}))
    path.write_bytes(path.read_bytes() + b"#" * MOST_BYTES)
    with pytest.raises(Invalid, match="must be at most"):
        read(str(path), "")


@given(st.recursive(st.none() | st.booleans() | st.integers() | st.text(max_size=5), _nested, max_leaves=12))
def test_whatever_a_kubeconfig_says_is_taken_or_invalid(document: object) -> None:
    with tempfile.NamedTemporaryFile("w") as file:
        yaml.safe_dump(document, file)
        file.flush()
        with suppress(Invalid):
            check_kubeconfig(Path(file.name))


@pytest.mark.parametrize(
    ("grant", "says"),
    [
        (Grant(server=""), "server of the Kubernetes API: ''"),
        (Grant(server="127.0.0.1:6443"), "server .*'127.0.0.1:6443': must be https://HOST"),
        (Grant(server="ftp://host"), "must be https://HOST"),
        (Grant(server="https://host:99999"), "must be https://HOST"),
        (Grant(server="https://[::1"), "must be https://HOST"),
        (Grant(server="https://a b"), "must be https://HOST"),
        (Grant(server="https://" + "a" * 300), "must be https://HOST"),
        (Grant(server=SERVER, header="Bearer one\ntwo"), "token .* must be one line"),
        (Grant(server=SERVER, header="Bearer "), "token .* is empty"),
        (Grant(server=SERVER, proxy="http://u:secret@host:99999"), "proxy .* must be http://HOST:PORT"),
    ],
)
async def test_what_cannot_be_used_is_refused_before_it_is_tried(grant: Grant, says: str) -> None:
    async def read() -> Grant:
        return grant

    async with KubeClient(Access(read)) as client:
        with pytest.raises(Refused, match=says) as refused:
            await client.get("/api", "ask", {})
    assert "secret" not in str(refused.value)


def test_no_kubeconfig_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="nowhere"):
        read(str(tmp_path / "nowhere"), "")


async def test_a_service_account(tmp_path: Path, authority: Authority) -> None:
    environ = {"KUBERNETES_SERVICE_HOST": "fd00::1", "KUBERNETES_SERVICE_PORT": "443"}
    access = in_cluster(tmp_path, environ)
    with pytest.raises(Refused, match="token"):
        await access.grant()
    (tmp_path / "ca.crt").write_bytes(authority.ca.read_bytes())
    (tmp_path / "token").write_text("one\n")
    grant = await access.grant()
    assert (grant.server, grant.header) == ("https://[fd00::1]:443", "Bearer one")
    assert await access.grant() is grant
    (tmp_path / "token").write_text("another\n")
    assert (await access.grant()).header == "Bearer another"


async def test_a_kubeconfig_that_is_named_wins_over_the_service_account(tmp_path: Path) -> None:
    path = kubeconfig(tmp_path / "config", {"token": "t"})
    environ = {**os.environ, "KUBERNETES_SERVICE_HOST": "192.0.2.9"}
    assert (await find_access(path, environ=environ).grant()).server == SERVER


async def test_what_cannot_be_read_now_is_asked_for_again() -> None:
    answers: list[Grant | Exception] = [Unavailable("not now"), Grant(server=SERVER)]

    async def read() -> Grant:
        answer = answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return answer

    access = Access(read)
    with pytest.raises(Unavailable):
        await access.grant()
    assert (await access.grant()).server == SERVER


@pytest.mark.parametrize(("around", "proxy"), [("192.0.2.0/24,other", ""), ("other", "http://u:secret@proxy:3128")])
def test_the_proxy_of_the_environment_is_left_out_where_no_proxy_has_the_server(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, around: str, proxy: str
) -> None:
    monkeypatch.setenv("HTTPS_PROXY", "http://u:secret@proxy:3128")
    monkeypatch.setenv("NO_PROXY", around)
    assert read(kubeconfig(tmp_path / "k", {"token": "t"}), "").proxy == proxy


async def test_what_a_proxy_answers_is_told_without_its_password() -> None:
    async def refuse(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 407 Proxy Authentication Required\r\nContent-Length: 0\r\n\r\n")
        writer.close()

    async with await asyncio.start_server(refuse, "127.0.0.1", 0) as server:
        port = server.sockets[0].getsockname()[1]

        async def grant() -> Grant:
            return Grant(server=SERVER, tls=tls_context("", verify=False), proxy=f"http://u:secret@127.0.0.1:{port}")

        async with KubeClient(Access(grant)) as client:
            with pytest.raises(Unavailable, match="407 Proxy Authentication Required") as refused:
                await client.get("/api/v1/pods", "list pods", {})
    assert "secret" not in str(refused.value)


@pytest.mark.parametrize("encoding", ["gzip", "deflate"])
async def test_a_packed_answer_is_refused_unpacked_by_nobody(encoding: str) -> None:
    heads: list[bytes] = []
    body = zlib.compress(b'{"metadata": {}}', wbits=31 if encoding == "gzip" else 15)

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        heads.append(await reader.readuntil(b"\r\n\r\n"))
        head = f"HTTP/1.1 200 OK\r\nContent-Encoding: {encoding}\r\nContent-Length: {len(body)}\r\n\r\n"
        writer.write(head.encode() + body)
        writer.close()

    async with await asyncio.start_server(answer, "127.0.0.1", 0) as server:
        port = server.sockets[0].getsockname()[1]

        async def grant() -> Grant:
            return Grant(server=f"http://127.0.0.1:{port}")

        async with KubeClient(Access(grant)) as client:
            with pytest.raises(Unavailable, match=f"list pods: Content-Encoding of the answer: '{encoding}': must be"):
                await client.get("/api/v1/pods", "list pods", {})
    assert b"accept-encoding: identity" in heads[0].lower()


async def test_kinds_that_are_refused_at_once_share_what_is_read_anew() -> None:
    reads = 0

    async def read() -> Grant:
        nonlocal reads
        reads += 1
        return Grant(server=f"http://127.0.0.1:{port}", header="Bearer old" if reads == 1 else "Bearer new")

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 %s\r\nContent-Length: 2\r\nConnection: close\r\n\r\n{}" % verdict(head))
        writer.close()

    def verdict(head: bytes) -> bytes:
        return b"401 Unauthorized" if b"Bearer old" in head else b"200 OK"

    kinds = [f"/{number}" for number in range(5)]
    async with await asyncio.start_server(answer, "127.0.0.1", 0) as server:
        port = server.sockets[0].getsockname()[1]
        async with KubeClient(Access(read)) as client:
            for kind in kinds:
                with pytest.raises(ClusterMeshError):
                    await client.get(kind, "list", {})
            for kind in kinds:
                assert await client.get(kind, "list", {}, fresh=True) == b"{}"
    assert reads == 2


async def test_credentials_that_no_process_can_be_started_for_are_unavailable() -> None:
    async def read() -> Grant:
        raise BlockingIOError(errno.EAGAIN, os.strerror(errno.EAGAIN))

    with pytest.raises(Unavailable, match="Resource temporarily unavailable"):
        await Access(read).grant()
