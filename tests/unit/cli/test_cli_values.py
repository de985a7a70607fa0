"""No flag takes a value that nothing sensible could be done with, and each says what it takes."""

from __future__ import annotations

import importlib
from pathlib import Path

import click
import pytest
from click.testing import CliRunner

from agent import options
from clustermesh.cli import main
from clustermesh.cli.values import Duration, Listener, Number

_DURATION = ["99999999h", "721h", "-1s", "15", "", "nan", "1e9s", "9" * 5000 + "s"]
_PORT = ["0", "-1", "65536", "99999999999", "x", "1.5", "nan"]
_ADDRESS = ["host", "host:65536", "host:-1", ":99999999", "host:" + "9" * 5000]
_COUNT = ["0", "-1", "99999999", "1.5", "x"]
_RATE = ["0", "-1", "nan", "inf", "-inf", "1e300", "1e-300", "x"]
_OWN = {"--health-port": _PORT, "--prometheus-serve-addr": _ADDRESS, "--http": _ADDRESS}
_OWN |= {"--clustermesh-cache-ttl": [*_DURATION, "89s"]}
_TIMES = dict.fromkeys(("--kvstore-lease-ttl", "--global-ready-timeout", "--per-cluster-ready-timeout"), _DURATION)
_COUNTS = {"--etcd-max-inflight": _COUNT, "--k8s-client-max-inflight": _COUNT}
_RATES = {"--etcd-qps": _RATE, "--k8s-client-qps": _RATE, "--mirror-http": _ADDRESS}
_FLAGS = {
    "kvstoremesh": _OWN | _TIMES | {"--kvstore-lease-ttl": [*_DURATION, "0s"]},
    "apiserver": _OWN | _COUNTS | _RATES,
    "status": {"--wait-duration": ["nan", "inf", "-1", "1e9"]},
}


@pytest.mark.parametrize(
    ("command", "flag", "values"),
    [(command, flag, values) for command, flags in _FLAGS.items() for flag, values in flags.items()],
)
def test_an_absurd_value_is_wrong_usage_and_its_flag_is_named(command: str, flag: str, values: list[str]) -> None:
    for value in values:
        result = CliRunner().invoke(main, [command, f"{flag}={value}"])
        assert result.exit_code == 2
        last = result.stderr.splitlines()[-1]
        assert f"Invalid value for '{flag}" in last
        assert value[:20] in last or repr(float(value)) in last, "the value is said"


@pytest.mark.parametrize("namespace", ["", "a/../kube-system", "A", "-a", "a" * 64, "a\n"])
def test_what_is_no_namespaces_name_is_wrong_usage(namespace: str) -> None:
    result = CliRunner().invoke(main, ["peers", "--context", "alpha", "-n", namespace])
    last = result.stderr.splitlines()[-1]
    assert (result.exit_code, "Invalid value for '-n' / '--namespace': " in last) == (2, True)


@pytest.mark.parametrize("san", ["", "a\nb", "x" * 64, "x." * 150 + "x", "\u00fc"])
@pytest.mark.parametrize("command", [["init"], ["certs", "init"], ["certs", "renew"], ["certs", "issue"]])
def test_a_name_that_no_certificate_can_hold_is_wrong_usage_before_anything_is_made(
    command: list[str], san: str, tmp_path: Path
) -> None:
    flags = ["--name", "alpha", "--id", "1", "--endpoint", "https://h:1", str(tmp_path / "alpha")]
    result = CliRunner().invoke(main, [*command, "--san", san, *(flags if command == ["init"] else [])])
    last = result.stderr.splitlines()[-1]
    assert result.exit_code == 2
    assert f"Invalid value for '--san': {repr(san)[:20]}" in last
    assert "must be an address, or a DNS name" in last
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "which", [{"--cluster-id": "0"}, {"--cluster-id": "256"}, {"--max-connected-clusters": "9" * 9}]
)
def test_an_absurd_number_of_a_cluster_is_said(which: dict[str, str]) -> None:
    flags = {"--cluster-name": "alpha", "--cluster-id": "1", "--kvstore-opt": "etcd.config=/nowhere"} | which
    result = CliRunner().invoke(main, ["kvstoremesh", *(f"{flag}={value}" for flag, value in flags.items())])
    assert result.exit_code == 2
    assert "error:" in result.stderr
    assert "must be" in result.stderr
    assert next(iter(which.values())) in result.stderr


@pytest.mark.parametrize(
    ("flag", "values"),
    [("--port", _PORT), ("--metrics", _ADDRESS), ("--clustermesh-cache-ttl", _OWN["--clustermesh-cache-ttl"])],
)
def test_an_agent_refuses_as_well(flag: str, values: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    for value in values:
        with pytest.raises(SystemExit) as ended:
            options.parse([f"{flag}={value}"])
        assert ended.value.code == 2
        assert f"{flag}: {value!r}: must be" in capsys.readouterr().err


def test_every_number_that_a_server_takes_is_bounded() -> None:
    """A flag that is added takes one of the bounded kinds, or is looked at here."""
    for module, name in (("apiserver", "apiserver"), ("kvstoremesh", "command")):
        command = getattr(importlib.import_module(f"clustermesh.cli.{module}"), name)
        for option in command.params:
            of_a_cluster = option.name in ("cluster_id", "max_connected_clusters")
            assert of_a_cluster or type(option.type) not in (type(click.INT), type(click.FLOAT)), option.name


def test_what_makes_sense_is_taken() -> None:
    assert Duration().convert("1m30s", None, None) == 90
    assert Listener().convert("[::1]:9880", None, None) == "[::1]:9880"
    assert Listener().convert("", None, None) == ""
    assert Number(0.1, 60).convert("1.5", None, None) == 1.5


@pytest.mark.parametrize("flag", ["--name=Alpha", "--id=0", "--max-connected-clusters=7", "--endpoint=ftp://x"])
def test_init_names_the_flag_whose_value_is_wrong(tmp_path: Path, flag: str) -> None:
    right = ["--name=alpha", "--id=1", "--max-connected-clusters=255", "--endpoint=https://127.0.0.1:2379"]
    name = flag.partition("=")[0]
    given = [flag if each.startswith(name + "=") else each for each in right]
    result = CliRunner().invoke(main, ["init", str(tmp_path / "alpha"), *given])
    assert result.exit_code == 2
    assert result.stderr.startswith(f"error: {name}: ")
