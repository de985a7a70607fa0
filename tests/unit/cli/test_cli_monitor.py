"""Events to lines: what the agent says is shown as it is, and no packet, however it is cut, breaks the command."""

from __future__ import annotations

import base64
import json
import os
import socket
import time
from pathlib import Path
from struct import Struct
from threading import Event as Happened
from threading import Thread
from typing import Any

import pytest
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st

from agent.bpf.layouts import NO_ADDRESS, Event, EventType, Reason, form_of, pack
from clustermesh import agent_socket
from clustermesh.address import Address, parse
from clustermesh.cli import main
from clustermesh.cli.monitor import Form, line_of, read_head
from clustermesh.errors import Invalid

SAID = {
    "form": form_of(Event),
    "fields": Event._fields,
    "types": [each.name.lower() for each in EventType],
    "reasons": [each.name.lower() for each in Reason],
}
NOTHING = Event._make([0, 0, *[NO_ADDRESS] * 4, *[0] * 12, b""])
V4 = bytes.fromhex("45000028000100004006 0000 0a010005 0a020007") + bytes.fromhex("1267 0050 00000000 00000000 5012")
V6 = bytes.fromhex("6000000000143a40") + bytes(parse("fd10::1")) + bytes(parse("fd20::2")) + bytes(8)
FRAGMENT = bytes.fromhex("6000000000002c40") + bytes(parse("fd10::1")) + bytes(parse("fd20::2"))


def row(event: Event) -> dict[str, Any]:
    (found,) = Form(SAID).rows(base64.b64encode(pack(event)).decode(), 0)
    return found


TRANSLATED = NOTHING._replace(
    time=1_500_000_000,
    cookie=7,
    cpu=1,
    type=EventType.LB,
    reason=Reason.CONNECT,
    protocol=6,
    destination=parse("10.96.0.1"),
    destination_port=80,
    new_destination=parse("10.2.0.7"),
    new_destination_port=8080,
)
DROPPED = NOTHING._replace(
    type=EventType.DROP, reason=Reason.DROP_CLEAR_EGRESS, ifindex=3, head=V4, head_size=len(V4), source_identity=9
)
LINES = {
    "a translation": (TRANSLATED, "CPU 01: => lb (connect) cookie 7, identity 0->0: 10.96.0.1:80 => 10.2.0.7:8080 tcp"),
    "a drop": (
        DROPPED,
        "CPU 00: xx drop (clear egress) ifindex 3, cookie 0, identity 9->0: 10.1.0.5:4711 -> 10.2.0.7:80 tcp SYN ACK",
    ),
    "IPv6 without ports": (
        DROPPED._replace(head=V6, head_size=len(V6)),
        "CPU 00: xx drop (clear egress) ifindex 3, cookie 0, identity 9->0: [fd10::1] -> [fd20::2] icmpv6",
    ),
    "what a newer agent has": (
        NOTHING._replace(type=200, reason=201, protocol=202),
        "CPU 00: -- 200 (201) cookie 0, identity 0->0:  202",
    ),
}


@pytest.mark.parametrize("name", LINES)
def test_an_event_is_a_line(name: str) -> None:
    event, line = LINES[name]
    clock, _, rest = line_of(row(event)).partition(" ")
    assert rest == line
    assert len(clock) == len("15:04:05.678")


def test_what_the_event_says_counts_before_its_packet() -> None:
    found = row(DROPPED._replace(source=parse("10.9.9.9"), source_port=1, protocol=17))
    assert (found["source"], found["protocol"]) == ({"address": "10.9.9.9", "port": 1}, "UDP")
    assert found["destination"] == {"address": "10.2.0.7", "port": 80}


@pytest.mark.parametrize(
    ("rest", "protocol", "port"),
    [
        (b"\x11\x00\x00\x01" + bytes(4) + b"\x12\x67\x00\x50", 17, 4711),
        (b"\x11\x00\x00\x08" + bytes(4) + b"\x12\x67\x00\x50", 17, 0),
        (b"\x11\x00", 44, 0),
    ],
)
def test_of_fragments_only_the_first_has_ports(rest: bytes, protocol: int, port: int) -> None:
    packet = read_head(FRAGMENT + rest)
    assert (packet.protocol, packet.ends["source"]) == (protocol, (parse("fd10::1"), port))


