"""Somebody unmounts the bpf filesystem while an agent runs: what was pinned there is there again, and never stopped."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from agent.bpf.bpffs import ensure_bpffs, is_bpffs
from agent.bpf.links import pinned_link
from agent.bpf.loader import Datapath
from agent.bpf.pin_folder import PinFolder
from agent.bpf.programs import link_info, map_info
from agent.bpf.syscalls import link_detach, object_get
from clustermesh.errors import Refused

pytestmark = pytest.mark.root


@pytest.fixture
def own(bpffs: Path, tmp_path: Path) -> Iterator[Path]:
    """A bpf filesystem of the test's own, which may be unmounted."""
    ensure_bpffs(tmp_path)
    yield tmp_path
    while is_bpffs(tmp_path):
        unmount(tmp_path)


def unmount(path: Path) -> None:
    subprocess.run(["umount", "-l", str(path)], check=True, timeout=60)


def detach(path: Path) -> None:
    with pinned_link(path) as link:
        assert link is not None
        link_detach(link)


def pinned(folder: Path) -> dict[str, int]:
    """What each pin is, by the kernel's number of it."""
    found = {}
    for path in sorted(folder.glob("*/*")):
        fd = object_get(path)
        try:
            found[str(path.relative_to(folder))] = (link_info if path.parent.name == "links" else map_info)(fd).id
        finally:
            os.close(fd)
    return found


def test_what_was_pinned_is_pinned_again_and_runs_on(own: Path, bpf_object: Path, cgroup: Path) -> None:
    path = own / "clustermesh"
    with closing(Datapath.open(bpf_object, path)) as datapath, closing(PinFolder(path, own)) as folder:
        datapath.attach_sockets(cgroup)
        before = pinned(path)
        assert {"v2/lb_services", "links/connect4"} <= before.keys()
        for _ in range(2):
            assert folder.is_there()
            unmount(own)
            assert not folder.is_there()
            assert folder.put_back() == len(before)
            assert pinned(path) == before
        assert folder.is_there()
    with closing(Datapath.open(bpf_object, path)) as following:  # as if the agent had been killed right then
        following.attach_sockets(cgroup)
        assert {hook.outcome for hook in following.hooks.values()} == {"adopted"}
        assert pinned(path) == before
    Datapath.remove(path)


def test_an_empty_one_that_somebody_mounted_meanwhile_is_taken(own: Path, bpf_object: Path) -> None:
    path = own / "clustermesh"
    with closing(Datapath.open(bpf_object, path)), closing(PinFolder(path, own)) as folder:
        before = pinned(path)
        unmount(own)
        ensure_bpffs(own)
        assert not folder.is_there()
        assert folder.put_back() == len(before)
        assert pinned(path) == before
    Datapath.remove(path)


def test_another_agents_place_is_left_to_it(own: Path, bpf_object: Path) -> None:
    from agent.api import alone_over

    path = own / "clustermesh"
    with closing(Datapath.open(bpf_object, path)), closing(PinFolder(path, own)) as folder:
        unmount(own)
        ensure_bpffs(own)
        with alone_over(path), pytest.raises(Refused, match="another agent holds"):
            folder.put_back()
        assert pinned(path) == {}
        assert folder.put_back()
    Datapath.remove(path)


def test_one_that_a_later_mount_covers_is_none(tmp_path: Path) -> None:
    """As /sys of a container over that of its machine: the list of mounts has both."""
    above = tmp_path / "sys"
    path = above / "bpf"
    path.mkdir(parents=True)
    ensure_bpffs(path)
    assert is_bpffs(path)
    assert is_bpffs(path / "not" / "there")
    subprocess.run(["mount", "-t", "tmpfs", "tmpfs", str(above)], check=True, timeout=60)
    try:
        path.mkdir()
        assert not is_bpffs(path)
        ensure_bpffs(path)
        assert is_bpffs(path)
        unmount(path)
        assert not is_bpffs(path)
    finally:
        unmount(above)
        unmount(path)


def test_a_program_of_sockets_whose_pin_is_gone_or_that_is_detached_is_missed_and_attached_again(
    own: Path, bpf_object: Path, cgroup: Path
) -> None:
    path = own / "clustermesh"
    with closing(Datapath.open(bpf_object, path)) as datapath:
        datapath.attach_sockets(cgroup)
        assert datapath.has_sockets()
        before = pinned(path)
        for name, lose in (("connect4", Path.unlink), ("recvmsg6", detach)):
            lose(path / "links" / name)
            assert not datapath.has_sockets()
            datapath.attach_sockets(cgroup)
            assert datapath.has_sockets()
        after = pinned(path)
        assert after.keys() == before.keys()
        assert {name for name in after if after[name] != before[name]} == {"links/connect4", "links/recvmsg6"}


def test_maps_that_are_pinned_no_more_are_pinned_again(own: Path, bpf_object: Path) -> None:
    path = own / "clustermesh"
    with closing(Datapath.open(bpf_object, path)) as datapath:
        before = pinned(path)
        assert datapath.pin_lost() == []
        (path / "v2" / "ct").unlink()
        assert datapath.pin_lost() == ["ct"]
        shutil.rmtree(path / "v2")
        assert {f"v2/{name}" for name in datapath.pin_lost()} == {name for name in before if name.startswith("v2/")}
        assert pinned(path) == before
        assert datapath.has_links_folder()
        (path / "links").rmdir()
        assert not datapath.has_links_folder()
