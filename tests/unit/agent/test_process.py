"""A helper process, with a tiny real one: it outlives its starter, is adopted; dead and hanging are told apart."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from agent.process import AskedHelper, HelperProcess, find_listener, runs
from clustermesh.errors import Unavailable

LISTEN = """
import signal, socket, sys
server = socket.socket(socket.AF_UNIX)
server.bind(sys.argv[1])
server.listen(8)
print("listening", flush=True)
while True:
    server.accept()[0].close()
"""
STARTER = 'pipe=$1; shift; mkfifo "$pipe"; while :; do read -r _ <"$pipe" && "$@"; done'
SECONDS = 20


@pytest.fixture
def path(tmp_path: Path) -> Iterator[Path]:
    """The helper's socket; whoever listens there at the end is ended."""
    path = tmp_path / "run" / "helper.sock"
    yield path
    if (pid := find_listener(path)) and pid != os.getpid():
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


def helper(path: Path, program: str = LISTEN) -> HelperProcess:
    argv = [sys.executable, "-ISc", program, str(path)]
    return HelperProcess(argv, socket=path, log=path.parent.parent / "log" / "helper.log")


def process_of(path: Path) -> int:
    pid = find_listener(path)
    assert pid
    return pid


async def freeze(pid: int) -> None:
    """Until it stands: for a moment after the signal it may go on."""
    os.kill(pid, signal.SIGSTOP)
    async with asyncio.timeout(SECONDS):
        while Path("/proc", str(pid), "stat").read_text().rpartition(")")[2].split()[0] != "T":
            await asyncio.sleep(0.001)


async def test_helper_listens_once_it_is_started_and_is_adopted_by_the_next(path: Path) -> None:
    assert await helper(path).adopt() is False
    await helper(path).start()
    before = process_of(path)
    assert await helper(path).adopt() is True
    assert process_of(path) == before
    assert runs(before)
    assert os.getsid(before) != os.getsid(0)


async def test_what_a_helper_prints_is_in_its_log_and_none_of_our_files_are_open_in_it(path: Path) -> None:
    with (path.parent.parent / "ours").open("w") as ours:
        os.set_inheritable(ours.fileno(), True)
        await helper(path).start()
    log = path.parent.parent / "log" / "helper.log"
    assert log.read_text() == "listening\n"
    fds = Path(f"/proc/{process_of(path)}/fd")
    assert (fds / "1").readlink() == (fds / "2").readlink() == log
    assert not any(_leads_to(link, "ours") for link in fds.iterdir())


def _leads_to(link: Path, name: str) -> bool:
    try:
        return link.readlink().name == name
    except FileNotFoundError:  # the connection that asked who listens, closed by now
        return False


async def test_killed_helper_is_noticed_and_its_socket_is_no_obstacle(path: Path) -> None:
    await helper(path).start()
    watching = asyncio.create_task(helper(path).died())
    await asyncio.sleep(0)
    assert not watching.done()
    os.kill(process_of(path), signal.SIGKILL)
    await asyncio.wait_for(watching, SECONDS)
    assert path.exists()
    assert await helper(path).adopt() is False
    await helper(path).start()
    assert await helper(path).adopt() is True


async def test_where_nobody_listens_it_is_dead_already(path: Path) -> None:
    await asyncio.wait_for(helper(path).died(), SECONDS)
    path.parent.mkdir()
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(path))
    await asyncio.wait_for(helper(path).died(), SECONDS)


async def test_hanging_helper_lives_and_is_adopted(path: Path) -> None:
    await helper(path).start()
    pid = process_of(path)
    await freeze(pid)
    assert await helper(path).adopt() is True
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(helper(path).died(), 0.05)
    assert runs(pid)


