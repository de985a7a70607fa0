"""`clustermesh apiserver` with a real Kubernetes API on one side and a real etcd on the other."""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import yaml
from apiserver_bed import Bed
from kube_bed import PATIENCE, KubeBed
from ports import free_port
from processes import child
from test_kube_source import DEFINITIONS, namespace, node, pod, service, until_served

from clustermesh.store.operations import KeyValue
from clustermesh.wire import keys

GOLDEN = Path(__file__).parents[1] / "golden"
RECORDED: Mapping[str, str] = json.loads((GOLDEN / "cilium-1.18.4.json").read_text())["state"]
CART = keys.service_key("alpha", "shop", "cart")
CART_0 = keys.parse_endpoint(b"cilium/state/ip/v1/default/10.1.0.5").place


@pytest.fixture
def api(tmp_path: Path) -> Iterator[KubeBed]:
    with KubeBed(tmp_path / "kube") as bed:
        yield bed


@asynccontextmanager
async def published(bed: Bed, api: KubeBed, **more: str) -> AsyncIterator[asyncio.subprocess.Process]:
    """An API server as Cilium's chart starts its own, in a process of its own; synced."""
    config = bed.context.path / "etcd-config.yaml"
    tls = bed.tls("admin")
    files = {"trusted-ca-file": str(tls.ca), "cert-file": str(tls.cert), "key-file": str(tls.key)}
    config.write_text(yaml.safe_dump({"endpoints": [bed.context.endpoint], **files}))
    flags = {
        "cluster-name": "alpha",
        "cluster-id": 1,
        "max-connected-clusters": 255,
        "kvstore-opt": f"etcd.config={config}",
        "k8s-kubeconfig-path": api.write_kubeconfig("admin", cert="admin"),
        "cluster-users-config-path": bed.context.users_file,
        "health-port": bed.http.rpartition(":")[2],
        "prometheus-serve-addr": f":{free_port()}",
        "controller-group-metrics": "all",
    }
    slower = ("--kvstore-opt=etcd.qps=20", "--kvstore-opt=etcd.bootstrapQps=10000")  # as the chart has it
    argv = ["clustermesh", "--debug", *slower, "--cluster-users-enabled", "--clustermesh-enable-mcs-api"]
    argv += [f"--{name}={value}" for name, value in (flags | more).items()]
    program = Path(sys.executable).with_name("clustermesh-apiserver")
    async with child(program, *argv) as process:
        yield process


def state(found: Mapping[bytes, KeyValue]) -> dict[str, str]:
    return {key.decode(): kv.value.decode() for key, kv in found.items() if key.startswith(keys.STATE)}


def manifests() -> list[dict[str, Any]]:
    """The very manifests; the cluster IP is the one that was allotted then."""
    found = list(yaml.safe_load_all((GOLDEN / "cilium-1.18.4.yaml").read_text()))
    found[0]["spec"]["clusterIP"] = "10.101.150.178"
    return found


async def test_ciliums_manifests_give_ciliums_keys_and_values(tmp_path: Path, api: KubeBed) -> None:
    api.create(*DEFINITIONS)
    await until_served(api)
    places = {"CiliumIdentity": "ciliumidentities", "CiliumEndpoint": "namespaces/default/ciliumendpoints"}
    for manifest in manifests():
        if manifest["apiVersion"] == "cilium.io/v2":
            place = places.get(manifest["kind"], "ciliumnodes")
            api.ask("POST", f"/apis/cilium.io/v2/{place}", manifest)
        else:
            api.create(manifest)
    async with Bed(tmp_path / "alpha") as bed:
        await bed.etcd.start()
        async with published(bed, api):
            wanted = {key: value for key, value in RECORDED.items() if key.startswith("cilium/state/")}
            cart = "cilium/state/services/v1/alpha/default/cart"  # the one field of ours, behind all of Cilium's
            wanted[cart] = wanted[cart].removesuffix("}") + ',"terminatingBackends":["10.1.0.6"]}'
            # the API has a Service of its own, which is not global
            await bed.until(lambda found: state(found) == wanted)
            found = await bed.until_synced()
            assert {key for key in RECORDED if key.startswith("cilium/synced/")} <= {key.decode() for key in found}


async def test_a_restart_and_a_lost_etcd_renumber_nothing(tmp_path: Path, api: KubeBed) -> None:
    api.start_controllers()
    api.create(namespace("shop"), node("n1", "192.0.2.1"), service("shop/cart"), pod("shop/cart-0", "10.1.0.5"))
    async with Bed(tmp_path / "alpha") as bed:
        await bed.etcd.start()
        async with published(bed, api):
            found = await bed.until(lambda found: CART in found and b"10.1.0.5" in found[CART].value)
            before = state(found)
            assert keys.endpoint_key(CART_0).decode() in before  # type: ignore[arg-type]
        bed.etcd.kill()
        bed.etcd = bed.make_etcd("empty")
        await bed.etcd.start()
        async with published(bed, api):
            await bed.until(lambda found: state(found) == before)


async def test_a_pod_that_is_ready_reaches_the_own_etcd(tmp_path: Path, api: KubeBed) -> None:
    api.start_controllers()
    api.create(namespace("shop"), node("n1", "192.0.2.1"), service("shop/cart"))
    async with Bed(tmp_path / "alpha") as bed:
        await bed.etcd.start()
        async with published(bed, api), asyncio.timeout(PATIENCE):
            await bed.until(lambda found: CART in found)
            api.create(pod("shop/cart-0", "10.1.0.5"))
            await bed.until(lambda found: b"10.1.0.5" in found[CART].value)
            api.merge(service("shop/cart"), {"metadata": {"annotations": {"service.cilium.io/global": None}}})
            await bed.until(lambda found: CART not in found)


async def test_where_namespaces_stay_at_home_one_that_says_so_takes_part(tmp_path: Path, api: KubeBed) -> None:
    own = keys.local_service_key("shop", "cart")
    api.create(namespace("shop"), service("shop/cart"))
    async with Bed(tmp_path / "alpha") as bed:
        await bed.etcd.start()
        async with published(bed, api, **{"clustermesh-default-global-namespace": "false"}):
            found = await bed.until(lambda found: own in found)
            assert CART not in found
            api.merge(namespace("shop"), {"metadata": {"annotations": {"clustermesh.cilium.io/global": "true"}}})
            await bed.until(lambda found: CART in found and own not in found)
