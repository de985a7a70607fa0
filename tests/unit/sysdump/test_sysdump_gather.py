"""Sources that fail, hang or never stop talking, and the archive that there is all the same."""

from __future__ import annotations

import asyncio
import io
import json
import tarfile
from pathlib import Path

import pytest

from clustermesh.errors import Refused
from clustermesh.sysdump import gather
from clustermesh.sysdump.gather import Bounds, Gathering, Source, pack, write_private
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


async def test_one_that_fails_in_any_way_costs_the_others_nothing_and_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gather, "_EACH", 0.2)
    errors = {
        "refused": Refused("not allowed"),
        "group": ExceptionGroup("all", [ExceptionGroup("some", [Refused("deep")])]),
        "bug": KeyError("metadata"),
        "file": FileNotFoundError(2, "No such file", "/x"),
    }
    gathering = Gathering(Bounds())
    sources = [Source(name, lambda e=error: fails(e)) for name, error in errors.items()]
    await gathering.ask([Source("slow", hangs), *sources, Source("good", lambda: says(b"here"))])
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
