"""The pods and the node of one variant: three network namespaces in a row, which go with the processes in them."""

from __future__ import annotations

import subprocess
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Final, NamedTuple

from tests.bpf.bpf_node import Node

CLIENT: Final = "10.64.0.2"
POD_CIDRS: Final = "10.64.0.0/15"
BACKENDS: Final = tuple(f"10.65.1.{number}" for number in range(1, 11))
DEVICES: Final = {CLIENT: "client", **{address: f"backend{number}" for number, address in enumerate(BACKENDS)}}
"""The node's end of each pod's veth, by the pod's address."""

NODE: Final = "10.64.0.1"


class Namespace(Node):
    """A network namespace in which programs run."""

    def start(self, *argv: str) -> subprocess.Popen[bytes]:
        """A process that ends with this one at the latest."""
        command = ["setpriv", "--pdeathsig", "KILL", "--", *argv]
        return self.call(lambda: subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE))

    def ip(self, *lines: str) -> None:
        """Commands of `ip`."""
        self.call(lambda: subprocess.run(["ip", "-batch", "-"], input="\n".join(lines), text=True, check=True))

    def call_long(self, work: Callable[[], object]) -> None:
        """`work` in the namespace, however long it takes."""
        self._thread.submit(work).result()

    def set(self, **settings: object) -> None:
        """Of /proc/sys/net."""
        self.run("sysctl", "-qw", *(f"net.{name.replace('__', '.')}={value}" for name, value in settings.items()))


class Pods(NamedTuple):
    """Where a variant's client, its node and its backends are."""

    client: Namespace
    node: Namespace
    backends: Namespace


@contextmanager
def pods() -> Iterator[Pods]:
    """Joined, with no rule and no program between them. All backend pods share one network namespace, in which each has
    a device, an address and a default route of its own."""
    with ExitStack() as stack:
        made = Pods(*(stack.enter_context(Namespace()) for _ in range(3)))
        client, node, backends = made
        node.ip(f"address add {NODE}/32 dev lo")
        for number, (address, device) in enumerate(DEVICES.items()):
            pod, end, table = (client if address == CLIENT else backends), f"eth{number}", 100 + number
            node.ip(
                f"link add {device} type veth peer name {end} netns {_task_of(pod)}",
                f"link set {device} up",
                f"route add {address}/32 dev {device}",
            )
            pod.ip(
                f"address add {address}/32 dev {end}",
                f"link set {end} up",
                f"route add default via {NODE} dev {end} onlink table {table}",
                f"rule add from {address} lookup {table}",
            )
        client.ip(f"route add default via {NODE} dev eth0 onlink")
        for each in made:
            each.set(ipv4__conf__all__rp_filter=0, ipv4__conf__default__rp_filter=0)
        node.set(ipv4__ip_forward=1)
        client.set(ipv4__ip_local_port_range="20000 65535")
        backends.set(core__somaxconn=8192, ipv4__tcp_max_syn_backlog=8192, ipv4__tcp_max_tw_buckets=4096)
        yield made


def _task_of(namespace: Namespace) -> int:
    """A thread's id, which `ip` takes as well as a process's."""
    return namespace.call(threading.get_native_id)
