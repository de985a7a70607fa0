"""What the agent says of an option that is wrong: one line with the option, the value and the rule."""

from __future__ import annotations

import pytest

from agent.options import parse


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ("--port=70000", "--port: '70000': must be a number from 1 to 65535"),
        ("--device=a/b", "--device: 'a/b': must be a device name of 1 to 15 characters"),
        (
            "--devices=eth0,/x",
            "--devices: '/x': must be a device name of 1 to 15 characters, or the beginning of one and +",
        ),
        ("--device=lo", "--device: 'lo': must be a device of the mesh's own: lo is this machine's"),
        ("--device=cm%d", "--device: 'cm%d': must be a device name of 1 to 15 characters"),
        ("--devices=eth0,lo", "--devices: 'lo': must be a device that leads outside: lo leads to this machine"),
        (
            "--bpf-lb-snat-ports=9-9000",
            "--bpf-lb-snat-ports: '9-9000': must be FIRST-LAST, 256 ports at least, from 1024 to 65535",
        ),
        ("--cluster-id=x", "--cluster-id: invalid int value: 'x'"),
        ("--node=a/b", "--node: 'a/b': must be 1 to 253 printable characters without '/'"),
        ("--metrics=x", "--metrics: 'x': must be HOST:PORT, as 127.0.0.1:9962"),
        ("--clustermesh-cache-ttl=-5m", "--clustermesh-cache-ttl: '-5m': must be a time like 15s, 10m or 1h30m"),
        ("--bpf-lb-map-max=3", "--bpf-lb-map-max: '3': must be a number from 65536 to 16777216"),
        (
            "--bpf-map-dynamic-size-ratio=2",
            "--bpf-map-dynamic-size-ratio: '2': must be a number from 0 to 0.5, as 0.0025",
        ),
        ("--loader=x", "--loader: invalid choice: 'x' (choose from 'libbpf', 'bcc', 'auto')"),
        ("--foo", "unrecognized arguments: --foo"),
    ],
)
def test_a_wrong_option_is_one_line(given: str, said: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        parse([given])
    assert (ended.value.code, capsys.readouterr().err) == (2, f"clustermesh-agent: error: {said}\n")
