"""A folder of YAML as a kubelet's API server: which Pods are mine, and reporting that never brings a Pod back."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
import yaml

from lab import manifests, pod_files, syscalls
from lab.plan import PodPlan
from lab.pod_files import PodFolder

KEY = ("default", "web-1")


def pod(name: str = "web-1", node: str = "one") -> dict[str, Any]:
    return manifests.pod(PodPlan(name=name, cluster="alpha", node=node, role="web"))


def write(path: Path, *documents: dict[str, Any]) -> Path:
    path.write_text(yaml.safe_dump_all(documents, sort_keys=False))
    return path


def test_only_pods_of_this_node_are_read_also_from_files_of_many_documents(tmp_path: Path) -> None:
    write(tmp_path / "all.yaml", {"kind": "Namespace", "metadata": {"name": "default"}}, pod(), pod("web-2", "two"))
    (tmp_path / "below").mkdir()
    write(tmp_path / "below" / "more.yml", pod("web-3"))
    write(tmp_path / "not.txt", pod("web-4"))
    write(tmp_path / ".hidden.yaml", pod("web-5"))
    assert sorted(PodFolder(tmp_path, "one").read()) == [KEY, ("default", "web-3")]


def test_a_changed_file_is_read_again_and_a_removed_one_forgotten(tmp_path: Path) -> None:
    folder, path = PodFolder(tmp_path, "one"), write(tmp_path / "a.yaml", pod())
    assert list(folder.read()) == [KEY]
    replaced = write(tmp_path / ".part", pod("web-2"))
    os.replace(replaced, path)
    assert list(folder.read()) == [("default", "web-2")]
    path.unlink()
    assert folder.read() == {}


def test_a_folder_that_is_not_there_for_a_moment_is_not_one_without_pods(tmp_path: Path) -> None:
    root = tmp_path / "manifests"
    root.mkdir()
    folder, _ = PodFolder(root, "one"), write(root / "a.yaml", pod())
    before = folder.read()
    root.rename(tmp_path / "elsewhere")
    assert folder.read() == before
    root.symlink_to("elsewhere")
    assert folder.read() == before
    (root / "a.yaml").unlink()
    assert folder.read() == {}


@pytest.mark.parametrize("text", ["a: [", "kind: Pod", "- 1", "null", "kind: Pod\nmetadata: 7\nspec: {}"])
def test_what_is_no_pod_is_passed_over(tmp_path: Path, text: str) -> None:
    (tmp_path / "bad.yaml").write_text(text)
    write(tmp_path / "good.yaml", pod())
    assert list(PodFolder(tmp_path, "one").read()) == [KEY]


def test_a_status_is_written_into_its_document_and_no_other(tmp_path: Path) -> None:
    document, other = pod(), pod("web-2")
    path = write(tmp_path / "a.yaml", other, document)
    assert pod_files.report(path, KEY, document["metadata"]["uid"], {"podIP": "10.1.1.2"})
    assert list(yaml.safe_load_all(path.read_text())) == [other, document | {"status": {"podIP": "10.1.1.2"}}]
    assert os.listdir(tmp_path) == ["a.yaml"]


def test_a_pod_deleted_or_replaced_before_is_not_reported(tmp_path: Path) -> None:
    document = pod()
    assert not pod_files.report(tmp_path / "a.yaml", KEY, document["metadata"]["uid"], {})
    path = write(tmp_path / "a.yaml", pod())  # the same name, another uid
    before = path.read_text()
    assert not pod_files.report(path, KEY, document["metadata"]["uid"], {"podIP": "10.1.1.2"})
    assert path.read_text() == before


def test_a_pod_deleted_at_the_last_moment_does_not_come_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    document = pod()
    path = write(tmp_path / "a.yaml", document)
    real = syscalls.exchange

    def deleted_first(one: str, other: str) -> None:
        path.unlink()
        real(one, other)

    monkeypatch.setattr(syscalls, "exchange", deleted_first)
    assert not pod_files.report(path, KEY, document["metadata"]["uid"], {"podIP": "10.1.1.2"})
    assert os.listdir(tmp_path) == []


def test_a_file_written_by_someone_else_at_the_last_moment_stays_theirs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    document, theirs = pod(), pod("web-9")
    path = write(tmp_path / "a.yaml", document)
    real, calls = syscalls.exchange, []

    def overwritten_first(one: str, other: str) -> None:
        if not calls:
            os.replace(write(tmp_path / ".theirs", theirs), path)
        calls.append(one)
        real(one, other)

    monkeypatch.setattr(syscalls, "exchange", overwritten_first)
    assert not pod_files.report(path, KEY, document["metadata"]["uid"], {"podIP": "10.1.1.2"})
    assert yaml.safe_load(path.read_text()) == theirs
    assert os.listdir(tmp_path) == ["a.yaml"]


def test_a_status_says_what_kubernetes_would() -> None:
    addresses, hosts = ["10.1.1.2", "fd00:10:1:1::2"], ["172.20.1.11", "fd00:172:20:1::11"]
    ready = pod_files.status(addresses, hosts, ready=True, containers=[])
    assert (ready["phase"], ready["podIP"], ready["hostIP"]) == ("Running", "10.1.1.2", "172.20.1.11")
    assert [each["ip"] for each in ready["podIPs"]] == addresses
    assert [each["ip"] for each in ready["hostIPs"]] == hosts
    assert {(one["type"], one["status"]) for one in ready["conditions"]} == {
        ("Ready", "True"),
        ("ContainersReady", "True"),
    }
    pending = pod_files.status([], hosts, ready=False, containers=[])
    assert pending["phase"] == "Pending"
    assert "podIP" not in pending
