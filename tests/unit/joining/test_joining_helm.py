"""What Helm keeps of a release, and what is none."""

from __future__ import annotations

import asyncio
import base64
import gzip
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from clustermesh.errors import Invalid, Refused
from clustermesh.joining.deployment import find_fixed, find_moved
from clustermesh.joining.helm import Helm, Release, check_settled, decode_release, keep, list_releases
from clustermesh.joining.helm_program import Program
from clustermesh.joining.objects import Meta, Secret

KEPT = {
    "name": "mesh",
    "version": 3,
    "chart": {"metadata": {"name": "clustermesh", "version": "0.1.0"}, "values": {"a": {"b": 1, "c": 2}}},
    "config": {"a": {"b": 7}, "x": False},
}


async def test_a_secret_that_is_no_release_hides_no_other(caplog: pytest.LogCaptureFixture) -> None:
    good = Secret(metadata=Meta(name="sh.helm.release.v1.mesh.v3"), data={"release": packed(KEPT)})
    odd = Secret(metadata=Meta(name="sh.helm.release.v1.other.v1"), data={})

    class Found:
        namespace = "kube-system"

        async def list(self, *_: object) -> list[Secret]:
            return [odd, good]

    found: Any = Found()
    assert [each.last.name for each in await list_releases(found)] == ["mesh"]
    assert "sh.helm.release.v1.other.v1" in caplog.text


def packed(document: object) -> bytes:
    return base64.b64encode(gzip.compress(json.dumps(document).encode()))


@pytest.mark.parametrize(("key", "value"), [("a.b", 7), ("a.c", 2), ("x", False), ("x.y", None), ("nothing", None)])
def test_a_value_is_the_given_one_or_the_charts(key: str, value: object) -> None:
    release = decode_release(packed(KEPT), "secret")
    assert release.value(key) == value
    assert (release.name, release.chart.metadata.name) == ("mesh", "clustermesh")


@pytest.mark.parametrize(
    ("before", "after", "fixed"),
    [
        ({"enabled": False}, {"enabled": True, "endpoints": ["https://a:2379"]}, ["etcd.enabled"]),
        ({"enabled": True, "endpoints": ["https://a:2379"]}, {"enabled": False}, ["etcd.enabled", "etcd.endpoints"]),
        ({"endpoints": ["https://a:2379"]}, {"endpoints": ["https://b:2379"]}, ["etcd.endpoints"]),
        ({"endpoints": ["https://a:2379"]}, {"endpoints": ["https://b:2379", "https://a:2379"]}, []),
        ({"endpoints": ["https://b:2379", "https://a:2379"]}, {"endpoints": ["https://a:2379"]}, []),
        ({"endpoints": []}, {"endpoints": ["https://a:2379"]}, []),
    ],
)
def test_the_etcd_that_others_read_stays_while_they_do(
    before: dict[str, object], after: dict[str, object], fixed: list[str]
) -> None:
    assert list(find_fixed(Release(config={"etcd": before}), Release(config={"etcd": after}))) == fixed


@pytest.mark.parametrize(
    ("before", "after", "moved"),
    [
        (("NodePort", 32379, 2379), ("NodePort", 32379, 3379), ""),
        (("NodePort", 32379, 2379), ("NodePort", 32380, 2379), "clustermesh.apiserver.service.nodePort"),
        (("NodePort", 32379, 2379), ("NodePort", 0, 2379), ""),  # Kubernetes leaves it the one it has
        (("NodePort", 32379, 2379), ("LoadBalancer", 32379, 2379), ""),  # which has node ports, too
        (("NodePort", 32379, 2379), ("LoadBalancer", 32380, 2379), "clustermesh.apiserver.service.nodePort"),
        (("LoadBalancer", 32379, 2379), ("NodePort", 32379, 2379), "clustermesh.apiserver.service.type"),
        (("LoadBalancer", 32379, 2379), ("LoadBalancer", 32380, 2379), ""),
        (("LoadBalancer", 32379, 2379), ("LoadBalancer", 32379, 3379), "clustermesh.apiserver.etcd.port"),
        (("ClusterIP", 32379, 2379), ("NodePort", 32379, 2379), ""),
        (("ClusterIP", 32379, 2379), ("NodePort", 32379, 3379), "clustermesh.apiserver.etcd.port"),
    ],
)
@pytest.mark.parametrize("external", [False, True])
def test_where_others_find_a_cluster_stays_while_they_do(
    before: tuple[str, int, int], after: tuple[str, int, int], moved: str, *, external: bool
) -> None:
    def release(kind: str, node: int, port: int) -> Release:
        api = {"service": {"type": kind, "nodePort": node}, "etcd": {"port": port}}
        return Release(config={"etcd": {"enabled": external}, "clustermesh": {"apiserver": api}})

    assert "".join(find_moved(release(*before), release(*after))) == ("" if external else moved)


