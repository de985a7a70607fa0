"""What makes a cluster of nodes: etcd, kube-apiserver, controller manager and scheduler, as plain processes.

Who they and the nodes are, their tokens say; the API server's certificate is of an authority of its own. Each process
ends with the thread that began it.
"""

from __future__ import annotations

import asyncio
import http.client
import json
import secrets
import ssl
import subprocess
import time
import urllib.error
import urllib.request
from datetime import UTC, datetime
from ipaddress import IPv4Address
from pathlib import Path
from typing import Any, Final

import msgspec
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import rsa

from certs.files import write_atomically
from certs.issue import create_authority, issue
from certs.names import Leaf
from clustermesh.errors import Unavailable
from clustermesh.store.local import LocalEtcd
from lab.kubernetes.ground import BUILD, NAME, PATIENCE, ip

KUBE: Final = BUILD / "kube"
PORT: Final = 6443
SERVICES: Final = "10.96.0.0/16"
_FIRST_SERVICE: Final = "10.96.0.1"
_ISSUER: Final = "https://kubernetes.default.svc"
_CONTROLLERS: Final = (
    "daemonset-controller,deployment-controller,disruption-controller,endpointslice-controller,"
    "garbage-collector-controller,job-controller,namespace-controller,node-ipam-controller,node-lifecycle-controller,"
    "pod-garbage-collector-controller,replicaset-controller,root-ca-certificate-publisher-controller,"
    "serviceaccount-controller,taint-eviction-controller,ttl-after-finished-controller"
)