async def test_hanging_helper_whose_backlog_is_full_is_not_taken_for_dead(path: Path) -> None:
    await helper(path).start()
    pid = process_of(path)
    await freeze(pid)
    waiting = [socket.socket(socket.AF_UNIX) for _ in range(10)]
    for one in waiting:
        one.setblocking(False)
        with suppress(BlockingIOError):
            one.connect(str(path))
    assert find_listener(path) == 0
    assert await helper(path).adopt() is True
    os.kill(pid, signal.SIGKILL)
    for one in waiting:
        one.close()


async def test_helper_that_ends_at_once_is_quoted(path: Path) -> None:
    with pytest.raises(Unavailable, match="ended at once: the moon is in the way"):
        await helper(path, "import sys; sys.exit('the moon is in the way')").start()
    with pytest.raises(Unavailable, match=r"no-such-program .*ended at once"):
        await HelperProcess(["no-such-program", "x"], socket=path, log=path.with_suffix(".log")).start()


async def test_helper_that_never_listens_is_ended(path: Path) -> None:
    pid_file = path.parent.parent / "pid"
    program = f"import os, time; open({str(pid_file)!r}, 'w').write(str(os.getpid())); time.sleep(60)"
    with pytest.raises(Unavailable, match=r"does not listen after 0\.5 s"):
        await helper(path, program).start(seconds=0.5)
    async with asyncio.timeout(SECONDS):
        while pid_file.exists() and runs(int(pid_file.read_text())):
            await asyncio.sleep(0.01)


async def test_helper_that_cannot_have_a_log_runs_without_one_and_says_why(path: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    argv = [sys.executable, "-ISc", LISTEN, str(path)]
    process = HelperProcess(argv, socket=path, log=tmp_path / "file" / "helper.log")
    await process.start()
    assert find_listener(path)
    assert process.unlogged == f"{tmp_path}/file/helper.log: File exists"
    (tmp_path / "file").unlink()
    (tmp_path / "file").mkdir()
    assert process.unlogged == "", "the next one can have one"


async def test_helper_without_a_log_that_ends_at_once_says_so(path: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(Unavailable, match=r"ended at once: it has no log \("):
        await HelperProcess(["false", "x"], socket=path, log=tmp_path / "file" / "helper.log").start()


@contextmanager
def starting(pipe: Path, argv: Sequence[str]) -> Iterator[None]:
    """Somebody who runs `argv` once for each line of `pipe`."""
    with subprocess.Popen(["sh", "-c", STARTER, "sh", str(pipe), *argv], stdout=subprocess.DEVNULL) as shell:
        try:
            yield
        finally:
            shell.kill()


async def test_a_helper_that_somebody_else_starts_is_asked_for_when_there_is_none(path: Path) -> None:
    path.parent.mkdir()
    pipe = path.with_suffix(".start")
    asking = AskedHelper(socket=path, starter=pipe)
    with starting(pipe, [sys.executable, "-ISc", LISTEN, str(path)]):
        await asking.start()
        first = process_of(path)
        assert await AskedHelper(socket=path, starter=pipe).adopt() is True
        watching = asyncio.create_task(asking.died())
        os.kill(first, signal.SIGKILL)
        await asyncio.wait_for(watching, SECONDS)
        assert await asking.adopt() is False
        await asking.start()
        assert process_of(path) != first
        assert asking.unlogged == ""


async def test_of_a_helper_that_nobody_starts_it_is_said_whether_anybody_was_there_to_be_asked(path: Path) -> None:
    path.parent.mkdir()
    pipe = path.with_suffix(".start")
    asking = AskedHelper(socket=path, starter=pipe)
    with pytest.raises(Unavailable, match=r"nobody reads .*helper\.start to start"):
        await asking.start(seconds=0.05)
    os.mkfifo(pipe)
    with pytest.raises(Unavailable, match=r"nobody reads .*helper\.start to start"):
        await asking.start(seconds=0.05)
    pipe.unlink()
    with starting(pipe, ["true"]), pytest.raises(Unavailable, match=r"who reads .*helper\.start was asked"):
        await asking.start(seconds=1.0)