@given(st.binary(max_size=64) | st.binary(max_size=63).map(b"E".__add__) | st.binary(max_size=63).map(b"`".__add__))
def test_any_packet_is_a_line(head: bytes) -> None:
    event = DROPPED._replace(head=head, head_size=len(head))
    assert "drop (clear egress)" in line_of(row(event))
    for address, port in read_head(head).ends.values():
        assert len(Address(address)) == 16
        assert 0 <= port <= 65535


@pytest.mark.parametrize("said", [{}, [], SAID | {"form": "?!"}, SAID | {"fields": ["time"]}, SAID | {"types": 3}])
def test_an_agent_of_another_form_is_named(said: Any) -> None:
    with pytest.raises(Invalid, match="speaks another form"):
        Form(said)


def serve(path: Path, lines: list[bytes], asked: list[bytes]) -> Thread:
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(str(path))
    listener.listen()

    def answer() -> None:
        connection, _ = listener.accept()
        with connection, listener:
            asked.append(connection.makefile("rb").readline())
            connection.sendall(b"".join(lines))

    thread = Thread(target=answer)
    thread.start()
    return thread


def test_the_command_prints_what_comes_and_what_was_lost_until_the_agent_ends(tmp_path: Path) -> None:
    events = base64.b64encode(pack(TRANSLATED) + pack(DROPPED)).decode()
    lines = [{"result": SAID}, {"events": "", "lost": 0}, {"events": events, "lost": 4}, {"events": "", "lost": 4}]
    asked: list[bytes] = []
    thread = serve(tmp_path / "s", [json.dumps(line).encode() + b"\n" for line in lines], asked)
    arguments = ["node", "monitor", "--type", "lb", "--type", "drop", "-o", "json", "--socket", str(tmp_path / "s")]
    result = CliRunner().invoke(main, arguments)
    thread.join(60)
    assert json.loads(asked[0]) == {"method": "monitor", "params": {"types": ["lb", "drop"]}}
    assert [json.loads(line)["type"] for line in result.stdout.splitlines()] == ["lb", "drop"]
    assert result.stderr.count("lost 4 events, 4 in all") == 1
    assert result.exit_code == 1
    assert "closed the connection" in result.stderr


def test_an_agent_that_falls_silent_is_said_once_each_time_and_heard_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(agent_socket, "_SILENCE", 0.01)
    path, silent = tmp_path / "s", agent_socket._silent
    said: list[str] = []
    heard = Happened()

    def note(*about: Any) -> str:
        said.append(silent(*about))
        heard.set()
        return said[-1]

    monkeypatch.setattr(agent_socket, "_silent", note)
    events = base64.b64encode(pack(DROPPED)).decode()
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(str(path))
    listener.listen()

    def answer() -> None:
        connection, _ = listener.accept()
        with connection, listener:
            connection.sendall(json.dumps({"result": SAID}).encode() + b"\n")
            for _ in range(2):
                heard.wait(60)
                time.sleep(0.05)
                heard.clear()
                connection.sendall(json.dumps({"events": events, "lost": 0}).encode() + b"\n")

    thread = Thread(target=answer)
    thread.start()
    result = CliRunner().invoke(main, ["node", "monitor", "-o", "json", "--socket", str(path)])
    thread.join(60)
    assert len(result.stdout.splitlines()) == 2
    what = f"the agent (pid {os.getpid()}) runs but does not answer on {path} (nothing for 0.01 s): look at its log"
    assert len(said) in (2, 3)  # the last one may be before the end is heard
    assert all(each.startswith(what) and result.stderr.count(each) == len(said) for each in said)
    assert "closed the connection" in result.stderr


def test_the_form_is_one_that_the_module_struct_knows() -> None:
    assert Struct(SAID["form"]).size == 176  # type: ignore[arg-type]
