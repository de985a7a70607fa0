"""kvstoremesh as Cilium's chart starts it: its arguments, its files where they are mounted, its users.

alpha: etcd, API server, kvstoremesh in the chart's container   ── remote-alpha reads ──>   beta: etcd, API server

Sources: Cilium, install/kubernetes/cilium/templates/clustermesh-apiserver/deployment.yaml and clustermesh-config/.
"""

from __future__ import annotations

import asyncio
import os
import shutil
import subprocess
import sys
from collections.abc import AsyncIterator, Mapping
from contextlib import AbstractAsyncContextManager, AsyncExitStack
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
import yaml
from apiserver_bed import Bed, manifests, pods
from ports import free_port
from processes import PATIENCE, child, until_page
from state_sink import StateSink

from certs.folder import initialise, load_authority
from clustermesh.mesh.messages import Terms
from clustermesh.mesh.peer_files import read_peers
from clustermesh.mesh.reader import ClusterReader
from clustermesh.mesh.shared_clients import client_of
from clustermesh.mesh.tables import peer_tables
from clustermesh.standalone.users_file import add_user
from clustermesh.wire import keys

VOLUME = "/var/lib/cilium/clustermesh"
SECRETS = "/var/lib/cilium/etcd-secrets"
V1_18 = """\
kvstoremesh
--cluster-name=alpha
--cluster-id=1
--kvstore-opt=etcd.config=/var/lib/cilium/etcd-config.yaml
--kvstore-opt=etcd.qps=100
--kvstore-opt=etcd.bootstrapQps=10000
--kvstore-opt=etcd.maxInflight=10
--clustermesh-config=/var/lib/cilium/clustermesh
--max-connected-clusters=255
--health-port={health}
--prometheus-serve-addr=:{metrics}
--controller-group-metrics=all
--enable-heartbeat=false
"""
LATER = V1_18.replace("kvstoremesh\n", "kvstoremesh\n--debug\n", 1) + "--clustermesh-cache-ttl=0s\n"
NODE = """\
apiVersion: v1
kind: Node
metadata: {name: w1}
spec: {podCIDR: 10.2.0.0/24}
status: {addresses: [{type: InternalIP, address: 192.0.2.2}]}
"""
_ENTER = """\
mount -t tmpfs tmpfs /var/lib && mkdir /var/lib/cilium && mount --bind "$0" /var/lib/cilium && exec "$@"
"""


class Volume:
    """A projected volume: the files are links through ..data, which is swapped as a whole."""

    def __init__(self, folder: Path) -> None:
        self._folder, self._versions = folder, 0
        folder.mkdir()

    def project(self, files: Mapping[str, bytes]) -> None:
        self._versions += 1
        version = self._folder / f"..{self._versions}"
        version.mkdir()
        for name, data in files.items():
            (version / name).write_bytes(data)
            (version / name).chmod(0o400)
        (self._folder / "..data_tmp").symlink_to(version.name)
        (self._folder / "..data_tmp").rename(self._folder / "..data")
        for name in files:
            if not (self._folder / name).is_symlink():
                (self._folder / name).symlink_to(f"..data/{name}")
        for path in self._folder.iterdir():
            if path.is_symlink() and not path.exists():
                path.unlink()


class Container:
    """What the chart's container of alpha has below /var/lib/cilium."""

    def __init__(self, folder: Path, alpha: Bed, beta: Bed) -> None:
        self._folder, self._alpha, self._beta = folder, alpha, beta
        folder.mkdir()
        Volume(folder / "etcd-secrets").project(self._pair("admin", "tls.crt", "tls.key", "ca.crt"))
        named = zip(("trusted-ca-file", "key-file", "cert-file"), ("ca.crt", "tls.key", "tls.crt"), strict=True)
        config = {key: f"{SECRETS}/{name}" for key, name in named} | {"endpoints": [alpha.context.endpoint]}
        (folder / "etcd-config.yaml").write_text(yaml.safe_dump(config))
        self.clusters = Volume(folder / "clustermesh")
        self.health, self.metrics = (f"127.0.0.1:{free_port()}" for _ in range(2))

    def connect(self, *, beta: bool = True) -> None:
        """The Secret cilium-kvstoremesh and the certificate for peers, with beta or without."""
        files = self._pair("remote", "common-etcd-client.crt", "common-etcd-client.key", "common-etcd-client-ca.crt")
        port = self._beta.context.endpoint.rpartition(":")[2]
        said = f"""
endpoints:
- https://beta.mesh.cilium.io:{port}
trusted-ca-file: {VOLUME}/common-etcd-client-ca.crt
key-file: {VOLUME}/common-etcd-client.key
cert-file: {VOLUME}/common-etcd-client.crt

cilium-host-aliases:
  beta.mesh.cilium.io:
    ips:
      - 127.0.0.1
"""
        self.clusters.project(files | ({"beta": said.encode()} if beta else {}))

    def run(self, arguments: str) -> AbstractAsyncContextManager[asyncio.subprocess.Process]:
        ports = {name: at.rpartition(":")[2] for name, at in (("health", self.health), ("metrics", self.metrics))}
        program = Path(sys.executable).with_name("clustermesh-apiserver")
        return child(
            *("unshare", "--mount", "--", "sh", "-c", _ENTER, self._folder, program), *arguments.format(**ports).split()
        )

    def _pair(self, name: str, cert: str, key: str, ca: str) -> dict[str, bytes]:
        tls = self._alpha.tls(name)
        assert tls.cert is not None
        assert tls.key is not None
        return {cert: tls.cert.read_bytes(), key: tls.key.read_bytes(), ca: tls.ca.read_bytes()}


