"""A real folder, really watched: writes, swaps, removals, half-written files, folders that come and go."""

from __future__ import annotations

import asyncio
import os
import shutil
import time
from collections.abc import AsyncIterator, Callable
from contextlib import aclosing, asynccontextmanager
from pathlib import Path

import kube
import pytest

from clustermesh.settling import SETTLED
from clustermesh.sources.folder import FolderSource
from clustermesh.sources.scan import Scan, scan_files, scan_folder
from clustermesh.sources.snapshot import Change

PATIENCE = 20.0


@pytest.fixture
def root(tmp_path: Path) -> Path:
    folder = tmp_path / "manifests"
    folder.mkdir()
    return folder


class Follower:
    """A source being followed; `until` waits for a state of it."""

    def __init__(self, source: FolderSource) -> None:
        self.source = source
        self.changes: list[Change] = []
        self._news = asyncio.Condition()

    async def run(self) -> None:
        async with aclosing(self.source.updates()) as updates:
            async for change in updates:
                async with self._news:
                    self.changes.append(change)
                    self._news.notify_all()

    async def until(self, *services: str) -> None:
        await self.until_true(lambda: set(self.services()) == set(services))

    async def until_true(self, condition: object) -> None:
        async with asyncio.timeout(PATIENCE), self._news:
            await self._news.wait_for(lambda: self.changes and condition())  # type: ignore[operator]

    def services(self) -> list[str]:
        return sorted(name for _, name in self.source.snapshot.services)


@asynccontextmanager
async def followed(root: Path, rescan: float = 60.0) -> AsyncIterator[Follower]:
    follower = Follower(FolderSource(root, kube.ALPHA, rescan=rescan))
    task = asyncio.create_task(follower.run())
    try:
        async with asyncio.timeout(PATIENCE):
            while not follower.changes:
                await asyncio.sleep(0.005)
                if task.done():
                    task.result()
        yield follower
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


def swap_in(path: Path, text: str) -> None:
    """As a careful writer does."""
    temporary = path.with_name(f".{path.name}.tmp")
    temporary.write_text(text)
    temporary.rename(path)


def cart(name: str = "cart") -> str:
    return kube.dump(kube.service(name))


async def test_files_below_the_folder_are_read_and_others_are_not(root: Path) -> None:
    (root / "deep" / "er").mkdir(parents=True)
    (root / ".hidden").mkdir()
    (root / "a.yaml").write_text(cart("a"))
    (root / "deep" / "b.yml").write_text(cart("b"))
    (root / "deep" / "er" / "c.json").write_text('{"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "c"}}')
    (root / ".hidden" / "d.yaml").write_text(cart("d"))
    (root / ".e.yaml.swp").write_text(cart("e"))
    (root / "f.txt").write_text(cart("f"))
    async with followed(root) as follower:
        assert follower.services() == ["a", "b"]
        assert follower.source.problems() == []
        assert not follower.source.doubted


async def test_a_manifest_that_is_no_file_is_a_problem_and_everything_else_counts(root: Path) -> None:
    os.mkfifo(root / "pipe.yaml")
    (root / "loop.yaml").symlink_to("loop.yaml")
    (root / "nowhere.yaml").symlink_to("absent")
    (root / "folder.yaml").mkdir()
    (root / "folder.yaml" / "a.yaml").write_text(cart("a"))
    (root / "null.json").symlink_to("/dev/null")
    async with followed(root) as follower:
        assert follower.services() == ["a"]
        found = {problem.file: problem.sentence for problem in follower.source.problems()}
        assert found == {
            "folder.yaml": "Is a directory; kept as it was",
            "loop.yaml": "Too many levels of symbolic links; kept as it was",
            "nowhere.yaml": "No such file or directory; kept as it was",
            "null.json": "Is not a regular file; kept as it was",
            "pipe.yaml": "Is not a regular file; kept as it was",
        }
        assert follower.source.doubted, "nobody knows what there was in their place"


@pytest.mark.parametrize("make", [os.mkfifo, lambda path: os.symlink(path.name, path)])
async def test_what_stands_in_a_good_files_place_keeps_its_objects_and_is_a_problem(
    root: Path, make: Callable[[Path], None]
) -> None:
    (root / "a.yaml").write_text(cart("a"))
    async with followed(root) as follower:
        make(root / ".a.yaml")
        os.replace(root / ".a.yaml", root / "a.yaml")
        await follower.until_true(follower.source.problems)
        assert [problem.file for problem in follower.source.problems()] == ["a.yaml"]
        assert follower.services() == ["a"]
        swap_in(root / "a.yaml", cart("b"))
        await follower.until("b")
        assert follower.source.problems() == []


