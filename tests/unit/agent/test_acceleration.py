"""What `node status` says of XDP: where it runs, where not, and why."""

from __future__ import annotations

import os

import pytest

from agent.bpf import features
from agent.bpf.features import State, acceleration
from agent.bpf.layouts import XdpMode
from agent.bpf.links import Hook, Mechanism, Outcome
from agent.options import parse

FOREIGN = "another XDP program is on eth1"


def hook(device: str, mechanism: Mechanism) -> Hook:
    return Hook("xdp_outside", device, Outcome.ATTACHED, mechanism, 1)


NATIVE, GENERIC = hook("eth0", Mechanism.XDP), hook("eth0", Mechanism.XDP_GENERIC)


@pytest.mark.parametrize(
    ("asked", "hooks", "problems", "state", "why"),
    [
        ("disabled", [], {}, State.OFF, "--bpf-lb-acceleration is disabled"),
        ("disabled", [NATIVE], {}, State.OFF, "--bpf-lb-acceleration is disabled"),
        ("native", [], {}, State.OFF, "no device leads outside"),
        ("native", [NATIVE], {}, State.NATIVE, ""),
        ("native", [], {"eth1": FOREIGN}, State.OFF, f"on eth1 by tc: {FOREIGN}"),
        ("native", [NATIVE], {"eth1": FOREIGN}, State.DEGRADED, f"on eth1 by tc: {FOREIGN}"),
        ("native", [NATIVE], {"eth0": "was taken off"}, State.OFF, "on eth0 by tc: was taken off"),
        ("best-effort", [GENERIC], {}, State.DEGRADED, "on eth0 by the kernel, not by its driver"),
        (
            "best-effort",
            [GENERIC],
            {"eth1": FOREIGN},
            State.DEGRADED,
            f"on eth0 by the kernel, not by its driver; on eth1 by tc: {FOREIGN}",
        ),
    ],
)
def test_each_device_is_told_of(
    monkeypatch: pytest.MonkeyPatch, asked: str, hooks: list[Hook], problems: dict[str, str], state: State, why: str
) -> None:
    monkeypatch.setattr(features, "_xdp", lambda: os.open("/dev/null", os.O_RDONLY))
    found = acceleration(asked, hooks, problems)
    assert (found.name, found.state, found.why) == ("xdp", state, why)
    assert found.says


def test_a_kernel_without_xdp_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse() -> int:
        raise OSError(22, "Invalid argument")

    monkeypatch.setattr(features, "_xdp", refuse)
    assert acceleration("native", [], {})[1::2] == (State.OFF, "Invalid argument")


@pytest.mark.parametrize(
    ("asked", "modes"),
    [
        ("disabled", ()),
        ("native", (XdpMode.NATIVE,)),
        ("best-effort", (XdpMode.NATIVE, XdpMode.GENERIC)),
    ],
)
def test_what_is_asked_for_is_ciliums(asked: str, modes: tuple[XdpMode, ...]) -> None:
    assert parse(["--bpf-lb-acceleration", asked]).xdp_modes == modes
    assert parse([]).xdp_modes == ()


def test_another_word_is_a_usage_error(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        parse(["--bpf-lb-acceleration", "fast"])
    assert "--bpf-lb-acceleration" in capsys.readouterr().err
