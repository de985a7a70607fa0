"""The command line as a whole: what it imports, how it fails, what it exits with."""

from __future__ import annotations

import contextlib
import os
import re
import shlex
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import click
import pytest
from click.testing import CliRunner, Result

from certs.errors import CertsError
from clustermesh import cli
from clustermesh.errors import Invalid, Unavailable

# Whoever types --help must not wait for any of these.
HEAVY = (
    "cryptography",
    "google.protobuf",
    "hpack",
    "yaml",
    "msgspec.json",
    "rich",
    "asyncio",
    "pyroute2",
    "watchfiles",
)


def _failing(error: BaseException) -> click.Command:
    @click.command()
    def command() -> None:
        raise error

    return command


def _run(monkeypatch: pytest.MonkeyPatch, error: BaseException) -> Result:
    monkeypatch.setattr(cli.CommandLine, "get_command", lambda *_: _failing(error))
    return CliRunner().invoke(cli.main, ["status"])


def test_help_imports_nothing_heavy_and_no_command() -> None:
    program = (
        "import sys\nfrom clustermesh.cli import main\n"
        "try: main(['--help'])\nexcept SystemExit: pass\n"
        f"sys.exit(' '.join(m for m in sys.modules if m in {HEAVY!r} or m.startswith('clustermesh.cli.')) or 0)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert "disconnect" in done.stdout


def _commands(command: click.Command, words: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    if isinstance(command, click.Group):
        context = click.Context(command)
        for name in command.list_commands(context):
            found = command.get_command(context, name)
            assert found is not None
            yield from _commands(found, (*words, name))
    if words and words != ("agent",):  # which has a command line of its own
        yield words


@pytest.mark.parametrize("words", list(_commands(cli.main)), ids=" ".join)
def test_every_command_has_help_with_examples_that_are_right_when_pasted(
    words: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    result = CliRunner().invoke(cli.main, [*words, "--help"])
    assert result.exit_code == 0
    examples = re.findall(r"^ +(?:systemctl .* && )?(clustermesh .*)$", result.stdout, re.MULTILINE)
    assert any(example.split()[1 : 1 + len(words)] == list(words) for example in examples)
    monkeypatch.chdir(tmp_path)
    for name in ("cilium-ca.crt", "cilium-ca.key"):
        (tmp_path / name).touch()
    for example in examples:
        _parse(cli.main, shlex.split(example.partition(" | ")[0])[1:])


def _parse(command: click.Command, arguments: list[str]) -> None:
    """What click does before it calls the command; raises where the arguments are wrong."""
    context = command.make_context(command.name, arguments)
    if isinstance(command, click.Group):
        _, inner, rest = command.resolve_command(context, [*context._protected_args, *context.args])
        assert inner is not None
        _parse(inner, rest)


@pytest.mark.parametrize(
    ("error", "code", "line"),
    [
        (
            Invalid("cluster id", 0, "must be a number from 1 to 255"),
            2,
            "cluster id: 0: must be a number from 1 to 255",
        ),
        (Unavailable("etcd is not there"), 1, "etcd is not there"),
        (CertsError("server.crt: expired"), 1, "server.crt: expired"),
        (PermissionError(13, "Permission denied", "/srv/x"), 1, "/srv/x: Permission denied"),
        (Unavailable("two\nlines"), 1, "two lines"),
        (Unavailable("\x1b[31mred\x07"), 1, r"\x1b[31mred\x07"),
        (ExceptionGroup("tasks", [ExceptionGroup("inner", [Unavailable("etcd is gone")])]), 1, "etcd is gone"),
    ],
)
def test_foreseen_error_is_one_line_and_an_exit_code(
    monkeypatch: pytest.MonkeyPatch, error: Exception, code: int, line: str
) -> None:
    result = _run(monkeypatch, error)
    assert (result.exit_code, result.stdout, result.stderr) == (code, "", f"error: {line}\n")


def test_several_foreseen_errors_are_a_line_each(monkeypatch: pytest.MonkeyPatch) -> None:
    result = _run(monkeypatch, ExceptionGroup("tasks", [Unavailable("one"), Invalid("f", 1, "two")]))
    assert (result.exit_code, result.stderr) == (1, "error: one\nerror: f: 1: two\n")


def test_interruption_is_130(monkeypatch: pytest.MonkeyPatch) -> None:
    assert _run(monkeypatch, KeyboardInterrupt()).exit_code == 130
    assert _run(monkeypatch, BaseExceptionGroup("tasks", [KeyboardInterrupt()])).exit_code == 130


def test_reader_that_has_seen_enough_is_no_error(monkeypatch: pytest.MonkeyPatch) -> None:
    result = _run(monkeypatch, BrokenPipeError(32, "Broken pipe"))
    assert (result.exit_code, result.stderr) == (1, "")


@pytest.mark.parametrize("error", [RuntimeError("bug"), ExceptionGroup("tasks", [Unavailable("x"), KeyError("bug")])])
def test_bug_is_not_hidden_behind_a_line(monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    assert _run(monkeypatch, error).exception is error


def test_unknown_command_is_wrong_usage() -> None:
    result = CliRunner().invoke(cli.main, ["conect"])
    assert result.exit_code == 2
    assert "conect" in result.stderr


def test_command_that_is_not_installed_says_so_when_used(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(cli._COMMANDS, "lab", ("clustermesh.cli.none", "command", "x"))
    result = CliRunner().invoke(cli.main, ["lab"])
    assert result.exit_code == 1
    assert "not installed here: no module clustermesh.cli.none" in result.stderr
    assert CliRunner().invoke(cli.main, ["--help"]).exit_code == 0


@pytest.mark.parametrize("command", ["lab", "demo"])
def test_without_the_lab_its_commands_say_what_to_install(command: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "lab.plan", None)  # what an import then finds: nothing
    result = CliRunner().invoke(cli.main, [command, "--help"])
    assert result.exit_code == 1
    assert "not installed here: no module lab.plan: `pip install 'clustermesh[lab]'`" in result.stderr
    assert len(result.stderr.splitlines()) == 1


@pytest.mark.parametrize("file", ["ca.crt", "local.crt"])
def test_what_is_said_of_a_broken_handshake_is_one_line_of_ours(file: str, tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        threading.Thread(target=_speak_no_tls, args=(other,), daemon=True).start()
        where = f"https://127.0.0.1:{other.getsockname()[1]}"
        arguments = ["init", str(tmp_path / "a"), "--name", "alpha", "--id", "1", "--endpoint", where]
        assert CliRunner().invoke(cli.main, arguments).exit_code == 0
        command = [sys.executable, "-m", "clustermesh.cli", "status", "--context", str(tmp_path / "a")]
        done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
        assert (done.returncode, done.stdout, len(done.stderr.splitlines())) == (1, "", 1)
        assert "TLS failed" in done.stderr
        assert "something else listens there" in done.stderr
        (tmp_path / "a" / "certs" / file).write_text("garbage")
        done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
        assert (done.returncode, len(done.stderr.splitlines())) == (1, 1)
        assert f"`clustermesh certs show --context {tmp_path / 'a'}`" in done.stderr


def _speak_no_tls(listening: socket.socket) -> None:
    with contextlib.suppress(OSError):
        while True:
            client, _ = listening.accept()
            client.sendall(b"HTTP/1.1 400 Bad Request\r\n\r\n")
            client.close()


def test_the_exit_codes_are_in_the_help() -> None:
    said = " ".join(CliRunner().invoke(cli.main, ["--help"]).stdout.split())
    assert "0 done, 1 failed or something is wrong, 2 wrong usage or input, 130 interrupted" in said


def test_colour_only_on_a_terminal() -> None:
    arguments = [sys.executable, "-m", "clustermesh.cli", "peers", "--context", "/nowhere"]
    piped = subprocess.run(arguments, capture_output=True, timeout=60, check=False)
    assert piped.stderr.startswith(b"error: ")
    assert _stderr_on_terminal(arguments, {}).startswith(b"\x1b[31m")
    assert _stderr_on_terminal(arguments, {"NO_COLOR": "1"}).startswith(b"error: ")


def _stderr_on_terminal(arguments: list[str], environment: dict[str, str]) -> bytes:
    ours, theirs = os.openpty()
    try:
        subprocess.run(arguments, stderr=theirs, env=os.environ | environment, timeout=60, check=False)
        return os.read(ours, 4096)
    finally:
        os.close(ours)
        os.close(theirs)


def test_module_and_program_are_the_same_command_line(tmp_path: Path) -> None:
    arguments = ["init", str(tmp_path / "a"), "--name", "alpha", "--id", "0", "--endpoint", "127.0.0.1"]
    done = subprocess.run(
        [sys.executable, "-m", "clustermesh.cli", *arguments], capture_output=True, text=True, timeout=60, check=False
    )
    assert (done.returncode, done.stderr) == (2, "error: --id: 0: must be a number from 1 to 255\n")
    assert not (tmp_path / "a").exists()
