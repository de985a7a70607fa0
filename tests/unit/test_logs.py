"""What a line of a log looks like, in both forms, and what never stands in one."""

from __future__ import annotations

import io
import json
import logging
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner
from ports import free_port

from agent.options import parse as parse_options
from clustermesh.address import parse
from clustermesh.cli import main
from clustermesh.logs import FORMATS, JsonLines, Text, about, hide, set_up

SECRETS = (
    "-----BEGIN EC PRIVATE KEY-----\nMHcCAQEE\n-----END EC PRIVATE KEY-----",
    "-----BEGIN PRIVATE KEY-----\nMHcCAQEE cut off",
    "Authorization: Bearer abc.def-ghi",
    "token eyJhbGciOi.eyJzdWIiOi.c2lnbmF0dXJl",
    "password=hunter2, user=root",
    "https://root:hunter2@10.0.0.1:2379",
    "https://root:hun/ter2@10.0.0.1:2379, then http://:hun@ter2@proxy",
    '{"password": "hunter2", "user": "root"}',
    "user: root\\npassword: 'hunter2 and more'",
    r"{\"password\": \"hunter2\"}",
    "token: hunter2",
    "Authorization: Basic aHVudGVyMg==",
    '"authorization": "hunter2"',
    "Bearer\thunter2",
    "client-key-data: aHVudGVyMg==",
)
TELLTALE = ("MHcCAQEE", "abc.def", "c2lnbmF0dXJl", "hunter2", "ter2", "aHVudGVyMg")


def record(message: str, *arguments: object, **more: object) -> logging.LogRecord:
    made = logging.LogRecord("clustermesh.mesh.reader", logging.WARNING, "", 0, message, arguments, None)
    made.created = 1763751600.25
    made.__dict__.update(more)
    return made


def told(made: logging.LogRecord) -> dict[str, str]:
    line = JsonLines("agent").format(made)
    assert "\n" not in line
    found: dict[str, str] = json.loads(line)
    return found


def test_a_line_of_json_says_when_who_what_and_about_what() -> None:
    extra = about(cluster="beta", kind="services", key=("demo", "web"))
    assert told(record("cluster %s: %s cannot be taken in", "beta", "demo/web", **extra)) == {
        "time": "2025-11-21T19:00:00.250Z",
        "level": "warning",
        "program": "agent",
        "logger": "clustermesh.mesh.reader",
        "message": "cluster beta: demo/web cannot be taken in",
        "cluster": "beta",
        "kind": "services",
        "key": "demo/web",
    }


def test_addresses_and_keys_are_spelled_as_people_write_them() -> None:
    assert told(record("x", **about(key=parse("10.1.0.5"))))["key"] == "10.1.0.5"
    assert told(record("x", **about(key=b"cilium/state/x")))["key"] == "cilium/state/x"
    assert told(record("x", **about(key=131074)))["key"] == "131074"


def test_what_a_line_is_not_about_is_left_out() -> None:
    assert not {"cluster", "kind", "key"} & told(record("ready", **about())).keys()


def test_an_unforeseen_error_brings_its_traceback() -> None:
    made = record("a step failed")
    try:
        raise ValueError("password=hunter2")
    except ValueError:
        made.exc_info = sys.exc_info()
    assert "ValueError" in told(made)["traceback"]
    assert "hunter2" not in told(made)["traceback"]
    assert "ValueError" in Text().format(made)
    assert "hunter2" not in Text().format(made)


@pytest.mark.parametrize("secret", SECRETS)
def test_no_secret_stands_in_a_log(secret: str) -> None:
    for line in (
        told(record("it says %s", secret))["message"],
        hide(secret),
        Text().format(record("it says %s", secret)),
    ):
        assert not any(word in line for word in TELLTALE), line
        assert "[hidden]" in line


def test_what_is_no_secret_stays() -> None:
    line = "cluster beta: etcd at https://10.0.0.1:2379: certificate signed by ca, passwords are off"
    assert hide(line) == line


def test_a_peer_writes_no_lines_of_its_own_and_nothing_that_is_not_unicode() -> None:
    assert Text().format(record("cluster %s", "beta\nERROR all is lost\x1b[2J")).count("\n") == 0
    assert told(record("cluster %s", "beta\udcff\nx"))["message"] == "cluster beta?\nx"


@pytest.mark.parametrize("form", FORMATS)
def test_what_is_set_up_first_holds(form: str, monkeypatch: pytest.MonkeyPatch) -> None:
    written, root = io.StringIO(), logging.getLogger()
    monkeypatch.setattr(sys, "stderr", written)
    monkeypatch.setattr(root, "handlers", [])
    monkeypatch.setattr(root, "level", logging.WARNING)
    set_up(form, "agent")
    set_up("text", "agent")
    logging.getLogger("x").info("said once")
    logging.getLogger("x").debug("not said")
    assert written.getvalue().count("said") == 1
    assert written.getvalue().startswith("{") is (form == "json")


@pytest.mark.parametrize("program", ["apiserver", "kvstoremesh"])
def test_a_program_logs_as_it_is_told(program: str, tmp_path: Path) -> None:
    folder = tmp_path / "alpha"
    endpoint = f"https://127.0.0.1:{free_port()}"  # no etcd is there: it waits for one, and says so
    CliRunner().invoke(main, ["init", str(folder), "--name", "alpha", "--id", "1", "--endpoint", endpoint])
    arguments = [program, "--context", str(folder), "--http", f"127.0.0.1:{free_port()}", "--log-format", "json"]
    command = [sys.executable, "-m", "clustermesh.cli", *arguments]
    with subprocess.Popen(command, stderr=subprocess.PIPE, stdin=subprocess.DEVNULL) as process:
        assert process.stderr is not None
        line = json.loads(process.stderr.readline())
        process.kill()
    assert (line["program"], line["level"]) == (program, "info")
    assert "metrics and health on http://127.0.0.1:" in line["message"]


def test_an_agent_takes_the_form_too() -> None:
    assert parse_options(["--log-format", "json"]).log_format == "json"
    with pytest.raises(SystemExit):
        parse_options(["--log-format", "xml"])


def test_sentences_that_only_speak_of_secrets_stay_as_they_are() -> None:
    for line in (
        "user admin has no password, and a token was refused",
        "etcd at https://10.0.0.1:2379: cannot connect",
        "authorization is not enabled in etcd",
    ):
        assert hide(line) == line