class ControlPlane:
    """Of the cluster `name`, at `address`, whose pods are in `pods`; `kubeconfig` is the admin's."""

    def __init__(self, folder: Path, name: str, address: IPv4Address, pods: str, nodes: list[str]) -> None:
        self.folder, self.name, self.address = folder, name, address
        self._pods = pods
        self.authority = folder / "ca.crt"
        self.kubeconfig = folder / "admin.kubeconfig"
        self._processes: dict[str, subprocess.Popen[bytes]] = {}
        self._etcd = LocalEtcd(
            folder / "etcd", [f"http://127.{str(address).partition('.')[2]}:2379"], flags=["--unsafe-no-fsync"]
        )
        folder.mkdir(parents=True)
        self._write_certificates()
        self._token = self._write_users(nodes)
        self._tls = ssl.create_default_context(cafile=str(self.authority))

    def start(self) -> None:
        """etcd and the API server, without waiting for the latter."""
        ip("address", "add", f"{self.address}/24", "dev", NAME)
        asyncio.run(self._etcd.start())
        self.start_server()

    def start_clients(self) -> None:
        """Controller manager and scheduler; they end where the API server is not ready."""
        more = [f"--cluster-cidr={self._pods}", f"--service-cluster-ip-range={SERVICES}", "--allocate-node-cidrs"]
        more += ["--node-monitor-period=1s", "--node-monitor-grace-period=16s", f"--controllers={_CONTROLLERS}"]
        more += [f"--root-ca-file={self.authority}", f"--service-account-private-key-file={self.folder / 'sa.key'}"]
        self._spawn("controller-manager", *self._as_client("controller-manager"), *more)
        self._spawn("scheduler", *self._as_client("scheduler"))

    def start_server(self) -> None:
        """The API server alone, which may have been stopped; `start_clients` is due once it is ready."""
        folder = self.folder
        shown = [f"--kubelet-client-certificate={folder / 'kubelet-client.crt'}"]
        shown += [f"--kubelet-client-key={folder / 'kubelet-client.key'}"]
        keys = [f"--service-account-key-file={folder / 'sa.key'}"]
        keys += [f"--service-account-signing-key-file={folder / 'sa.key'}", f"--service-account-issuer={_ISSUER}"]
        self._spawn(
            "apiserver",
            f"--etcd-servers={self._etcd.endpoints[0]}",
            f"--bind-address={self.address}",
            f"--advertise-address={self.address}",
            f"--secure-port={PORT}",
            f"--tls-cert-file={folder / 'server.crt'}",
            f"--tls-private-key-file={folder / 'server.key'}",
            f"--client-ca-file={self.authority}",
            f"--token-auth-file={folder / 'tokens.csv'}",
            f"--service-cluster-ip-range={SERVICES}",
            "--authorization-mode=Node,RBAC",
            "--enable-admission-plugins=NodeRestriction",
            "--kubelet-preferred-address-types=InternalIP",
            "--allow-privileged",
            *shown,
            *keys,
        )

    def stop_server(self) -> None:
        """As a power cut does: the API is gone, and with it those who hold a lease there by which they work: of several
        controller managers one does, and ends where it cannot renew it. One that lived on would take every node for
        gone as soon as the API is back."""
        for name in ("apiserver", "controller-manager", "scheduler"):
            self._kill(name)

    def stop(self) -> None:
        for name in list(self._processes):
            self._kill(name)
        self._etcd.kill()

    def until_ready(self) -> None:
        """Unavailable where the API server ends or does not become ready."""
        deadline = time.monotonic() + PATIENCE
        while True:
            try:
                self.get("/readyz")
                return
            except Unavailable:
                self.check()
                if time.monotonic() > deadline:
                    raise
            time.sleep(0.05)

    def get(self, path: str) -> Any:
        """What the API says there. Raises Unavailable."""
        request = urllib.request.Request(
            f"https://{self.address}:{PORT}{path}", headers={"Authorization": f"Bearer {self._token}"}
        )
        try:
            with urllib.request.urlopen(request, timeout=20, context=self._tls) as answer:
                said = answer.read()
        except (OSError, http.client.HTTPException) as e:
            raise Unavailable(f"the API of {self.name}, {path}: {e}") from e
        return json.loads(said) if said[:1] == b"{" else said.decode()

    def check(self) -> None:
        """Unavailable with the last words of a process that has ended by itself."""
        for name, process in self._processes.items():
            if process.poll() is not None:
                words = (self.folder / f"{name}.log").read_text()[-1500:]
                raise Unavailable(f"{name} of {self.name} has ended: {words}")

    def write_kubeconfig(self, path: Path, token: str, name: str = "") -> None:
        """For who has the token; the context is called as the cluster, or `name`."""
        name = name or self.name
        cluster = {"server": f"https://{self.address}:{PORT}", "certificate-authority": str(self.authority)}
        said = {
            "apiVersion": "v1",
            "kind": "Config",
            "clusters": [{"name": name, "cluster": cluster}],
            "users": [{"name": name, "user": {"token": token}}],
            "contexts": [{"name": name, "context": {"cluster": name, "user": name}}],
            "current-context": name,
        }
        path.write_bytes(msgspec.json.encode(said))  # JSON is YAML

    def _write_certificates(self) -> None:
        now = datetime.now(UTC)
        authority = create_authority(now, f"{self.name} Kubernetes")
        write_atomically(self.authority, authority.certificate_pem)
        names = ("kubernetes", "kubernetes.default", "kubernetes.default.svc", "localhost")
        hosts = (*names, str(self.address), _FIRST_SERVICE)
        leaves = {
            "server": Leaf("kube-apiserver", server=True, hosts=hosts),
            "kubelet-client": Leaf("kube-apiserver-kubelet-client"),
        }
        for file, leaf in leaves.items():
            pair = issue(authority, leaf, now)
            write_atomically(self.folder / f"{file}.crt", pair.certificate_pem)
            write_atomically(self.folder / f"{file}.key", pair.key_pem)
        key = rsa.generate_private_key(public_exponent=65537, key_size=2048)
        form = serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        write_atomically(self.folder / "sa.key", key.private_bytes(*form))

    def _write_users(self, nodes: list[str]) -> str:
        """Tokens and kubeconfig files of all; the admin's token."""
        users = {"admin": ("admin", "system:masters"), "controller-manager": ("manager", "system:masters")}
        users |= {"scheduler": ("system:kube-scheduler", "")}
        users |= {node: (f"system:node:{node}", "system:nodes") for node in nodes}
        tokens = {each: secrets.token_hex(16) for each in users}
        lines = [f"{tokens[each]},{name},{each},{group}" for each, (name, group) in users.items()]
        write_atomically(self.folder / "tokens.csv", "\n".join(lines).encode())
        for each, token in tokens.items():
            self.write_kubeconfig(self.folder / f"{each}.kubeconfig", token)
        return tokens["admin"]

    def _as_client(self, program: str) -> list[str]:
        config = self.folder / f"{program}.kubeconfig"
        flags = [f"--{each}kubeconfig={config}" for each in ("", "authentication-", "authorization-")]
        return [*flags, f"--bind-address={self.address}", "--leader-elect=false"]

    def _spawn(self, program: str, *flags: str) -> None:
        argv = ["setpriv", "--pdeathsig", "KILL", "--", str(KUBE), program, *flags]
        with (self.folder / f"{program}.log").open("ab") as log:
            self._processes[program] = subprocess.Popen(
                argv, stdin=subprocess.DEVNULL, stdout=log, stderr=log, process_group=0
            )

    def _kill(self, name: str) -> None:
        process = self._processes.pop(name, None)
        if process is not None:
            process.kill()
            process.wait()
