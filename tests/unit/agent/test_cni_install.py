"""The CNI plugin on a node: it brings what it needs of Python, and is exchanged while it is used."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from agent.cni import install as installing
from agent.cni.install import ASIDE, CONFIGURATION, NAME, install

CONFIG = '{"cniVersion": "1.0.0", "name": "clustermesh", "type": "clustermesh-cni"}'
_HIDE = """\
mount --bind /dev/null "$1" && mount -t tmpfs tmpfs "$2" && shift 2 && exec "$@"
"""


def version(plugin: Path, *before: str) -> list[str]:
    done = subprocess.run(
        [*before, str(plugin)], input=CONFIG, env={"CNI_COMMAND": "VERSION"}, text=True, capture_output=True, check=True
    )
    assert done.stderr == ""
    return list(json.loads(done.stdout)["supportedVersions"])


def keys(binaries: Path) -> set[str]:
    return {each.name for each in (binaries / f"{NAME}.d").iterdir()}


def test_a_node_without_python_runs_the_plugin(tmp_path: Path) -> None:
    if shutil.which("unshare") is None or subprocess.run(["unshare", "--mount", "true"], check=False).returncode:
        pytest.skip("no mount namespace of its own (root, unshare): Python cannot be hidden")
    install(tmp_path / "bin", tmp_path / "conf")
    python, library = os.path.realpath(sys.executable), os.path.dirname(os.__file__)
    hidden = ["/usr/bin/unshare", "--mount", "/bin/sh", "-c", _HIDE, "sh", python, library]
    with pytest.raises(subprocess.CalledProcessError):
        subprocess.run([*hidden, python, "-c", "import os"], check=True, capture_output=True)
    assert "1.0.0" in version(tmp_path / "bin" / NAME, *hidden)


def test_the_runtime_is_told_of_our_network_and_others_are_put_aside(tmp_path: Path) -> None:
    conf = tmp_path / "conf"
    conf.mkdir()
    for name in ("10-bridge.conf", "05-other.conflist", "x.json", "notes.txt"):
        (conf / name).write_text(name)
    install(tmp_path / "bin", conf)
    assert {each.name for each in conf.iterdir()} == {
        "10-bridge.conf", "05-other.conflist", "x.json", "notes.txt", CONFIGURATION,
    }  # fmt: skip
    install(tmp_path / "bin", conf, exclusive=True)
    aside = {f"{name}{ASIDE}" for name in ("10-bridge.conf", "05-other.conflist", "x.json")}
    assert {each.name for each in conf.iterdir()} == {*aside, "notes.txt", CONFIGURATION}
    said = json.loads((conf / CONFIGURATION).read_text())
    assert [each["type"] for each in said["plugins"]] == [NAME]


def test_installing_again_changes_nothing_and_another_version_keeps_the_one_before_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    binaries = tmp_path / "bin"
    install(binaries, tmp_path / "conf")
    (first,) = keys(binaries)
    inode = (binaries / f"{NAME}.d" / first / "ld.so").stat().st_ino
    install(binaries, tmp_path / "conf")
    assert keys(binaries) == {first}
    assert (binaries / f"{NAME}.d" / first / "ld.so").stat().st_ino == inode
    for number in range(2):
        newer = tmp_path / f"plugin-{number}.py"
        newer.write_text(Path(installing.plugin.__file__).read_text() + f"# {number}\n")
        monkeypatch.setattr(installing.plugin, "__file__", str(newer))
        before = keys(binaries)
        install(binaries, tmp_path / "conf")
        assert len(keys(binaries)) == 2
        assert (keys(binaries) - before).isdisjoint({first})
        assert "1.0.0" in version(binaries / NAME)
    assert first not in keys(binaries)


def test_what_is_removed_leaves_nothing_of_ours_and_others_have_their_names_again(tmp_path: Path) -> None:
    binaries, configurations = tmp_path / "bin", tmp_path / "conf"
    configurations.mkdir()
    for name in ("10-other.conflist", "20-new.conf"):
        (configurations / name).write_text(name)
    (binaries / "theirs").parent.mkdir()
    (binaries / "theirs").touch()
    install(binaries, configurations, exclusive=True)
    (configurations / "20-new.conf").write_text("made since")
    for _ in range(2):
        installing.remove(binaries, configurations)
        assert [each.name for each in binaries.iterdir()] == ["theirs"]
        assert {each.name: each.read_text() for each in configurations.iterdir()} == {
            "10-other.conflist": "10-other.conflist",
            "20-new.conf": "made since",
            "20-new.conf.clustermesh_bak": "20-new.conf",
        }


def test_several_at_once_leave_one_that_works(tmp_path: Path) -> None:
    def run(_number: int) -> int:
        argv = [
            sys.executable,
            "-m",
            "agent.cni.install",
            "--bin-dir",
            tmp_path / "bin",
            "--conf-dir",
            tmp_path / "conf",
        ]
        return subprocess.run(argv, check=False).returncode

    with ThreadPoolExecutor(4) as several:
        assert list(several.map(run, range(4))) == [0, 0, 0, 0]
    assert len(keys(tmp_path / "bin")) == 1
    assert "1.0.0" in version(tmp_path / "bin" / NAME)


def test_what_was_cut_off_is_made_whole(tmp_path: Path) -> None:
    """A folder is there whole or not at all, so only what is beside it can be left over."""
    left = tmp_path / "bin" / f"{NAME}.d" / ".0123456789abcdef.1"
    left.mkdir(parents=True)
    install(tmp_path / "bin", tmp_path / "conf")
    assert not left.exists()
    assert "1.0.0" in version(tmp_path / "bin" / NAME)
