"""The commands that work on folders, from their arguments to what they print."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tarfile
from datetime import datetime, timedelta, tzinfo
from pathlib import Path
from typing import cast

import pytest
from click.testing import CliRunner, Result

from certs.check import facts
from certs.pair import load_pair
from clustermesh.cli import certs as certs_command
from clustermesh.cli import main, run
from clustermesh.standalone.context import create


def _do(*arguments: object) -> Result:
    return CliRunner().invoke(main, [str(a) for a in arguments])


def _good(*arguments: object) -> str:
    result = _do(*arguments)
    assert (result.exit_code, result.stderr) == (0, "")
    return result.stdout


@pytest.fixture
def alpha(tmp_path: Path) -> Path:
    _good("init", tmp_path / "alpha", "--name", "alpha", "--id", 1, "--endpoint", "https://172.20.1.1:2379")
    return tmp_path / "alpha"


@pytest.fixture
def beta(tmp_path: Path) -> Path:
    _good("init", tmp_path / "beta", "--name", "beta", "--id", 2, "--endpoint", "https://172.20.2.1:2379")
    return tmp_path / "beta"


def test_new_cluster_can_be_run_at_once(alpha: Path) -> None:
    shown = json.loads(_good("certs", "show", "--context", alpha, "-o", "json"))
    assert [(e["name"], e["state"]) for e in shown] == [
        (name, "good") for name in ("ca", "admin", "local", "remote", "server")
    ]


def test_context_comes_from_the_environment_too(alpha: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CLUSTERMESH_CONTEXT", str(alpha))
    assert "no connected clusters" in _good("peers")


def test_connect_list_disconnect(alpha: Path, beta: Path) -> None:
    assert "alpha reads beta at https://172.20.2.1:2379" in _good(
        "connect", "--context", alpha, "--destination-context", beta
    )
    assert "connected already" in _good("connect", "--context", alpha, "--destination-context", beta)
    again = _good("connect", "--context", alpha, "--destination-context", beta, "-o", "json")
    assert json.loads(again) == {"changed": False, "done": [], "warnings": []}
    (listed,) = json.loads(_good("peers", "--context", alpha, "-o", "json"))
    assert (listed["name"], listed["id"], listed["reads"], listed["readBy"]) == ("beta", 2, True, True)
    assert "yes" in _good("peers", "--context", alpha)
    assert "no longer reads" in _good("disconnect", "--context", alpha, "--destination-context", beta)
    assert "were not connected" in _good("disconnect", "--context", alpha, "--destination-context", beta)
    assert json.loads(_good("peers", "--context", beta, "-o", "json")) == []


def test_an_unknown_peer_is_an_error_that_names_the_known_ones(alpha: Path, beta: Path) -> None:
    result = _do("disconnect", "--context", alpha, "--peer", "nosuch")
    assert (result.exit_code, result.stdout) == (1, "")
    assert result.stderr == "error: alpha is not connected to nosuch; it is connected to: no cluster\n"
    _good("connect", "--context", alpha, "--destination-context", beta)
    assert "it is connected to: beta\n" in _do("disconnect", "--context", alpha, "--peer", "nosuch").stderr
    assert "no longer reads" in _good("disconnect", "--context", alpha, "--peer", "beta")
    assert _do("disconnect", "--context", alpha, "--peer", "beta").exit_code == 1


@pytest.mark.parametrize("left", ["beta.etcd-client.crt", "beta.etcd-client-ca.crt"])
def test_what_an_interrupted_disconnect_left_is_removed_by_the_same_command(alpha: Path, left: str) -> None:
    (alpha / "peers" / left).write_text("left")
    assert "removed" in _do("disconnect", "--context", alpha, "--peer", "beta").stdout
    assert os.listdir(alpha / "peers") == []


@pytest.mark.parametrize(
    ("prefix", "rule"),
    [
        ("0.0.0.0/0", "holds every address; name the prefixes that the other cluster's pods are in"),
        ("::/0", "holds every address; name the prefixes that the other cluster's pods are in"),
        ("127.0.0.0/8", "overlaps 127.0.0.0/8, where no cluster has pods; "),
        ("0.0.0.0/1", "overlaps 0.0.0.0/8, where no cluster has pods; "),
        ("fe80::/10", "overlaps fe80::/10, where no cluster has pods; "),
        ("224.0.0.0/4", "overlaps 224.0.0.0/3, where no cluster has pods; "),
        ("ff02::/16", "overlaps ff00::/8, where no cluster has pods; "),
        ("10.1.0.0/24", "is alpha's own: 10.1.0.0/16 of node alpha-1 in alpha; "),
        ("10.1.0.5/24", "must be a network"),
    ],
)
def test_a_prefix_that_never_holds_another_clusters_pods_is_refused(
    alpha: Path, beta: Path, prefix: str, rule: str
) -> None:
    node = "kind: Node\nmetadata: {name: alpha-1}\nspec: {podCIDR: 10.1.0.0/16}\n"
    (alpha / "manifests/nodes.yaml").write_text(node)
    result = _do("connect", "--context", alpha, "--destination-context", beta, "--allow-prefix", prefix)
    assert (result.exit_code, result.stdout, len(result.stderr.splitlines())) == (2, "", 1)
    assert result.stderr.startswith(f"error: allow-prefix: '{prefix}': {rule}")
    assert os.listdir(alpha / "peers") == []


@pytest.mark.parametrize(
    "command",
    [("certs", "show"), ("certs", "renew"), ("etcd",), ("apiserver",), ("peers",), ("status",), ("agent",)],
)
def test_a_folder_without_a_cluster_is_wrong_input(command: tuple[str, ...], tmp_path: Path) -> None:
    arguments = [sys.executable, "-m", "clustermesh.cli", *command, "--context", str(tmp_path / "nowhere")]
    done = subprocess.run(arguments, capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stdout, len(done.stderr.splitlines())) == (2, "", 1)
    assert "no cluster here" in done.stderr
    assert "clustermesh init" in done.stderr


def test_dead_cluster_is_left_with_a_warning_and_success(alpha: Path, beta: Path) -> None:
    _good("connect", "--context", alpha, "--destination-context", beta)
    beta.rename(beta.with_name("gone"))
    result = _do("disconnect", "--context", alpha, "--destination-context", beta)
    assert result.exit_code == 0
    assert result.stderr.startswith("warning: nothing was changed in beta")
    assert os.listdir(alpha / "peers") == []


def test_disconnect_takes_exactly_one_way_to_say_whom(alpha: Path, beta: Path) -> None:
    assert _do("disconnect", "--context", alpha).exit_code == 2
    assert _do("disconnect", "--context", alpha, "--peer", "beta", "--destination-context", beta).exit_code == 2
    assert _do("disconnect", "--context", alpha, "--peer", "alpha").exit_code == 2
    assert _do("disconnect", "--context", alpha, "--peer", "../certs").exit_code == 2
    assert (alpha / "certs" / "ca.key").exists()


def test_endpoint_from_the_command_line_is_checked_and_used(alpha: Path, beta: Path) -> None:
    arguments = ("connect", "--context", alpha, "--destination-context", beta, "--destination-endpoint")
    refused = _do(*arguments, "192.0.2.7:32379")
    assert refused.exit_code == 1
    assert "certs renew server --san 192.0.2.7" in refused.stderr
    _good("certs", "renew", "server", "--san", "192.0.2.7", "--context", beta)
    assert "at https://192.0.2.7:32379" in _good(*arguments, "192.0.2.7:32379")
    wrong = _do(*arguments, "http://x")
    assert wrong.exit_code == 2
    assert "destination-endpoint" in wrong.stderr


def test_show_names_what_is_wrong_and_fails(alpha: Path) -> None:
    (alpha / "certs" / "admin.key").unlink()
    result = _do("certs", "show", "--context", alpha)
    assert result.exit_code == 1
    assert "admin.key: No such file" in result.stderr
    assert f"`clustermesh certs renew admin --context {alpha}`" in result.stderr
    assert "unfit" in result.stdout


def test_with_a_broken_authority_no_certificate_is_to_be_renewed_before_it(alpha: Path) -> None:
    (alpha / "certs" / "ca.crt").write_text("garbage")
    lines = _do("certs", "show", "--context", alpha).stderr.splitlines()
    assert len(lines) == 5
    assert "put ca.crt and ca.key back from a copy" in lines[0]
    again = f"put ca right first, then look again with `clustermesh certs show --context {alpha}`"
    assert all(line.endswith(again) for line in lines[1:])


@pytest.mark.parametrize(
    ("days", "names", "remedy"),
    [
        (340, {"admin", "local", "remote", "server"}, "expires on "),
        (400, {"admin", "local", "remote", "server"}, "expired on "),
        (3640, {"ca", "admin", "local", "remote", "server"}, "certs renew ca "),
    ],
)
def test_what_has_expired_or_soon_will_is_shown_with_what_renews_it(
    alpha: Path, days: int, names: set[str], remedy: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Later(datetime):
        @classmethod
        def now(cls, tz: tzinfo | None = None) -> Later:
            return cast("Later", datetime.now(tz) + timedelta(days=days))

    monkeypatch.setattr(certs_command, "datetime", Later)
    result = _do("certs", "show", "--context", alpha)
    assert result.exit_code == 1
    assert {line.split("certs renew ")[1].split()[0] for line in result.stderr.splitlines()} == names
    assert remedy in result.stderr
    _good("certs", "renew", "--context", alpha)
    assert _do("certs", "show", "--context", alpha).exit_code == 0


def test_who_may_not_look_at_certificates_is_not_told_to_make_them_anew(
    alpha: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "access", lambda path, _: path != alpha / "certs")  # the tests run as root
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    result = _do("certs", "show", "--context", alpha)
    assert (result.exit_code, result.stdout) == (1, "")
    assert result.stderr == f"error: {alpha}/certs: Permission denied: run this as root\n"


def test_renew_without_names_repairs_what_is_unfit(alpha: Path) -> None:
    assert _good("certs", "renew", "--context", alpha) == "nothing is due\n"
    (alpha / "certs" / "admin.key").unlink()
    assert "renewed admin" in _good("certs", "renew", "--context", alpha)
    assert _do("certs", "show", "--context", alpha).exit_code == 0


def test_renew_all_is_every_leaf_and_not_the_authority(alpha: Path) -> None:
    printed = _good("certs", "renew", "--all", "--new-key", "--context", alpha)
    assert [line.split()[1].rstrip(",") for line in printed.splitlines()] == ["admin", "local", "remote", "server"]
    assert "renewed ca," in _good("certs", "renew", "ca", "--context", alpha)
    assert _do("certs", "show", "--context", alpha).exit_code == 0


def test_renew_refuses_a_name_it_does_not_know(alpha: Path) -> None:
    result = _do("certs", "renew", "../x", "--context", alpha)
    assert result.exit_code == 2
    assert "must be one of ca, admin, local, remote, server" in result.stderr


def test_init_brings_an_authority_from_elsewhere(alpha: Path, tmp_path: Path) -> None:
    create(tmp_path / "gamma", "gamma", 3, "172.20.3.1")
    authority = ("--ca-cert", alpha / "certs/ca.crt", "--ca-key", alpha / "certs/ca.key")
    assert "made ca (brought in)" in _good("certs", "init", "--context", tmp_path / "gamma", *authority)
    assert (tmp_path / "gamma/certs/ca.crt").read_bytes() == (alpha / "certs/ca.crt").read_bytes()
    assert _do("certs", "init", "--context", alpha, *authority[:2]).exit_code == 2


def test_issued_certificate_can_be_carried_away(alpha: Path, tmp_path: Path) -> None:
    out = tmp_path / "for-beta"
    _good("certs", "issue", "remote-beta", "--out", out, "--context", alpha)
    assert sorted(os.listdir(out)) == ["ca.crt", "remote-beta.crt", "remote-beta.key"]
    assert facts(load_pair(out, "remote-beta").certificate).common_name == "remote-beta"
    for name in ("../x", ".x", "ca", "", "a\nb", "x" * 65):
        assert _do("certs", "issue", name, "--out", out, "--context", alpha).exit_code == 2
    for name in ("a\nb", "x" * 201):
        refused = _do("certs", "issue", "remote-gamma", "--name", name, "--out", out, "--context", alpha)
        assert (refused.exit_code, "must be a file name" in refused.stderr) == (2, True)
    assert sorted(os.listdir(out)) == ["ca.crt", "remote-beta.crt", "remote-beta.key"]


@pytest.fixture
def became(monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """What the process would have become."""
    seen: list[list[str]] = []
    monkeypatch.setattr(os, "execv", lambda _path, argv: seen.append(argv))
    return seen


def test_agent_gets_its_arguments_untouched(became: list[list[str]]) -> None:
    _do("agent", "--context", "/x", "--node", "n1", "--help", "--", "-o")
    assert became == [[sys.executable, "-P", "-m", "agent", "--context", "/x", "--node", "n1", "--help", "--", "-o"]]


def test_etcd_listens_on_its_endpoint_and_the_loopback_and_asks_for_certificates(
    alpha: Path, became: list[list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("shutil.which", lambda _: "/usr/bin/etcd")
    _do("etcd", "--context", alpha, "--", "--snapshot-count=5")
    (argv,) = became
    assert argv[3:6] == ["clustermesh.store.keeper", str(alpha / "certs" / "ca.crt"), "/usr/bin/etcd"]
    assert "--listen-client-urls=https://172.20.1.1:2379,https://127.0.0.1:2379" in argv
    assert "--client-cert-auth" in argv
    assert argv[-1] == "--snapshot-count=5"
    assert (alpha / "etcd").stat().st_mode & 0o777 == 0o700


@pytest.mark.parametrize(
    ("endpoint", "urls"),
    [
        ("https://127.0.0.1:9", ["https://127.0.0.1:9"]),
        ("https://etcd.example:9", ["https://0.0.0.0:9"]),
        ("https://[fd00::1]:9", ["https://[fd00::1]:9", "https://127.0.0.1:9"]),
    ],
)
def test_etcd_binds_to_addresses_only(tmp_path: Path, endpoint: str, urls: list[str]) -> None:
    address = create(tmp_path, "alpha", 1, endpoint).address
    assert run._listen_urls(address.host, address.port) == urls


def test_etcd_is_not_started_with_certificates_it_would_choke_on(alpha: Path, became: list[list[str]]) -> None:
    (alpha / "certs" / "server.crt").write_bytes((alpha / "certs" / "admin.crt").read_bytes())
    result = _do("etcd", "--context", alpha)
    assert result.exit_code == 1
    assert "is not the key of" in result.stderr
    assert became == []


def test_etcd_that_is_not_installed_is_named(alpha: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shutil.which", lambda _: None)
    result = _do("etcd", "--context", alpha)
    assert result.exit_code == 1
    assert "install etcd" in result.stderr


def test_authority_is_replaced_in_all_folders_that_hold_what_it_signed(alpha: Path, beta: Path) -> None:
    _good("connect", "--context", alpha, "--destination-context", beta)
    held = (beta / "peers" / "alpha.etcd-client.crt").read_bytes()
    alone = _do("certs", "rotate", "--ca", "--settle", "0s", "--context", alpha)
    assert alone.exit_code == 1
    assert "alpha is connected to beta, which would lose it" in alone.stderr
    assert (beta / "peers" / "alpha.etcd-client.crt").read_bytes() == held
    before, strangers = (alpha / "certs" / "ca.crt").read_bytes(), (beta / "certs" / "ca.crt").read_bytes()
    both = ("--context", alpha, "--destination-context", beta)
    _good("certs", "rotate", "--ca", "--settle", "0s", *both)
    assert (alpha / "certs" / "ca.crt").read_bytes() != before
    assert (beta / "peers" / "alpha.etcd-client-ca.crt").read_bytes() == (alpha / "certs" / "ca.crt").read_bytes()
    assert (beta / "certs" / "ca.crt").read_bytes() == strangers
    assert not list((alpha / "certs").glob("rotation-*"))
    for each in (alpha, beta):
        found = json.loads(_good("certs", "status", "--context", each, "-o", "json"))
        assert {entry["state"] for entry in found} == {"good"}
        assert [entry["name"] for entry in found if entry["place"] == "peers"]
        assert _do("certs", "show", "--context", each).exit_code == 0
    assert "connected already" in _good("connect", *both)


def test_replacing_an_authority_goes_on_where_it_was_interrupted(alpha: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from clustermesh.joining import rotating

    async def interrupted(*_: object) -> None:
        raise OSError("interrupted")

    with monkeypatch.context() as patch:
        patch.setattr(rotating, "_settle", interrupted)
        assert _do("certs", "rotate", "--ca", "--settle", "0s", "--context", alpha).exit_code == 1
    meanwhile = (alpha / "certs" / "ca.crt").read_text()
    assert meanwhile.count("BEGIN CERTIFICATE") == 2
    shown = _do("certs", "status", "--context", alpha)
    assert (shown.exit_code, "`clustermesh certs rotate --ca` goes on" in shown.stderr) == (0, True)
    assert "end that with `certs rotate --ca`" in _do("certs", "rotate", "--context", alpha).stderr
    _good("certs", "rotate", "--ca", "--settle", "0s", "--context", alpha)
    assert (alpha / "certs" / "ca.crt").read_text() in meanwhile


def test_leaves_are_issued_again_and_what_is_missing_is_said(alpha: Path) -> None:
    before = {name: (alpha / "certs" / name).read_bytes() for name in ("ca.crt", "server.crt", "server.key")}
    _good("certs", "rotate", "--context", alpha)
    assert [name for name in before if (alpha / "certs" / name).read_bytes() == before[name]] == ["ca.crt"]
    (alpha / "certs" / "remote.crt").unlink()
    result = _do("certs", "status", "--context", alpha)
    assert (result.exit_code, "certs: is not there" in result.stderr) == (1, True)


def test_archive_of_a_folder_has_no_key_and_names_what_could_not_be_read(alpha: Path, beta: Path) -> None:
    _good("connect", "--context", alpha, "--destination-context", beta)
    keys = [path.read_bytes() for folder in ("certs", "peers") for path in (alpha / folder).glob("*.key")]
    assert len(keys) == 6
    (alpha / "manifests" / "noise.yaml").write_bytes(b"a: |\n" + b"".join(b"  " + e for e in keys[0].splitlines(True)))
    archive = alpha.parent / "a.tgz"
    result = _do("sysdump", "--context", alpha, "--socket", alpha / "none.sock", "--output-file", archive)
    assert result.exit_code == 0
    assert "nodes/here/status.json: Unavailable: error: no agent answers" in result.stderr
    with tarfile.open(archive) as opened:
        files = {each.name.partition("/")[2]: opened.extractfile(each) for each in opened}
        found = {name: file.read() for name, file in files.items() if file}
    assert {"folder/cluster.yaml", "folder/peers/beta", "folder/manifests/noise.yaml", "peers.json"} <= found.keys()
    assert not [name for name in found if name.endswith(".key")]
    lines = [line for key in keys for line in key.splitlines()[1:-1]]
    assert not [name for name, data in found.items() for line in lines if line in data]
