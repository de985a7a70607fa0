"""What the agent is told, and what it keeps on disk for the next one."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from collections.abc import Coroutine
from contextlib import suppress
from pathlib import Path

import pytest
from fake_kernel import Bed

from agent import api, report, saving, work
from agent import main as main_module
from agent.bpf.probe import Feature
from agent.options import parse
from agent.outdated import Outdated
from agent.saving import keep_saved
from agent.saving import save as write_state
from agent.wireguard import tun
from agent.wireguard.userspace import UserspaceDevice
from clustermesh.errors import Invalid, Refused, Unavailable
from clustermesh.mesh import last_good
from clustermesh.mesh.session import Session, State


@pytest.fixture
def bed() -> Bed:
    return Bed()


def test_what_the_datapath_does_not_need_is_not_imported_before_it_is_being_opened() -> None:
    program = "import sys, agent.main; print(*sys.modules)"
    found = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=60)
    beside_it = {"agent.work", "cryptography", "hpack", "http.server", "prometheus_client", "pyroute2"}
    assert not beside_it & set(found.stdout.split())


def test_what_answers_over_http_is_not_imported_before_all_is_in_the_kernel() -> None:
    program = "import sys, agent.work; print(*sys.modules)"
    found = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=60)
    assert not {"http.server", "prometheus_client"} & set(found.stdout.split())


def test_of_pyroute2_only_what_a_node_needs_is_imported() -> None:
    program = "import sys, agent.work; print(*sys.modules)"
    found = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=60)
    others = {f"pyroute2.{name}" for name in ("conntrack", "ipset", "netlink.nfnetlink", "netlink.nl80211")}
    assert not others & set(found.stdout.split())


@pytest.mark.parametrize(
    "imports",
    [
        "from pyroute2 import IPRoute, IPSet; assert IPRoute is agent.pyroute.IPRoute",
        "import pyroute2; assert pyroute2.IPRoute is agent.pyroute.IPRoute; assert pyroute2.netns.listnetns",
        "from pyroute2 import netns; assert netns.listnetns; assert 'pyroute2.ipset' not in sys.modules",
        "import pyroute2; assert not hasattr(pyroute2, 'nosuch'); assert 'pyroute2.ipset' in sys.modules",
        "from pyroute2.ipset import IPSet; assert IPSet",
    ],
)
def test_whoever_else_in_an_agents_process_wants_pyroute2_has_all_of_it(imports: str) -> None:
    program = f"import sys, agent.pyroute; assert 'pyroute2.ipset' not in sys.modules; {imports}"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False, timeout=60)
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize(
    ("state", "attached", "read"),
    [(State.STALE, False, False), (State.STALE, True, True), (State.CONNECTING, False, True)],
    ids=["kept", "programmed", "nothing kept"],
)
async def test_what_was_kept_of_the_own_cluster_is_programmed_before_it_is_read_again(
    state: State, attached: bool, read: bool, bed: Bed
) -> None:
    bed.own.brain.session = Session(state=state)
    bed.peers.looked.set()
    if attached:
        bed.domains.attached.set()
    began: list[bool] = []

    async def run() -> None:
        began.append(True)

    bed.own.run = run  # type: ignore[method-assign]
    reading = asyncio.create_task(work._read_own(bed.own, bed.peers, bed.state, bed.domains.attached))
    await asyncio.sleep(0.01)
    assert began == [True] * read
    bed.domains.attached.set()
    await reading
    assert began == [True]


async def test_the_own_cluster_is_read_also_where_nothing_can_be_programmed(
    bed: Bed, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(work, "_KEPT_FIRST", 0.01)
    bed.own.brain.session = Session(state=State.STALE)
    began = asyncio.Event()

    async def run() -> None:
        began.set()

    bed.own.run = run  # type: ignore[method-assign]
    bed.peers.looked.set()
    await work._read_own(bed.own, bed.peers, bed.state, bed.domains.attached)
    assert began.is_set()


@pytest.mark.parametrize(
    "arguments",
    [
        ["--port", "0"],
        ["--port", "65536"],
        ["--port", "x"],
        ["--metrics", "9962"],
        ["--metrics", "host:99999"],
        ["--device", "sixteen-letters!"],
        ["--device", "a/b"],
        ["--device", ""],
        ["--node", ""],
        ["--node", "a/b"],
        ["--unknown"],
        ["--cluster-id", "5"],
        ["--kvstore-opt", "etcd.config=/etc/etcd.config"],
        ["--bpf-lb-map-max", "65535"],
        ["--bpf-lb-map-max", "16777217"],
        ["--bpf-lb-affinity-map-max", "1023"],
        ["--bpf-sock-rev-map-max", "9" * 30],
        ["--bpf-sock-rev-map-max", "-1"],
        ["--bpf-map-dynamic-size-ratio", "0.6"],
        ["--bpf-map-dynamic-size-ratio", "nan"],
        ["--bpf-map-dynamic-size-ratio", "1e-3"],
    ],
)
def test_a_wrong_option_is_exit_2_and_one_line(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        parse(arguments)
    assert stopped.value.code == 2
    assert capsys.readouterr().err.splitlines()[-1].startswith("clustermesh-agent: error:")


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (Refused("cannot listen on 127.0.0.1:9962"), 1),
        (Invalid("id", 0, "must be more"), 2),
        (ExceptionGroup("tasks", [ExceptionGroup("inner", [Refused("cannot listen on 127.0.0.1:9962")])]), 1),
        (ExceptionGroup("tasks", [Invalid("id", 0, "must be more")]), 2),
        (PermissionError(30, "Read-only file system", "/var/lib/clustermesh"), 1),
    ],
)
def test_what_ends_the_agent_is_one_line_and_an_exit_code(
    error: Exception, code: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    async def ends(_: object) -> None:
        raise error

    monkeypatch.setattr(main_module, "_until_stopped", ends)
    monkeypatch.setattr("sys.argv", ["clustermesh-agent", "--node", "n1"])
    with pytest.raises(SystemExit) as stopped:
        main_module.main()
    assert stopped.value.code == code
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: ")
    assert "Errno" not in line


def test_a_second_agent_is_refused_whichever_of_its_folders_the_first_one_has(tmp_path: Path) -> None:
    run, state, other = (tmp_path / name for name in ("run", "state", "other"))
    for second in ((run, other), (other, state), (run, state)):
        with api.alone(run, state), pytest.raises(Refused, match="stop it first"), api.alone(*second):
            pass
        with api.alone(*second):
            pass


def test_a_second_agent_over_the_same_maps_is_refused_with_folders_of_its_own(tmp_path: Path) -> None:
    pins = tmp_path / "pins"
    with api.alone_over(pins), pytest.raises(Refused, match="stop it first"), api.alone_over(pins):
        pass
    with api.alone_over(pins):
        assert list(pins.iterdir()) == []


def test_nothing_is_written_for_it_where_the_state_is(tmp_path: Path) -> None:
    (state := tmp_path / "state").mkdir()
    with api.alone(tmp_path / "run", state):
        assert list(state.iterdir()) == []


@pytest.mark.parametrize("option", ["run", "state"])
def test_a_folder_that_cannot_be_made_is_named_with_its_option(option: str, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    folders = [tmp_path / "file" / "x" if name == option else tmp_path for name in ("run", "state")]
    why = f"/file.*: Not a directory; give another folder with --{option}-dir"
    with pytest.raises(Refused, match=why), api.alone(*folders):
        pass


def test_what_is_missing_for_want_of_rights_is_said_once() -> None:
    remedy = "run as root"
    without = [Feature(name, False, True, "cannot be tried without bpf", remedy) for name in ("tcx", "sockets")]
    features = [Feature("bpf", False, True, "bpf(2) loads no program: Operation not permitted", remedy), *without]
    with pytest.raises(Refused, match=r"^bpf\(2\) loads no program: Operation not permitted \(run as root\)$"):
        main_module.check_needed(features)


def test_problems_are_logged_as_they_come_and_go(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    log = report.ProblemLog()
    for found in (["a: 1 left"], ["a: 2 left", "b"], ["a: 3 left"], []):
        log.note(found)
    assert caplog.messages == ["a: 1 left", "b", "1 problems are solved, 1 left", "1 problems are solved, 0 left"]


def test_options_have_defaults_and_name_their_places() -> None:
    options = parse(["--node", "n1", "--metrics", "", "--run-dir", "/r", "--state-dir", "/s"])
    assert (options.metrics, options.socket, options.last_good) == ("", Path("/r/agent.sock"), Path("/s/clusters"))
    assert parse(["--node", "n1", "--bpf-map-dynamic-size-ratio", ".0025"]).bpf_map_dynamic_size_ratio == 0.0025


async def save(bed: Bed, folder: Path, name: str) -> None:
    reader = bed.own if name == "alpha" else bed.peers.readers.get(name)
    await write_state(folder, bed.state, name, reader, Outdated(folder / "outdated"))


def saves(bed: Bed, folder: Path) -> Coroutine[None, None, None]:
    outdated = Outdated(folder.parent / "outdated")
    return keep_saved(folder, bed.state, bed.own, bed.peers, outdated)  # type: ignore[arg-type]


async def test_a_state_that_is_older_than_what_was_heard_and_cannot_be_saved_is_known_to_the_next_agent_as_old(
    bed: Bed, tmp_path: Path
) -> None:
    disk, folder, outdated = tmp_path / "disk", tmp_path / "clusters", Outdated(tmp_path / "outdated")
    disk.mkdir()

    async def save_to(place: Path) -> set[str]:
        folder.unlink(missing_ok=True)
        folder.symlink_to(place)
        await stop_soon(bed, folder)
        return outdated.clusters()

    bed.add_web("10.1.1.5", "10.1.1.6")
    assert await save_to(disk) == set()
    kept = last_good.path_of(disk, "alpha").read_bytes()
    (full := tmp_path / "full").symlink_to("/proc")  # where nobody makes a file
    bed.state.unsaved.add("alpha")
    assert await save_to(full) == {"alpha"}  # whatever is there, it is not this state
    assert await save_to(disk) == set()
    bed.add_web("10.1.1.5")
    bed.own.brain.session = Session(state=State.STALE)  # as a next agent has it, from that disk, and nothing is heard
    assert await save_to(full) == set()
    bed.own.brain.session = Session(state=State.FRESH)
    assert await save_to(full) == {"alpha"}
    assert bed.state.unsavable
    assert last_good.path_of(disk, "alpha").read_bytes() == kept


async def test_why_a_state_is_not_saved_is_one_sentence_for_all_clusters_and_at_each_try(bed: Bed) -> None:
    bed.connect("beta")
    bed.add_node("beta", 2)
    for name in ("alpha", "beta", "beta"):
        await save(bed, Path("/proc"), name)
        assert bed.sink.unsavable[name] == "/proc: No such file or directory"  # nobody makes a file there


async def test_what_an_agent_heard_just_before_it_was_stopped_is_kept(bed: Bed, tmp_path: Path) -> None:
    keeping = asyncio.create_task(saves(bed, tmp_path))
    bed.add_node("alpha", 1)
    while last_good.load(tmp_path, "alpha") is None:  # a file is no asyncio.Event
        await asyncio.sleep(0.001)
    bed.connect("beta")
    bed.add_node("beta", 2)
    await stop(keeping)
    kept = last_good.load(tmp_path, "beta")
    assert kept is not None
    assert kept.view.nodes == bed.state.views["beta"].nodes


async def test_a_memory_that_cannot_be_read_is_lost_until_another_is_written(bed: Bed, tmp_path: Path) -> None:
    bed.add_node("alpha", 1)
    bed.peers.lost.add("alpha")
    bed.own.brain.session = Session(state=State.SYNCING)
    await stop_soon(bed, tmp_path)
    assert bed.peers.lost
    bed.own.brain.session = Session(state=State.FRESH)
    await stop_soon(bed, tmp_path)
    assert not bed.peers.lost


async def stop_soon(bed: Bed, folder: Path) -> None:
    keeping = asyncio.create_task(saves(bed, folder))
    await asyncio.sleep(0)
    await stop(keeping)


@pytest.mark.parametrize("whole", [True, False])
async def test_what_is_gone_is_gone_from_disk_without_waiting_for_the_next_period(
    bed: Bed, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, whole: bool
) -> None:
    monkeypatch.setattr(saving, "_PERIOD", 3600.0)
    keeping = asyncio.create_task(saves(bed, tmp_path))
    bed.add_web("10.1.1.5", "10.1.1.6")
    while (before := last_good.load(tmp_path, "alpha")) is None:
        await asyncio.sleep(0.001)
    if whole:
        bed.sink.remove("alpha", "local_services", ("n", "web"), 0)
    else:
        bed.add_web("10.1.1.5")
    async with asyncio.timeout(20):
        while last_good.load(tmp_path, "alpha") == before:
            await asyncio.sleep(0.01)
    await stop(keeping)


async def test_what_is_heard_while_the_state_is_written_is_kept_by_an_agent_that_is_stopped_then(
    bed: Bed, tmp_path: Path
) -> None:
    bed.add_node("alpha", 1)
    keeping = asyncio.create_task(saves(bed, tmp_path))
    while bed.sink.unsaved:  # until it is encoded, to be written by a thread
        await asyncio.sleep(0)
    bed.add_node("alpha", 2)
    await stop(keeping)
    kept = last_good.load(tmp_path, "alpha")
    assert kept is not None
    assert len(kept.view.nodes) == 2


async def stop(task: asyncio.Task[None]) -> None:
    task.cancel()
    with suppress(asyncio.CancelledError):
        await task


async def test_only_a_whole_state_is_kept_and_a_partial_one_does_not_replace_it(bed: Bed, tmp_path: Path) -> None:
    bed.connect("beta")
    bed.add_node("beta", 2)
    await save(bed, tmp_path, "beta")
    bed.connect("beta", State.SYNCING)
    bed.sink.remove("beta", "nodes", "n2", 0)
    await save(bed, tmp_path, "beta")
    kept = last_good.load(tmp_path, "beta")
    assert kept is not None
    assert list(kept.view.nodes) == ["n2"]
    assert bed.sink.unsaved == {"beta"}


async def test_an_evicted_cluster_does_not_come_back_with_the_next_agent(bed: Bed, tmp_path: Path) -> None:
    bed.connect("beta")
    bed.add_node("beta", 2)
    await save(bed, tmp_path, "beta")
    bed.connect("beta", State.EVICTED)
    bed.sink.drain("beta")
    assert bed.sink.unsaved == {"beta"}
    await save(bed, tmp_path, "beta")
    assert last_good.load(tmp_path, "beta") is None
    assert not bed.sink.unsaved


async def test_a_removed_cluster_is_not_written_again(bed: Bed, tmp_path: Path) -> None:
    bed.connect("beta", State.REMOVED)
    bed.add_node("beta", 2)
    for reader in ("beta", "gone"):
        bed.sink.unsaved.add(reader)
        await save(bed, tmp_path, reader)
    assert list(tmp_path.iterdir()) == []
    assert not bed.sink.unsaved


async def test_a_disk_that_takes_nothing_is_tried_again_and_forgetting_on_it_is_survived(
    bed: Bed, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = tmp_path / "file"
    folder.write_text("where the folder should be")
    bed.connect("beta")
    bed.add_node("beta", 2)
    await save(bed, folder, "beta")
    assert bed.sink.unsaved == {"beta"}
    assert "is not saved" in caplog.text
    (tmp_path / "beta.state").mkdir()
    last_good.forget(tmp_path, "beta")
    last_good.forget_others(tmp_path, {"alpha"})
    assert "cannot be removed" in caplog.text


async def test_a_wireguard_process_that_cannot_be_started_is_tried_again_later(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tun, "make_persistent", lambda _name: None)
    (tmp_path / "run").write_text("a file where the folder of the sockets' folder should be")
    sockets = tmp_path / "run" / "sockets"
    device = UserspaceDevice("wg9", "no kernel WireGuard", log=tmp_path / "wg.log", sockets=sockets, binary="sh")
    with pytest.raises(Unavailable, match="sh cannot be started"):
        await device.ensure(b"", 1, 0, 1420)


async def test_a_socket_that_cannot_be_made_is_refused_with_its_path(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for path in (tmp_path / "file" / "agent.sock", tmp_path / ("x" * 120) / "agent.sock"):
        with pytest.raises(Refused, match="cannot listen on"):
            async with asyncio.timeout(20):
                await api.serve(path, {})
