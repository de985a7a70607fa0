"""Which Helm is called."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
from click.testing import CliRunner

from clustermesh.cli import main
from clustermesh.joining import helm_program
from clustermesh.joining.helm_program import Duty, find_program

NEW, OLD = "#!/bin/sh\necho v3.19.5+g1\n", "#!/bin/sh\necho v3.13.3\n"
ELDEST = "#!/bin/sh\necho Client: v2.17.0\necho Error: could not find tiller >&2\nexit 1\n"
SILENT, TALKER = "#!/bin/sh\n", "#!/bin/sh\necho hello v3\n"
HANGING = "#!/bin/sh\nexec /bin/sleep 100\n"
STUBBORN = "#!/bin/sh\ntrap '' TERM\n/bin/sleep 100\n"
FOREIGN = "\x7fELF of another machine"


@pytest.fixture
def places(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Path]:
    """Where a Helm may be: the user's own, the wheel's, the checkout's. There is none."""
    found = {name: tmp_path / name / "helm" for name in ("own", "carried", "built")}
    for each in found.values():
        each.parent.mkdir()
    monkeypatch.setenv("PATH", str(tmp_path / "own"))
    monkeypatch.setattr(helm_program, "PLACES", (found["carried"], found["built"]))
    monkeypatch.setattr(helm_program, "_PATIENCE_VERSION", 0.5)
    return found


def write(program: Path, text: str, mode: int = 0o755) -> None:
    program.write_text(text)
    program.chmod(mode)


@pytest.mark.parametrize(
    ("there", "used", "version"),
    [
        (("own", "carried", "built"), "own", "3.19.5"),
        (("carried", "built"), "carried", "3.19.5"),
        (("built",), "built", "3.19.5"),
    ],
)
def test_the_users_own_comes_first_then_the_wheels_then_the_checkouts(
    places: dict[str, Path], there: tuple[str, ...], used: str, version: str
) -> None:
    for name in there:
        write(places[name], NEW)
    found = asyncio.run(find_program())
    assert (found.path, found.version, found.passed) == (str(places[used]), version, ())


@pytest.mark.parametrize(
    ("own", "why"),
    [
        (OLD, "Helm 3.14 or newer (not 4) is needed, and it is 3.13.3"),
        ("#!/bin/sh\necho v4.0.1+g12500dd\n", "Helm 3.14 or newer (not 4) is needed, and it is 4.0.1"),
        (ELDEST, "helm: Error: could not find tiller"),
        (SILENT, "must print its version, and prints b''"),
        (TALKER, "must print its version, and prints b'hello v3"),
        (HANGING, "helm has not ended after 0.5 s"),
        (STUBBORN, "helm has not ended after 0.5 s"),
        (FOREIGN, "helm: it cannot be started: Exec format error"),
        ("#!/no/such/interpreter\n", "helm: it cannot be started: No such file or directory"),
    ],
)
def test_an_own_one_that_is_of_no_use_is_passed_over_and_it_is_said_why(
    places: dict[str, Path], own: str, why: str
) -> None:
    write(places["own"], own)
    write(places["carried"], NEW)
    found = asyncio.run(find_program())
    (passed,) = found.passed
    assert (found.path, passed.startswith(f"{places['own']} is not used: "), why in passed) == (
        str(places["carried"]),
        True,
        True,
    ), passed


@pytest.mark.parametrize(
    ("says", "version"),
    [("v3.14.0", "3.14.0"), ("v3.99.1+g12500dd", "3.99.1"), ("v3.19", "3.19"), ("v3.100.0-rc.1", "3.100.0")],
)
def test_any_that_is_new_enough_is_the_users_choice(places: dict[str, Path], says: str, version: str) -> None:
    write(places["own"], f"#!/bin/sh\necho {says}\n")
    write(places["carried"], NEW)
    found = asyncio.run(find_program())
    assert (found.path, found.version) == (str(places["own"]), version)


@pytest.mark.parametrize(
    ("says", "used", "needed"),
    [
        ("v3.0.0", "own", ""),
        ("v3.13.3", "own", ""),
        ("v2.17.0", "carried", "Helm 3 is needed"),
        ("v4.0.1", "carried", "Helm 3 is needed"),
    ],
)
def test_any_helm_3_uninstalls(places: dict[str, Path], says: str, used: str, needed: str) -> None:
    write(places["own"], f"#!/bin/sh\necho {says}\n")
    write(places["carried"], NEW)
    found = asyncio.run(find_program(Duty.UNINSTALL))
    assert (found.path, needed in "".join(found.passed)) == (str(places[used]), True)


def test_one_that_nobody_may_start_is_named_where_it_is_the_only_one(places: dict[str, Path]) -> None:
    write(places["carried"], NEW, 0o644)
    found = asyncio.run(find_program())
    assert (found.path, found.version) == ("", "")
    assert f"{places['carried']} is not used: helm: it cannot be started: Permission" in found.missing
    write(places["built"], NEW)
    found = asyncio.run(find_program())
    assert (found.path, len(found.passed)) == (str(places["built"]), 1)


def test_where_there_is_none_at_all_it_is_said_what_to_do(places: dict[str, Path]) -> None:
    said = asyncio.run(find_program()).missing
    assert "there is none in PATH, and none came with this program. Put Helm 3.14 or newer" in said
    assert "Put Helm 3 into PATH" in asyncio.run(find_program(Duty.UNINSTALL)).missing


@pytest.mark.parametrize("hanging", [HANGING, STUBBORN])
def test_version_waits_for_none_that_hangs(
    places: dict[str, Path], hanging: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(helm_program, "_PATIENCE_VERSION", 600.0)
    monkeypatch.setattr("clustermesh.cli.version._PATIENCE", 0.5)
    write(places["own"], hanging)
    write(places["carried"], NEW)
    lines = CliRunner().invoke(main, ["version", "--client"]).output.splitlines()
    assert lines[2].split()[:3] == ["helm", str(places["carried"]), "3.19.5"]


def test_beside_an_installed_package_a_folder_build_is_somebody_elses(tmp_path: Path) -> None:
    module = tmp_path / "clustermesh" / "joining" / "helm_program.py"
    carried = module.with_name("carried") / "helm"
    write_in = tmp_path / "build" / "helm"
    write_in.parent.mkdir()
    write(write_in, NEW)
    assert helm_program.places(module) == (carried,)
    (tmp_path / "tools").mkdir()
    write(tmp_path / "tools" / "setup-kube", NEW)
    assert helm_program.places(module) == (carried, write_in)


def test_version_says_which_is_used(places: dict[str, Path]) -> None:
    lines = CliRunner().invoke(main, ["version", "--client"]).output.splitlines()
    assert lines[2].split() == ["helm", "-", "-", "-"]
    write(places["own"], OLD)
    write(places["carried"], NEW)
    lines = CliRunner().invoke(main, ["version", "--client"]).output.splitlines()
    assert lines[2].split()[:3] == ["helm", str(places["carried"]), "3.19.5"]
