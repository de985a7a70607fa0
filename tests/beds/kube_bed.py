"""A real Kubernetes API: etcd, kube-apiserver and, where asked for, the controller manager, on the loopback.

TLS, client certificates, tokens, Node and RBAC authorization, as clusters have them. `make test` builds the programs
once (tools/setup-kube); every process started here is ended by its own process id.
"""

from __future__ import annotations

import asyncio
import base64
import http.client
import json
import queue
import signal
import ssl
import subprocess
import time
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any, Final, Self
from urllib.parse import quote

import yaml
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import padding, rsa
from etcd_flags import QUICK
from pki import Authority
from ports import free_port

from clustermesh.store.local import LocalEtcd

PROGRAM: Final = Path(__file__).parents[2] / "build" / "kube"
MISSING: Final = "" if PROGRAM.exists() else "no kube-apiserver here: tools/setup-kube builds it (make test does so)"
ISSUER: Final = "https://kubernetes.default.svc"
PATIENCE: Final = 60.0
_CONTROLLERS: Final = "endpointslice-controller,namespace-controller,serviceaccount-controller"


class KubeBed:
    """One cluster's API. `start` it; `stop` ends everything; in between it can be killed, frozen and started again."""

    def __init__(self, folder: Path, *etcd_flags: str) -> None:
        self.folder, self.patience = folder, PATIENCE
        folder.mkdir(parents=True, exist_ok=True)
        self.port = free_port()
        self.url = f"https://127.0.0.1:{self.port}"
        flags = [*QUICK, *etcd_flags]
        self.etcd = LocalEtcd(folder / "etcd", [f"http://127.0.0.1:{free_port()}"], flags=flags)
        self.authority = Authority(folder / "pki")
        self._server_pair = self.authority.issue("kube-apiserver", "127.0.0.1", "localhost")
        self.admin = self.authority.issue("admin", organisation="system:masters")
        self._signer = rsa.generate_private_key(public_exponent=65537, key_size=2048)
        (folder / "sa.key").write_bytes(_pem(self._signer))
        self._processes: dict[str, subprocess.Popen[bytes]] = {}
        self._idle: queue.SimpleQueue[http.client.HTTPSConnection] = queue.SimpleQueue()
        self._askers = ThreadPoolExecutor(8)
        self.tls = ssl.create_default_context(cafile=str(self.authority.ca))
        self._admin_tls = ssl.create_default_context(cafile=str(self.authority.ca))
        self._admin_tls.load_cert_chain(self.admin.cert, self.admin.key)

    def __enter__(self) -> Self:
        asyncio.run(self.etcd.start())
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._askers.shutdown()
        self._forget_connections()
        for name in list(self._processes):
            self.kill(name)
        self.etcd.kill()

    def start(self) -> None:
        """The API server, once it is ready."""
        self._spawn_server()
        self._until_ready()

    async def restart(self) -> None:
        """Kill it and start it again. Not in a thread: the kernel ends what a thread started with the thread."""
        self.kill()
        self._spawn_server()
        await asyncio.to_thread(self._until_ready)

    def _spawn_server(self) -> None:
        self._forget_connections()
        folder, pair = self.folder, self._server_pair
        self._spawn(
            "apiserver",
            f"--etcd-servers={self.etcd.endpoints[0]}",
            f"--secure-port={self.port}",
            "--bind-address=127.0.0.1",
            "--advertise-address=127.0.0.1",
            "--endpoint-reconciler-type=none",
            f"--tls-cert-file={pair.cert}",
            f"--tls-private-key-file={pair.key}",
            f"--client-ca-file={self.authority.ca}",
            f"--service-account-issuer={ISSUER}",
            f"--service-account-key-file={folder / 'sa.key'}",
            f"--service-account-signing-key-file={folder / 'sa.key'}",
            "--service-cluster-ip-range=10.96.0.0/12",
            "--authorization-mode=Node,RBAC",
            "--enable-admission-plugins=NodeRestriction",
            "--disable-admission-plugins=ServiceAccount",  # pods here run nowhere and need no account
            "--watch-cache=true",
            "--min-request-timeout=600",
        )

    def start_controllers(self, controllers: str = _CONTROLLERS) -> None:
        """The controller manager, which makes EndpointSlices of Services and Pods."""
        config = self.write_kubeconfig("controllers", cert="admin")
        self._spawn(
            "controller-manager",
            f"--kubeconfig={config}",
            f"--authentication-kubeconfig={config}",
            f"--authorization-kubeconfig={config}",
            f"--secure-port={free_port()}",
            "--bind-address=127.0.0.1",
            "--leader-elect=false",
            f"--controllers={controllers}",
            f"--service-account-private-key-file={self.folder / 'sa.key'}",
        )

    def kill(self, name: str = "apiserver") -> None:
        """As a power cut."""
        process = self._processes.pop(name, None)
        if process is not None:
            process.kill()
            process.wait()

    def freeze(self) -> None:
        self._processes["apiserver"].send_signal(signal.SIGSTOP)

    def thaw(self) -> None:
        self._processes["apiserver"].send_signal(signal.SIGCONT)

    def write_kubeconfig(
        self, name: str, *, cert: str = "", server: str = "", user: Mapping[str, Any] | None = None
    ) -> Path:
        """A kubeconfig whose context `name` is `user`, or who the certificate `cert` names."""
        if cert:
            pair = self.admin if cert == "admin" else self.authority.issue(cert)
            user = {"client-certificate": str(pair.cert), "client-key": str(pair.key)}
        cluster = {"server": server or self.url, "certificate-authority": str(self.authority.ca)}
        config = {
            "apiVersion": "v1",
            "kind": "Config",
            "clusters": [{"name": "bed", "cluster": cluster}],
            "users": [{"name": name, "user": dict(user or {})}],
            "contexts": [{"name": name, "context": {"cluster": "bed", "user": name}}],
            "current-context": name,
        }
        path = self.folder / f"{name}.kubeconfig"
        path.write_text(yaml.safe_dump(config))
        return path

    def token(self, namespace: str, name: str, seconds: float) -> str:
        """A token of the service account, good for `seconds`, and up to 70 more: the API server allows a clock to be a
        minute late, and remembers for ten seconds that a token was good."""
        account = self.ask("GET", f"/api/v1/namespaces/{namespace}/serviceaccounts/{name}")
        now = int(time.time())
        about = {"namespace": namespace, "serviceaccount": {"name": name, "uid": account["metadata"]["uid"]}}
        claims = {"iss": ISSUER, "aud": [ISSUER], "sub": f"system:serviceaccount:{namespace}:{name}"}
        times = {"iat": now - 600, "nbf": now - 600, "exp": int(now + seconds)}
        said = f"{_part({'alg': 'RS256', 'typ': 'JWT'})}.{_part({**claims, **times, 'kubernetes.io': about})}"
        return f"{said}.{_b64(self._signer.sign(said.encode(), padding.PKCS1v15(), hashes.SHA256()))}"

    def ask(self, method: str, path: str, body: Any = None, kind: str = "application/json") -> Any:
        """What the API answers to the admin. RuntimeError for anything but success."""
        return self._ask(method, path, body, kind)

    def ask_many(self, requests: Iterable[tuple[str, str, Any]]) -> list[Any]:
        """Many at once."""
        return list(self._askers.map(lambda each: self._ask(*each, "application/json"), requests))

    def create(self, *manifests: Mapping[str, Any]) -> None:
        """Create objects, and set their status where they have one."""
        self.ask_many(("POST", path_of(manifest), manifest) for manifest in manifests)
        self.ask_many(
            ("PUT", f"{path_of(manifest)}/{manifest['metadata']['name']}/status", manifest)
            for manifest in manifests
            if "status" in manifest
        )

    def merge(self, manifest: Mapping[str, Any], change: Any) -> Any:
        """Patch an object with a JSON merge patch."""
        path = f"{path_of(manifest)}/{manifest['metadata']['name']}"
        return self.ask("PATCH", path, change, "application/merge-patch+json")

    def delete(self, manifest: Mapping[str, Any]) -> None:
        path = f"{path_of(manifest)}/{manifest['metadata']['name']}?gracePeriodSeconds=0"
        self.ask("DELETE", path)

    def allow(self, user: str, role: Mapping[str, Any]) -> None:
        """Give `user` (a certificate's name, or "system:serviceaccount:NAMESPACE:NAME") the ClusterRole."""
        name = role["metadata"]["name"]
        at = "/apis/rbac.authorization.k8s.io/v1"
        self.ask("POST", f"{at}/clusterroles", role)
        binding = {
            "metadata": {"name": name},
            "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": name},
            "subjects": [{"kind": "User", "name": user, "apiGroup": "rbac.authorization.k8s.io"}],
        }
        self.ask("POST", f"{at}/clusterrolebindings", binding)

    def _spawn(self, program: str, *flags: str) -> None:
        argv = ["setpriv", "--pdeathsig", "KILL", "--", str(PROGRAM), program, *flags]
        with (self.folder / f"{program}.log").open("ab") as log:
            self._processes[program] = subprocess.Popen(
                argv, stdin=subprocess.DEVNULL, stdout=log, stderr=log, process_group=0
            )

    def _until_ready(self) -> None:
        deadline = time.monotonic() + self.patience
        while True:
            process = self._processes["apiserver"]
            if process.poll() is not None:
                words = (self.folder / "apiserver.log").read_text()[-2000:]
                raise RuntimeError(f"kube-apiserver ended with {process.returncode}: {words}")
            try:
                self.ask("GET", "/readyz")
                return
            except (OSError, RuntimeError, http.client.HTTPException):
                if time.monotonic() > deadline:
                    raise
            time.sleep(0.05)

    def _ask(self, method: str, path: str, body: Any, kind: str) -> Any:
        while True:  # the server ends a connection that nobody used for a while, and the next who takes it finds out
            connection, is_new = self._connection()
            try:
                status, text = _exchange(connection, method, path, body, kind)
                break
            except (OSError, http.client.HTTPException) as e:
                connection.close()
                if is_new or isinstance(e, TimeoutError):
                    raise
        self._idle.put(connection)
        if status >= 300:
            raise RuntimeError(f"{method} {path}: {status} {text[:2000]!r}")
        return json.loads(text) if text[:1] in (b"{", b"[") else text.decode()

    def _connection(self) -> tuple[http.client.HTTPSConnection, bool]:
        """One that nobody uses now, and whether it is new."""
        with suppress(queue.Empty):
            return self._idle.get_nowait(), False
        return http.client.HTTPSConnection("127.0.0.1", self.port, context=self._admin_tls, timeout=PATIENCE), True

    def _forget_connections(self) -> None:
        while not self._idle.empty():
            self._idle.get_nowait().close()


def _exchange(
    connection: http.client.HTTPSConnection, method: str, path: str, body: Any, kind: str
) -> tuple[int, bytes]:
    data = None if body is None else json.dumps(body).encode()
    connection.request(method, quote(path, safe="/?=&"), data, {"Content-Type": kind})
    answer = connection.getresponse()
    return answer.status, answer.read()


def path_of(manifest: Mapping[str, Any]) -> str:
    """Where objects of the manifest's kind and namespace are listed and created."""
    version, kind, namespace = manifest["apiVersion"], manifest["kind"].lower(), manifest["metadata"].get("namespace")
    plural = f"{kind[:-1]}ies" if kind.endswith("y") else f"{kind}s"
    root = f"/apis/{version}" if "/" in version else f"/api/{version}"
    return f"{root}/namespaces/{namespace}/{plural}" if namespace else f"{root}/{plural}"


def _part(value: object) -> str:
    return _b64(json.dumps(value).encode())


def _b64(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


def _pem(key: rsa.RSAPrivateKey) -> bytes:
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
