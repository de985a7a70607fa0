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
BACKENDS: Final = tuple(f"10.65.1.{number}" for number in range(100))
CLIENT_DEVICE, BACKENDS_DEVICE = "veth-client", "veth-backends"  # on the node
_BACKENDS_CIDR: Final = "10.65.1.0/24"


class Namespace(Node):
    """A network namespace in which programs run."""

    def start(self, *argv: str) -> subprocess.Popen[bytes]:
        """A process that ends with this one at the latest."""
        command = ["setpriv", "--pdeathsig", "KILL", "--", *argv]
        return self.call(lambda: subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE))

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
    """Joined, with no rule and no program between them."""
    with ExitStack() as stack:
        made = Pods(*(stack.enter_context(Namespace()) for _ in range(3)))
        client, node, backends = made
        _join(node, CLIENT_DEVICE, "10.64.0.1/24", client, f"{CLIENT}/24")
        _join(node, BACKENDS_DEVICE, "10.65.0.1/24", backends, "10.65.0.2/24")
        client.run("ip", "route", "add", "default", "via", "10.64.0.1")
        backends.run("ip", "route", "add", "default", "via", "10.65.0.1")
        backends.run("ip", "route", "add", "local", _BACKENDS_CIDR, "dev", "lo")
        node.run("ip", "route", "add", _BACKENDS_CIDR, "via", "10.65.0.2")
        node.set(ipv4__ip_forward=1)
        client.set(ipv4__ip_local_port_range="1024 65535")
        backends.set(core__somaxconn=8192, ipv4__tcp_max_syn_backlog=8192, ipv4__tcp_max_tw_buckets=4096)
        yield made


def _join(node: Namespace, device: str, address: str, pod: Namespace, pod_address: str) -> None:
    """A veth pair, as between a pod and its node."""
    node.run("ip", "link", "add", device, "type", "veth", "peer", "name", "eth0", "netns", _pid_of(pod))
    for where, name, given in ((node, device, address), (pod, "eth0", pod_address)):
        where.run("ip", "address", "add", given, "dev", name)
        where.run("ip", "link", "set", name, "up")


def _pid_of(namespace: Namespace) -> str:
    """A thread's id, which `ip` takes as well as a process's."""
    return str(namespace.call(threading.get_native_id))