@pytest.mark.parametrize("look", [scan_folder, lambda root, *rest: scan_files(root, ["a.yaml"], *rest)])
def test_a_folder_in_a_good_files_place_does_not_count_as_its_removal(root: Path, look: Callable[..., Scan]) -> None:
    (root / "a.yaml").write_text(cart("a"))
    known = look(root, {}, time.time_ns()).read
    (root / "a.yaml").unlink()
    (root / "a.yaml").mkdir()
    found = look(root, known, time.time_ns())
    assert not found.removed
    assert found.read["a.yaml"].manifest.broken


async def test_writes_swaps_and_removals_are_noticed(root: Path) -> None:
    async with followed(root) as follower:
        (root / "a.yaml").write_text(cart("a"))
        await follower.until("a")
        swap_in(root / "b.yaml", cart("b"))
        await follower.until("a", "b")
        swap_in(root / "a.yaml", cart("a2"))
        await follower.until("a2", "b")
        (root / "b.yaml").unlink()
        await follower.until("a2")
        (root / "a.yaml").rename(root / "a.txt")
        await follower.until()


async def test_folders_that_come_and_go_are_noticed(root: Path, tmp_path: Path) -> None:
    (tmp_path / "ready").mkdir()
    (tmp_path / "ready" / "a.yaml").write_text(cart("a"))
    async with followed(root) as follower:
        (tmp_path / "ready").rename(root / "moved")
        await follower.until("a")
        (root / "moved" / "b.yaml").write_text(cart("b"))
        await follower.until("a", "b")
        (root / "moved").rename(tmp_path / "gone")
        await follower.until()


async def test_a_mounted_config_map_is_swapped_by_its_link(root: Path) -> None:
    for version, name in (("..1", "a"), ("..2", "b")):
        (root / version).mkdir()
        (root / version / "cart.yaml").write_text(cart(name))
    (root / "..data").symlink_to("..1")
    (root / "cart.yaml").symlink_to("..data/cart.yaml")
    async with followed(root) as follower:
        assert follower.services() == ["a"]
        (root / "..new").symlink_to("..2")
        (root / "..new").rename(root / "..data")
        await follower.until("b")


async def test_a_change_carries_the_time_of_the_write(root: Path) -> None:
    async with followed(root) as follower:
        swap_in(root / "a.yaml", cart("a"))
        await follower.until("a")
        assert follower.changes[-1].services == {("shop", "a"): (root / "a.yaml").stat().st_mtime_ns}
        before = time.time_ns()
        (root / "a.yaml").unlink()
        await follower.until()
        assert before <= follower.changes[-1].services["shop", "a"] <= time.time_ns()


async def test_a_file_being_written_keeps_its_objects_and_shows_the_problem(root: Path) -> None:
    (root / "a.yaml").write_text(kube.dump(kube.service("a"), kube.service("b")))
    async with followed(root) as follower:
        (root / "a.yaml").write_text(kube.dump(kube.service("a"), kube.service("b"))[:-30] + "{")
        await follower.until_true(follower.source.problems)
        assert follower.services() == ["a", "b"]
        assert follower.changes[-1] == Change()
        (root / "a.yaml").write_text(cart("a"))
        await follower.until("a")
        assert follower.source.problems() == []


async def test_a_file_found_empty_counts_as_empty_only_when_it_stays_so(root: Path) -> None:
    (root / "a.yaml").write_text(cart("a"))
    async with followed(root, rescan=0.3) as follower:
        (root / "a.yaml").write_text("")
        await follower.until_true(follower.source.problems)
        assert follower.services() == ["a"]
        assert "perhaps just being written" in str(follower.source.problems()[0])
        await follower.until()
        assert follower.source.problems() == []


async def test_a_file_that_became_shorter_in_place_counts_without_another_word_about_it(root: Path) -> None:
    (root / "a.yaml").write_text(cart("a") + "# a comment\n")
    async with followed(root) as follower:
        (root / "a.yaml").write_text(cart("b"))
        await follower.until("b")
        assert follower.source.problems() == []


def test_a_file_that_became_shorter_in_place_counts_once_it_rested(root: Path) -> None:
    path = root / "a.yaml"
    path.write_text(cart("a") + "# a comment\n")
    known = dict(scan_folder(root, {}, time.time_ns()).read)
    for written in (cart("b")[:40], cart("b"), cart("b") + "# a longer comment than before\n"):
        path.write_text(written)
        now = path.stat().st_mtime_ns + SETTLED - 1
        held = scan_files(root, ["a.yaml"], known, now).read["a.yaml"]
        assert (held.manifest.objects, held.manifest.broken) == ({}, True)
        known["a.yaml"] = held
    taken = scan_files(root, ["a.yaml"], known, now + 1).read["a.yaml"]
    assert [ref.name for ref in taken.manifest.objects] == ["b"]
    path.write_text(cart("c"))
    after = scan_files(root, ["a.yaml"], {"a.yaml": taken}, path.stat().st_mtime_ns).read["a.yaml"]
    assert after.held, "it is shorter again"


