"""Ports that sockets are not given, over files: what of them is an agent's goes, what is anybody else's stays."""

from __future__ import annotations

from pathlib import Path

import pytest

from agent.reserved_ports import ReservedPorts
from clustermesh.errors import ClusterMeshError


@pytest.fixture
def setting(tmp_path: Path) -> Path:
    path = tmp_path / "setting"
    path.write_text("\n")
    return path


@pytest.mark.parametrize(
    ("before", "wanted", "during"),
    [
        ("", range(61440, 65536), "61440-65535"),
        ("8080,9000-9010", range(61440, 65536), "8080,9000-9010,61440-65535"),
        ("61440-61449,65535", range(61440, 65536), "61440-65535"),
        ("61430-65535", range(61440, 65536), "61430-65535"),
        ("8080", range(8081, 8082), "8080-8081"),
        ("8080", (), "8080"),
    ],
)
def test_what_others_reserved_is_there_before_meanwhile_and_after(
    tmp_path: Path, setting: Path, before: str, wanted: range, during: str
) -> None:
    setting.write_text(f"{before}\n")
    for _ in range(2):  # agents
        ReservedPorts(tmp_path, setting).hold(wanted)
        assert setting.read_text() == f"{during}\n"
    ReservedPorts(tmp_path, setting).hold(())
    assert setting.read_text() == f"{before}\n"
    assert [*tmp_path.iterdir()] == [setting]
    assert ReservedPorts(tmp_path, setting).hold(()) == ""


def test_other_ports_take_the_place_of_those_before(tmp_path: Path, setting: Path) -> None:
    ports = ReservedPorts(tmp_path, setting)
    setting.write_text("8080\n")
    assert ports.hold(range(61440, 65536)) == ""
    assert ports.hold(range(65000, 65536)) == "61440-64999"
    assert setting.read_text() == "8080,65000-65535\n"
    assert ports.hold(()) == "65000-65535"
    assert setting.read_text() == "8080\n"


@pytest.mark.parametrize("file", ["setting", "reserved-ports"])
def test_killed_between_any_two_writes_nothing_is_left_of_it(
    tmp_path: Path, setting: Path, monkeypatch: pytest.MonkeyPatch, file: str
) -> None:
    setting.write_text("8080,61440\n")
    ReservedPorts(tmp_path, setting).hold(range(61000, 61441))
    write = Path.write_text

    def killed(path: Path, text: str) -> int:
        if path.name == file:
            raise OSError(4, "killed")
        return write(path, text)

    monkeypatch.setattr(Path, "write_text", killed)
    with pytest.raises(ClusterMeshError):
        ReservedPorts(tmp_path, setting).hold(range(62000, 62010))
    monkeypatch.undo()
    ReservedPorts(tmp_path, setting).hold(())
    assert setting.read_text() == "8080,61440\n"


def test_who_wrote_over_it_is_heard_and_what_is_no_record_is_none(tmp_path: Path, setting: Path) -> None:
    ports = ReservedPorts(tmp_path, setting)
    ports.hold(range(61440, 65536))
    setting.write_text("9000\n")
    assert ports.hold(()) == ""
    assert setting.read_text() == "9000\n"
    for garbage in ("", "\n", "a-b,-,99999-1"):
        (tmp_path / "reserved-ports").write_text(garbage)
        assert ports.hold(()) == ""
        assert setting.read_text() == "9000\n"
        assert [*tmp_path.iterdir()] == [setting]