@given(st.binary() | st.binary().map(base64.b64encode) | st.binary().map(gzip.compress).map(base64.b64encode))
def test_garbage_is_no_release(data: bytes) -> None:
    with pytest.raises(Invalid):
        decode_release(data, "secret")


def test_a_release_that_grows_without_end_is_not_unpacked() -> None:
    with pytest.raises(Invalid, match="must be smaller"):
        decode_release(base64.b64encode(gzip.compress(bytes(65 << 20))), "secret")


def revision(version: int, status: str, name: str = "mesh") -> dict[str, object]:
    return {"name": name, "version": version, "info": {"status": status}}


@pytest.mark.parametrize(
    ("revisions", "expected"),
    [
        ([], []),
        ([(1, "deployed")], [(1, 1)]),
        ([(10, "deployed"), (9, "failed")], [(10, 10)]),
        ([(2, "failed"), (1, "deployed")], [(2, 1)]),
        ([(1, "deployed"), (2, "pending-upgrade")], [(2, 1)]),
        ([(1, "pending-install")], [(1, 1)]),
        ([(1, "failed"), (2, "failed")], [(2, 2)]),
        ([(1, "failed"), (2, "uninstalled")], []),
    ],
)
def test_a_release_is_its_last_revision_and_the_one_that_helm_goes_on_from(
    revisions: list[tuple[int, str]], expected: list[tuple[int, int]]
) -> None:
    releases = [decode_release(packed(revision(*each)), "secret") for each in revisions]
    other = decode_release(packed(revision(1, "deployed", "other")), "secret")
    found = [(each.last.version, each.base.version) for each in keep([*releases, other]) if each.last.name == "mesh"]
    assert found == expected


@pytest.mark.parametrize(
    ("revisions", "remedy"),
    [
        (
            [(1, "deployed"), (2, "pending-upgrade")],
            "`KUBECONFIG='/my config' /x/helm rollback mesh --namespace n --kube-context alpha`",
        ),
        ([(1, "pending-install")], "`clustermesh uninstall`"),
        ([(1, "uninstalling")], "`clustermesh uninstall`"),
    ],
)
def test_the_remedy_for_a_release_that_is_pending_can_be_typed_as_it_stands(
    revisions: list[tuple[int, str]], remedy: str
) -> None:
    (kept,) = keep(decode_release(packed(revision(*each)), "secret") for each in revisions)
    with pytest.raises(Refused) as caught:
        check_settled(kept, Helm(Program("/x/helm", "3.19.5"), "/my config", "alpha", "n", "chart"))
    assert remedy in str(caught.value)


def test_a_helm_that_is_interrupted_is_left_to_write_down_that_it_failed(tmp_path: Path) -> None:
    program, begun, ended = tmp_path / "helm", tmp_path / "begun", tmp_path / "ended"
    program.write_text(
        f"#!/bin/sh\ntrap 'sleep 0.2; head -c 300000 /dev/zero; echo failed > {ended}; exit 1' TERM\n"
        f"echo > {begun}\nwhile :; do sleep 0.05; done\n"
    )
    program.chmod(0o755)

    async def interrupt() -> None:
        deploying = asyncio.create_task(Helm(Program(str(program)), "", "", "default", "chart").deploy("mesh", []))
        while not begun.exists():
            await asyncio.sleep(0.01)
        deploying.cancel()
        with pytest.raises(asyncio.CancelledError):
            await deploying

    asyncio.run(interrupt())
    assert ended.read_text() == "failed\n"


@pytest.mark.parametrize(
    ("does", "says"),
    [
        ("exit 3", "helm: it ends with 3"),
        ("echo Error: unknown flag: --x >&2; exit 1", "helm: Error: unknown flag: --x"),
        ("echo {}", "must print a release with its objects, and prints b'{}"),
        ("echo hello", "must print a release, and prints b'hello"),
    ],
)
def test_a_helm_that_says_nothing_of_use_is_refused(tmp_path: Path, does: str, says: str) -> None:
    program = tmp_path / "helm"
    program.write_text(f"#!/bin/sh\n{does}\n")
    program.chmod(0o755)
    with pytest.raises(Refused, match=says):
        asyncio.run(Helm(Program(str(program)), "", "", "default", "chart").render("mesh", []))