@pytest.fixture(scope="module", autouse=True)
def _needs_mounts() -> None:
    if shutil.which("unshare") is None or subprocess.run(["unshare", "--mount", "true"], check=False).returncode:
        pytest.skip(
            "no mount namespace of its own (root, unshare): the chart's files cannot stand where it mounts them"
        )


@pytest.fixture
async def clusters(tmp_path: Path) -> AsyncIterator[tuple[Bed, Bed]]:
    """alpha and beta with one authority, published; beta knows alpha."""
    alpha = Bed(tmp_path / "alpha")
    now = datetime.now(UTC)
    initialise(tmp_path / "beta" / "certs", {}, now, authority=load_authority(alpha.context.certs, now))
    beta = Bed(tmp_path / "beta", "beta", 2)
    add_user(beta.context.users_file, "remote-alpha")
    alpha.write("pods.yaml", pods("a"))
    beta.write("node.yaml", NODE)
    beta.write("cart.yaml", manifests("10.2.0.5"))
    async with AsyncExitStack() as stack:
        for bed in (alpha, beta):
            await stack.enter_async_context(bed)
            await bed.etcd.start()
            await stack.enter_async_context(bed.child())
        await alpha.until_users("root", "admin-alpha", "local-alpha", "remote")
        await beta.until_users("root", "admin-beta", "local-beta", "remote", "remote-alpha")
        await beta.until_synced()
        yield alpha, beta


async def known_to_an_agent(alpha: Bed, folder: Path) -> Any:
    """What an agent knows of beta that reads with the Secret cilium-clustermesh and the certificate of local users."""
    folder.mkdir()
    local = alpha.tls("local")
    files = {"trusted-ca-file": str(local.ca), "key-file": str(local.key), "cert-file": str(local.cert)}
    (folder / "beta").write_text(yaml.safe_dump({"endpoints": [alpha.context.endpoint], **files}))
    file, sink = read_peers(folder, "alpha").peers["beta"], StateSink()
    reader = ClusterReader("beta", sink, lambda: client_of(file), peer_tables, lambda _n, _c: None, Terms())
    task = asyncio.create_task(reader.run())
    async with asyncio.timeout(PATIENCE):
        while not (sink.view().services and sink.view().nodes):
            await asyncio.sleep(0.02)
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    return sink.view()


@pytest.mark.parametrize("arguments", [V1_18, LATER], ids=["1.18", "later"])
async def test_what_ciliums_chart_starts_copies_what_ciliums_would(
    clusters: tuple[Bed, Bed], tmp_path: Path, arguments: str
) -> None:
    alpha, beta = clusters
    container = Container(tmp_path / "container", alpha, beta)
    container.connect()
    async with container.run(arguments):
        state = {kv.key: kv.value for kv in (await beta.client.range(keys.STATE)).kvs}
        wanted = {keys.cache_key(key, "beta"): value for key, value in state.items()}
        canaries = [keys.canary_key("beta", each, cached=True) for each in ("nodes", "services", "identities", "ip")]
        found = await alpha.until(lambda found: found.keys() >= {*wanted, *canaries})
        assert {key: kv.value for key, kv in found.items() if key.startswith(keys.CACHE)} == wanted
        await until_page(container.health, "/readyz", "ok")
        await until_page(container.metrics, "/metrics", 'remote_cluster_readiness_status{target_cluster="beta"} 1.0')
        view = await known_to_an_agent(alpha, tmp_path / "agent")
        assert (list(view.services), list(view.nodes)) == ([("shop", "cart")], ["w1"])
        beats = found[keys.HEARTBEAT].lease
        container.connect(beta=False)
        found = await alpha.until(lambda found: keys.cluster_config_key("beta") not in found)
        assert keys.cluster_config_key("alpha") in found
        assert found[keys.HEARTBEAT].lease == beats, "the API server beats, and nobody else"
        container.connect()
        await alpha.until(lambda found: keys.cluster_config_key("beta") in found)
    assert not os.path.ismount("/var/lib/cilium")