@pytest.mark.parametrize("held", [False, True])
def test_a_shorter_file_put_in_place_by_renaming_and_a_longer_one_written_in_place_count_at_once(
    root: Path, held: bool
) -> None:
    path = root / "a.yaml"
    path.write_text(cart("a") + "# a comment\n")
    known = dict(scan_folder(root, {}, time.time_ns()).read)
    if held:
        path.write_text(cart("a")[:40])
        known |= scan_files(root, ["a.yaml"], known, path.stat().st_mtime_ns).read
    swap_in(path, cart("b"))
    known |= scan_files(root, ["a.yaml"], known, path.stat().st_mtime_ns).read
    assert [ref.name for ref in known["a.yaml"].manifest.objects] == ["b"]
    path.write_text(cart("c") + "# a comment\n")
    longer = scan_files(root, ["a.yaml"], known, path.stat().st_mtime_ns).read["a.yaml"]
    assert [ref.name for ref in longer.manifest.objects] == ["c"]


async def test_a_folder_that_is_not_there_is_waited_for_and_one_that_goes_keeps_its_objects(root: Path) -> None:
    root.rmdir()
    async with followed(root, rescan=0.1) as follower:
        assert follower.source.doubted
        assert "No such file" in str(follower.source.problems()[0])
        root.mkdir()
        (root / "a.yaml").write_text(cart("a"))
        await follower.until("a")
        assert not follower.source.doubted
        shutil.move(root, root.with_name("elsewhere"))
        await follower.until_true(follower.source.problems)
        assert follower.services() == ["a"]
        root.mkdir()
        (root / "b.yaml").write_text(cart("b"))
        await follower.until("b")
        swap_in(root / "c.yaml", cart("c"))
        await follower.until("b", "c")


async def test_what_changes_while_nobody_iterates_is_not_lost(root: Path) -> None:
    source = FolderSource(root, kube.ALPHA, rescan=60.0)
    async with aclosing(source.updates()) as updates:
        assert await anext(updates) == Change()
        (root / "a.yaml").write_text(cart("a"))
        async with asyncio.timeout(PATIENCE):
            assert set((await anext(updates)).services) == {("shop", "a")}


@pytest.mark.parametrize("again", ["rescan", "told"])
def test_a_second_write_of_equal_size_within_one_tick_of_the_clock_is_seen(root: Path, again: str) -> None:
    (root / "a.yaml").write_text(cart("a"))
    known = dict(scan_folder(root, {}, time.time_ns()).read)
    stamp = (root / "a.yaml").stat()
    (root / "a.yaml").write_text(cart("b"))
    os.utime(root / "a.yaml", ns=(stamp.st_atime_ns, stamp.st_mtime_ns))
    look = scan_folder(root, known, time.time_ns()) if again == "rescan" else scan_files(root, ["a.yaml"], known, 0)
    assert [ref.name for ref in look.read["a.yaml"].manifest.objects] == ["b"]


def test_an_unchanged_folder_is_not_read_again(root: Path) -> None:
    (root / "a.yaml").write_text(cart("a"))
    os.utime(root / "a.yaml", ns=(1, 1))
    known = dict(scan_folder(root, {}, time.time_ns()).read)
    scan = scan_folder(root, known, time.time_ns())
    assert (scan.read, scan.removed, scan.error) == ({}, frozenset(), "")


def test_a_folder_that_cannot_be_listed_counts_as_unseen_not_as_empty(root: Path, monkeypatch: object) -> None:
    (root / "sub").mkdir()
    (root / "sub" / "a.yaml").write_text(cart("a"))
    known = dict(scan_folder(root, {}, time.time_ns()).read)
    shutil.move(root / "sub", root / "away")
    (root / "sub").symlink_to("loop")
    real = os.scandir

    def scandir(path: object) -> object:
        if str(path).endswith("away"):
            raise PermissionError(13, "Permission denied", str(path))
        return real(path)  # type: ignore[call-overload]

    monkeypatch.setattr(os, "scandir", scandir)  # type: ignore[attr-defined]  # root is refused nothing
    scan = scan_folder(root, known, time.time_ns())
    assert (scan.removed, "Permission denied" in scan.error) == (frozenset(), True)
