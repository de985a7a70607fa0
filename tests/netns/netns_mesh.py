"""A node with what an agent puts into it: device, peers, routes, pods attached by the plugin as a runtime runs it."""

from __future__ import annotations

import asyncio
import json
import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import msgspec
from netns_node import TIMEOUT, NetnsNode

from agent import netlink
from agent.cni.endpoint import EndpointRequest
from agent.cni.ipam import Ipam
from agent.cni.local_pods import Endpoints
from agent.plan.attached import AttachedPods
from agent.plan.routes import tunnel_routes
from agent.targets.routes import RouteTarget
from agent.targets.wireguard import PeerTracker, WireGuardTarget
from agent.wireguard import keys
from agent.wireguard.device import FWMARK, LISTEN_PORT, NAME, open_device, tunnel_mtu
from agent.wireguard.peer import Peer, PeerKey
from clustermesh.address import parse, parse_prefix
from clustermesh.errors import ClusterMeshError
from clustermesh.reconcile import Reconciler, Tracker

AGENT_SOCKET = Path("/run/clustermesh/agent.sock")
MTU = tunnel_mtu(1500)
SIZE = 100_000
"""Bytes that `talk` sends."""


class MeshNode(NetnsNode):
    """A node that has joined nobody yet: call `start_agent`, then `connect`."""

    def __init__(self, number: int, state: Path) -> None:
        super().__init__(number)
        self.state = state
        self.cidrs = (parse_prefix(self.pod_cidr), parse_prefix(self.pod_cidr6))
        self.routers = tuple(Ipam(cidr).router for cidr in self.cidrs)
        self.private_key = keys.load_or_create(state / "wireguard" / "cm-wg0.key")
        self.public_key = keys.public_key(self.private_key)
        self._server: asyncio.Server | None = None

    def start_agent(self) -> None:
        self.do(self._start_agent())

    async def _start_agent(self) -> None:
        self.device = await open_device(log=self.state / "wireguard-go.log")
        target = WireGuardTarget(self.device, self.public_key)
        self.peers = PeerTracker("peers", target)
        self.routes = Tracker("routes", RouteTarget())
        self.reconciler = Reconciler(self.peers, self.routes)
        self.reconciler.may_delete = True
        self._greeting = asyncio.create_task(target.greet_forever())
        await netlink.prepare_node(self.routers)
        await self._ensure()
        await self._start_pods()

    def start_pods(self) -> None:
        """Only the agent's side of CNI: no tunnel."""
        self.do(self._start_pods())

    async def _start_pods(self) -> None:
        pools = [Ipam(cidr, router) for cidr, router in zip(self.cidrs, self.routers, strict=True)]
        self.endpoints = Endpoints(self.state, pools, AttachedPods(), mtu=MTU)
        await self.endpoints.restore()
        AGENT_SOCKET.parent.mkdir(exist_ok=True)
        self._server = await asyncio.start_unix_server(self._answer, AGENT_SOCKET)
        await self.endpoints.drain(AGENT_SOCKET.parent / "deleted-endpoints")

    def stop_agent(self) -> None:
        async def stop() -> None:
            self._greeting.cancel()
            await asyncio.wait([self._greeting])

        self.stop_pods()
        self.do(stop())

    def stop_pods(self) -> None:
        self.do(self._stop_pods())

    async def _stop_pods(self) -> None:
        if self._server is not None:
            self._server.close()
            await self._server.wait_closed()
            self._server = None
            AGENT_SOCKET.unlink(missing_ok=True)

    def close(self) -> None:
        self.stop_pods()  # where a test that failed has not
        super().close()

    def ensure(self) -> bool:
        return self.do(self._ensure())

    async def _ensure(self) -> bool:
        return await self.device.ensure(self.private_key, LISTEN_PORT, FWMARK, MTU)

    def connect(self, other: MeshNode, address: str = "") -> None:
        """Want `other` as a peer, at its IPv4 address if no other is given, with routes to its pods."""
        endpoint = parse(address or other.address)
        peer = Peer(public_key=other.public_key, endpoint=endpoint, port=LISTEN_PORT, allowed_ips=other.cidrs)
        self.peers.set(PeerKey("mesh", other.address), peer)
        for key, route in tunnel_routes(other.cidrs, NAME, self.routers).items():
            self.routes.set(key, route)
        self.flush()

    def flush(self) -> None:
        self.do(self.reconciler.flush())
        assert self.reconciler.settled, [tracker.failed for tracker in self.reconciler.trackers]

    def audit(self) -> int:
        """Entries that were found changed; the difference is then repaired."""
        drift = self.do(self.reconciler.audit())
        self.flush()
        return drift

    async def _answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            question = json.loads(await reader.readline())
            request = msgspec.convert(question["params"], EndpointRequest)
            answer = {"result": await self._carry_out(question["method"], request)}
        except ClusterMeshError as e:
            answer = {"error": {"message": str(e), "hint": ""}}
        writer.write(json.dumps(answer).encode() + b"\n")
        writer.close()

    async def _carry_out(self, method: str, request: EndpointRequest) -> Any:
        if method == "cni_del":
            return await self.endpoints.delete(request)
        do = {"cni_add": self.endpoints.add, "cni_check": self.endpoints.check}[method]
        return (await do(request)).result()

    def make_pod(self, name: str) -> str:
        """A namespace attached by the plugin; returns its IPv4 address."""
        return self.make_dual_pod(name)[0]

    def make_dual_pod(self, name: str) -> tuple[str, ...]:
        """A namespace attached by the plugin; returns its addresses."""
        self.run(f"ip netns add {name}")
        status, result = self.cni("ADD", name)
        assert status == 0, result
        return tuple(ip["address"].partition("/")[0] for ip in result["ips"])

    def cni(self, command: str, pod: str, **config: Any) -> tuple[int, Any]:
        """Run the plugin as a container runtime does; exit status and decoded output."""
        return self.do(self._cni(command, pod, config))

    async def _cni(self, command: str, pod: str, config: dict[str, Any]) -> tuple[int, Any]:
        plugin = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "agent.cni.plugin"),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=os.environ
            | {
                "CNI_COMMAND": command,
                "CNI_CONTAINERID": f"container-{pod}",
                "CNI_NETNS": f"/run/netns/{pod}",
                "CNI_IFNAME": "eth0",
                "CNI_ARGS": f"K8S_POD_NAMESPACE=default;K8S_POD_NAME={pod}",
            },
        )
        config = {"cniVersion": "1.0.0", "name": "clustermesh", "type": "clustermesh-cni", **config}
        out, _ = await plugin.communicate(json.dumps(config).encode())
        return plugin.returncode or 0, json.loads(out) if out else None

    def tcp_server(self, pod: str) -> socket.socket:
        """Of both families; IPv4 callers are seen as ::ffff:10.1.0.2."""
        server = self.pod_socket(pod, socket.AF_INET6, socket.SOCK_STREAM)
        # the last connection to this port may still wait for the ACK of its FIN
        server.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        server.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
        server.bind(("::", 8080))
        server.listen(8)
        return server

    def talk(self, pod: str, server: socket.socket, address: str, size: int = SIZE) -> str:
        """Send `size` bytes by TCP from a pod to `server`, listening at `address`; returns the address it sees."""
        family = socket.AF_INET6 if ":" in address else socket.AF_INET
        with self.pod_socket(pod, family, socket.SOCK_STREAM) as client:
            client.connect((address, 8080))
            server.settimeout(TIMEOUT)
            taken, source = server.accept()
            with taken:
                taken.settimeout(TIMEOUT)
                client.sendall(bytes(size))
                client.shutdown(socket.SHUT_WR)
                received = 0
                while chunk := taken.recv(1 << 16):
                    received += len(chunk)
        assert received == size
        return str(source[0]).removeprefix("::ffff:")
