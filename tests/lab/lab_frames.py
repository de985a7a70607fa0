"""Calls from outside of a backend elsewhere, to a whole agent that may have frames translated before they are packets.

beta-1  ──>  alpha-1, node port  ──>  alpha-control, where `edge` answers
             a tap on eth0 sees what comes up the stack there
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Final

from clustermesh.errors import ClusterMeshError
from lab import manifests
from lab.lab import Lab
from lab.plan import WEB_TARGET_PORT, ClusterPlan, family_of
from lab.waiting import until

CALLS: Final = 200
NODE_PORT: Final = 30090
_BEDS: Final = Path(__file__).parents[1] / "beds"
_SERVER: Final = Path(manifests.__file__).with_name("web.py")

# What a veth leaves for its other end to sum up is no frame as a wire brings it.
_SUM_UP: Final = f"""
import sys
sys.path.insert(0, {str(_BEDS)!r})
from ethtool import SUM_WHAT_IS_SENT, switch
switch("eth0", SUM_WHAT_IS_SENT, on=False)
"""

# Datagrams from one socket to each address: only what lasts for longer than three ticks is more than an exchange.
_TALK: Final = """
import socket, sys, time
port, calls, *addresses = sys.argv[1:]
sockets = [socket.socket(socket.AF_INET6 if ":" in each else socket.AF_INET, socket.SOCK_DGRAM) for each in addresses]
for talking, address in zip(sockets, addresses):
    talking.settimeout(10)
    talking.connect((address, int(port)))
def call(word):
    for talking in sockets:
        talking.send(word + b"\\n")
        assert talking.recv(100).split()[-1] == word
end = time.monotonic() + 3.5
while time.monotonic() < end:
    call(b"early")
    time.sleep(0.1)
for _ in range(int(calls)):
    call(b"late")
"""

# From one socket to each address, a few at a time, until its input ends; how many, and how many had no answer.
_CONVERSE: Final = """
import select, socket, sys, time
from contextlib import suppress
port, *addresses = sys.argv[1:]
sockets = [socket.socket(socket.AF_INET6 if ":" in each else socket.AF_INET, socket.SOCK_DGRAM) for each in addresses]
for talking, address in zip(sockets, addresses):
    talking.connect((address, int(port)))
number, unanswered, due, ends = 0, set(), time.monotonic(), float("inf")
while (now := time.monotonic()) < ends and (unanswered or ends == float("inf")):
    ready, _, _ = select.select([*sockets, *([sys.stdin] if ends == float("inf") else [])], [], [], 0.02)
    if sys.stdin in ready:
        ready.remove(sys.stdin)
        ends = now + 10
    with suppress(ConnectionRefusedError):  # of one that has no answer therefore
        for talking in ready:
            unanswered.discard(int(talking.recv(100).split()[-1]))
        if now >= due and ends == float("inf") and len(unanswered) < 64:
            due = now + 0.02
            for talking in sockets * 4:
                number += 1
                unanswered.add(number)
                talking.send(b"%d\\n" % number)
print(number, len(unanswered))
"""

# Counts those that came in until its input ends.
_TAP: Final = """
import select, socket, sys, time
tap = socket.socket(socket.AF_PACKET, socket.SOCK_DGRAM, socket.htons(3))
tap.setsockopt(socket.SOL_SOCKET, 33, 64 << 20)
tap.bind(("eth0", 3))
tap.setblocking(False)
print("ready", flush=True)
seen, port, ended = 0, int(sys.argv[1]).to_bytes(2, "big"), float("inf")
while time.monotonic() < ended:  # there is no end of what else comes
    ready, _, _ = select.select([tap, sys.stdin], [], [], 0.1)
    if tap in ready:
        packet, source = tap.recvfrom(65536)
        seen += source[2] != 4 and port in packet[:48] and packet.endswith(b"late\\n")
    if sys.stdin in ready:
        ended = min(ended, time.monotonic() + 0.5)
print(seen)
"""


async def serve_edge(lab: Lab, cluster: ClusterPlan) -> None:
    """A node port that leads to `edge`, on a machine that is no node, and frames there as a wire brings them."""
    answer = [sys.executable, "-IS", str(_SERVER), "--port", str(WEB_TARGET_PORT), "--cluster", cluster.name]
    lab.keep(cluster.control.name, "edge", [*answer, "--pod", "edge"])
    service = manifests.web_service(cluster)
    del service["spec"]["selector"]
    service["metadata"] = {"name": "edge", "namespace": manifests.NAMESPACE}
    addresses = [f"{each.removesuffix('10')}30" for each in cluster.web_ips]
    service["spec"] |= {"type": "NodePort", "clusterIP": addresses[0], "clusterIPs": addresses}
    service["spec"]["ports"] = [each | {"nodePort": NODE_PORT} for each in service["spec"]["ports"]]
    files = {"service-edge.yaml": service}
    for address in cluster.control.addresses:
        family = family_of(address)
        (made,) = manifests.probe_slice([address]).values()
        made["metadata"] |= {"name": f"edge-{family}", "labels": {"kubernetes.io/service-name": "edge"}}
        made["ports"] = [{"name": each.lower(), "protocol": each, "port": WEB_TARGET_PORT} for each in ("TCP", "UDP")]
        files[f"endpointslice-edge-{family}.yaml"] = made
    lab.apply(cluster.name, files)
    for address in cluster.control.addresses:
        await until(lambda to=address: _listens(lab, cluster.control.name, to), f"edge listens at {address}")  # type: ignore[misc]


async def _listens(lab: Lab, machine: str, address: str) -> bool:
    """By TCP, which it does last."""
    connect = "import socket, sys; socket.create_connection((sys.argv[1], int(sys.argv[2])), 5)"
    try:
        await lab.run(machine, sys.executable, "-IS", "-c", connect, address, str(WEB_TARGET_PORT))
    except ClusterMeshError:
        return False
    return True


async def sum_up(lab: Lab, *machines: str) -> None:
    for each in machines:
        await lab.run(each, sys.executable, "-IS", "-c", _SUM_UP)


@asynccontextmanager
async def conversation(lab: Lab, client: str, addresses: Sequence[str]) -> AsyncIterator[None]:
    """With each address during the block, in which no datagram and no answer is lost."""
    argv = [sys.executable, "-IS", "-c", _CONVERSE, str(NODE_PORT), *addresses]
    command, environment = lab.command(client, argv)
    pipe = asyncio.subprocess.PIPE
    process = await asyncio.create_subprocess_exec(*command, env=environment, stdin=pipe, stdout=pipe)
    try:
        yield
    finally:
        said, _ = await process.communicate(b"")
    sent, lost = map(int, said.split())
    assert sent > len(addresses) * CALLS
    assert lost == 0, f"of {sent}"


async def came_up(lab: Lab, client: str, node: str, addresses: Sequence[str]) -> int:
    """Of CALLS in a conversation with each address, how many the node's stack saw."""
    command, environment = lab.command(node, [sys.executable, "-IS", "-c", _TAP, str(NODE_PORT)])
    pipe = asyncio.subprocess.PIPE
    tap = await asyncio.create_subprocess_exec(*command, env=environment, stdin=pipe, stdout=pipe)
    assert tap.stdout is not None
    try:
        assert await tap.stdout.readline() == b"ready\n"
        await lab.run(client, sys.executable, "-IS", "-c", _TALK, str(NODE_PORT), str(CALLS), *addresses)
    finally:
        said, _ = await tap.communicate(b"")  # without a word its input would stay open
    return int(said)
