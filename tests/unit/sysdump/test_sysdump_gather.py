"""Sources that fail, hang or never stop talking, and the archive that there is all the same."""

from __future__ import annotations

import asyncio
import io
import json
import tarfile
from pathlib import Path

import pytest

from clustermesh.errors import Refused, Unavailable
from clustermesh.sysdump import gather
from clustermesh.sysdump.gather import Bounds, Gathering, Source, as_list, pack, write_private
from clustermesh.sysdump.redact import Redactor


async def says(text: bytes) -> bytes:
    return text


async def fails(error: BaseException) -> bytes:
    raise error


async def hangs() -> bytes:
    await asyncio.Event().wait()
    raise AssertionError


def unpacked(data: bytes) -> dict[str, bytes]:
    with tarfile.open(fileobj=io.BytesIO(data)) as archive:
        return {each.name: archive.extractfile(each).read() for each in archive}  # type: ignore[union-attr]


async def test_one_that_fails_in_any_way_costs_the_others_nothing_and_is_named() -> None:
    errors = {
        "refused": Refused("not allowed"),
        "group": ExceptionGroup("all", [ExceptionGroup("some", [Refused("deep")])]),
        "bug": KeyError("metadata"),
        "file": FileNotFoundError(2, "No such file", "/x"),
    }
    gathering = Gathering(Bounds())
    sources = [Source(name, lambda e=error: fails(e)) for name, error in errors.items()]
    await gathering.ask([Source("slow", hangs, 0.2), *sources, Source("good", lambda: says(b"here"))])
    assert gathering.found.files == {"good": b"here"}
    assert gathering.found.missing == {
        "slow": "no answer within 0 s",
        "refused": "Refused: not allowed",
        "group": "Refused: deep",
        "bug": "KeyError: 'metadata'",
        "file": "FileNotFoundError: /x: No such file",
    }


async def test_time_and_room_have_an_end_and_a_log_keeps_its_last_lines() -> None:
    gathering = Gathering(Bounds(file=10, whole=25))
    await gathering.ask([Source(str(n), lambda: says(b"0123456789abcdef")) for n in range(4)])
    assert [gathering.found.files.get(str(n)) for n in range(3)] == [b"6789abcdef", b"6789abcdef", b"bcdef"]
    assert gathering.found.missing["0"] == "its last 10 of 16 bytes are here"
    assert gathering.found.missing["3"] == "not asked: there is no room"
    late = Gathering(Bounds(seconds=0.0))
    await late.ask([Source("a", hangs)])
    assert late.found.missing == {"a": "not asked: time is over"}


def test_of_a_list_that_is_too_long_there_are_as_many_whole_objects_as_fit() -> None:
    items = [{"n": n, "text": "x" * n} for n in range(40)]
    for room in (4, 30, 200, 1000, 100_000):
        data, kept = as_list(items, room)
        assert (json.loads(data), len(data) <= room) == (items[:kept], True)
    assert kept == len(items)


def test_an_archive_is_private_also_where_there_was_a_file_and_is_whole_or_not_there(tmp_path: Path) -> None:
    at, target = tmp_path / "a.tgz", tmp_path / "other"
    for make in (lambda: at.write_bytes(b"old"), lambda: at.symlink_to(target)):
        at.unlink(missing_ok=True)
        make()
        write_private(at, b"new")
        assert (at.read_bytes(), at.stat().st_mode & 0o777, target.exists()) == (b"new", 0o600, False)
    with pytest.raises(Unavailable, match=f"{tmp_path}/no/a.tgz: No such file"):
        write_private(tmp_path / "no" / "a.tgz", b"new")
    assert [each.name for each in tmp_path.iterdir()] == ["a.tgz"]


async def test_the_archive_is_its_owners_and_what_failed_is_in_it_without_secrets(tmp_path: Path) -> None:
    redactor, gathering = Redactor(), Gathering(Bounds())
    redactor.learn(b"sesame-open")
    await gathering.ask(
        [Source("a.log", lambda: says(b"it is sesame-open")), Source("b", lambda: fails(Refused("sesame-open")))]
    )
    write_private(tmp_path / "dump.tgz", pack(gathering.found, redactor, "top", {"context": "one"}))
    assert (tmp_path / "dump.tgz").stat().st_mode & 0o777 == 0o600
    found = unpacked((tmp_path / "dump.tgz").read_bytes())
    assert found.keys() == {"top/index.json", "top/a.log"}
    assert not any(b"sesame" in data for data in found.values())
    index = json.loads(found["top/index.json"])
    assert (index["context"], index["missing"]) == ("one", {"b": "Refused: REDACTED"})


async def test_a_program_that_hangs_is_ended_and_one_that_fails_says_why() -> None:
    with pytest.raises(Exception, match="no such thing"):
        await gather.run(["sh", "-c", "echo no such thing >&2; exit 3"])
    assert await gather.run(["sh", "-c", "echo partly; exit 3"]) == b"partly\n"
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.2):
            await gather.run(["sleep", "60"])
