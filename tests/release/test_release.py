"""What is given away: the same bytes each time, and enough to run from with nothing of the checkout."""

from __future__ import annotations

import base64
import csv
import hashlib
import json
import os
import platform
import re
import stat
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from datetime import UTC, datetime
from email.parser import Parser
from pathlib import Path
from typing import Any

import pytest
import yaml
from chart_bed import GIVEN, HELM
from dist_bed import ROOT, build, contents
from kube_bed import MISSING as NO_KUBE
from kube_bed import KubeBed
from packaging.utils import parse_wheel_filename

from certs.folder import initialise
from certs.names import cluster_leaves
from clustermesh import __version__
from tools.release.archive import Entry, write_folder
from tools.release.debian import closure, packages_of
from tools.release.dependencies import files_of, needed
from tools.release.packages import CARRIED

needs_helm = pytest.mark.skipif(not GIVEN, reason="no Helm to give away here: tools/setup-kube builds it")
_SYSTEM = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


def test_two_builds_are_equal_byte_for_byte(dist: Path, what: list[str], tmp_path: Path) -> None:
    old = os.umask(0o077)
    try:
        again = build(tmp_path / "again", *what, TZ="Pacific/Auckland", PYTHONHASHSEED="7", LC_ALL="C")
    finally:
        os.umask(old)
    assert again == contents(dist)
    assert len(again) == len(what)


def test_the_wheel_carries_the_programs_with_every_source_of_them_and_the_chart(dist: Path) -> None:
    (wheel,) = (dist / "any").glob("*.whl")
    with zipfile.ZipFile(wheel) as packed:
        found = {name: packed.read(name) for name in packed.namelist()}
    assert {name.partition("/")[0] for name in found} == {
        *("clustermesh", "agent", "certs"),
        f"clustermesh-{__version__}.dist-info",
    }
    programs = {name for name in found if name.endswith(".bpf.o")}
    assert programs == {f"agent/bpf/{path.name}" for path in (ROOT / "build").glob("*.bpf.o")}
    for name in programs:
        assert os.fsencode(ROOT) not in found[name]
    sources = {path.name: path.read_bytes() for path in (ROOT / "bpf").iterdir() if path.suffix in {".c", ".h"}}
    inside = "agent/bpf/sources/"
    assert {name.removeprefix(inside): data for name, data in found.items() if name.startswith(inside)} == sources
    charts, inside = ROOT / "charts" / "clustermesh", "clustermesh/joining/chart/"
    files = {str(path.relative_to(charts)): path.read_bytes() for path in charts.rglob("*") if path.is_file()}
    files.pop(".helmignore")
    assert {name.removeprefix(inside): data for name, data in found.items() if name.startswith(inside)} == files


@needs_helm
def test_the_platforms_wheel_is_the_other_with_a_helm_that_needs_nothing_of_the_machine(dist: Path) -> None:
    (plain,) = (dist / "any").glob("*.whl")
    (wheel,) = dist.glob("*.whl")
    machine = platform.machine()
    tags = [f"py3-none-manylinux_2_17_{machine}", f"py3-none-musllinux_1_1_{machine}"]
    assert set(map(str, parse_wheel_filename(wheel.name)[3])) == set(tags)
    with zipfile.ZipFile(plain) as one, zipfile.ZipFile(wheel) as other:
        assert other.testzip() is None
        before, after = ({name: each.read(name) for name in each.namelist()} for each in (one, other))
        mode = other.getinfo(f"{CARRIED}helm").external_attr >> 16
        (record,) = [name for name in after if name.endswith("/RECORD")]
        listed = {row[0]: row[1:] for row in csv.reader(after[record].decode().splitlines())}
    assert stat.filemode(mode) == "-rwxr-xr-x"
    info = record.replace("RECORD", "WHEEL")
    changed = {name for name in after if before.get(name) != after[name]}
    assert (changed, before.keys() - after.keys()) == ({f"{CARRIED}helm", f"{CARRIED}LICENCES", info, record}, set())
    said = Parser().parsestr(after[info].decode())
    assert (said.get_all("Tag"), said["Root-Is-Purelib"]) == (tags, "false")
    for name, data in after.items():
        if name != record:
            digest = base64.urlsafe_b64encode(hashlib.sha256(data).digest()).decode().rstrip("=")
            assert listed.pop(name) == [f"sha256={digest}", str(len(data))]
    assert listed == {record: ["", ""]}

    helm, licences = after[f"{CARRIED}helm"], after[f"{CARRIED}LICENCES"].decode()
    assert helm == HELM.read_bytes()
    assert b"\tCGO_ENABLED=0\n" in helm
    assert b"/lib64/ld-linux" not in helm, "it asks for a library"
    for folder in (ROOT, HELM.resolve().parent, Path(tempfile.gettempdir()) / "go-build"):
        assert os.fsencode(folder) not in helm, "it is of the folder where it was built"
    assert re.search(r"(?m)^helm\.sh/helm/v3 v3\.\d+\.\d+$", licences)
    for each in ("Apache License", "Redistribution and use in source and binary forms", "Mozilla Public License"):
        assert each in licences


@needs_helm
def test_the_chart_is_of_the_same_version_and_renders(dist: Path) -> None:
    chart = dist / f"clustermesh-{__version__}.tgz"
    said = ["--set", "cluster.name=alpha", "--set", "cluster.id=1", "--kube-version=1.34.2"]
    shown, here = (
        subprocess.run([str(HELM), "template", "x", str(where), *said], capture_output=True, check=True).stdout
        for where in (chart, ROOT / "charts" / "clustermesh")
    )
    assert shown == here
    described = subprocess.run([str(HELM), "show", "chart", str(chart)], capture_output=True, check=True).stdout
    assert {yaml.safe_load(described)[key] for key in ("version", "appVersion")} == {__version__}


@pytest.fixture(scope="module")
def environment(dist: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A virtual environment with the wheel and what it says that it needs, and nothing else."""
    venv = tmp_path_factory.mktemp("environment") / "venv"
    subprocess.run(["/usr/bin/python3", "-m", "venv", "--without-pip", str(venv)], check=True)
    (modules,) = venv.glob("lib/python3*/site-packages")
    files: dict[str, Entry] = {}
    for each in needed("clustermesh").values():
        files |= files_of(each)
    write_folder(modules, files)
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--python", str(venv / "bin" / "python")]
    wheels = list(dist.glob("*.whl")) or (dist / "any").glob("*.whl")
    subprocess.run([*pip, "install", "-q", "--no-index", "--no-deps", *map(str, wheels)], check=True)
    subprocess.run([*pip, "check"], check=True)
    return venv


def node_status(root: Path, folder: str, path: str) -> dict[str, Any]:
    """What an agent says of itself that runs below `root`, where there is no checkout."""
    if os.geteuid() != 0:
        pytest.skip("root is missing: no namespace can be made")
    script = ROOT / "tests" / "beds" / "bare_machine.sh"
    argv = ["sh", str(script), str(root), str(ROOT), folder, f"{path}:{_SYSTEM}"]
    done = subprocess.run(argv, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    said: dict[str, Any] = json.loads(done.stdout)
    return {key: said[key] for key in ("ready", "problems", "version")}


WELL = {"ready": True, "problems": [], "version": __version__}


@pytest.mark.root
def test_a_node_runs_from_the_installed_wheel_where_there_is_no_checkout(environment: Path, tmp_path: Path) -> None:
    assert node_status(Path("/"), str(tmp_path / "node"), str(environment / "bin")) == WELL
    look = "from agent.bpf.bcc import find_sources as s; from agent.bpf.loader import find_object as o; print(s(), o())"
    argv = [str(environment / "bin" / "python"), "-c", look]
    found = subprocess.run(argv, cwd="/", capture_output=True, text=True, check=True)
    (bpf,) = environment.glob("lib/python3*/site-packages/agent/bpf")
    assert found.stdout.split() == [str(bpf / "sources"), str(bpf / "clustermesh.bpf.o")]


@needs_helm
@pytest.mark.skipif(bool(NO_KUBE), reason=NO_KUBE)
def test_the_chart_is_put_in_and_taken_out_where_nobody_installed_helm(environment: Path, tmp_path: Path) -> None:
    """By the wheel, on a real Kubernetes API, with an empty PATH and no home."""
    with KubeBed(tmp_path / "kube") as bed:
        place = ["--kubeconfig", str(bed.write_kubeconfig("alpha", cert="admin")), "--context", "alpha"]

        def clustermesh(*words: str, path: str = "") -> str:
            argv = [str(environment / "bin" / "clustermesh"), *words, *place]
            done = subprocess.run(
                argv, env={"PATH": path}, cwd="/", text=True, timeout=120, check=False, capture_output=True
            )
            assert done.returncode == 0, done.stdout + done.stderr
            return done.stdout + done.stderr

        def service() -> str:
            found = bed.ask("GET", "/api/v1/namespaces/kube-system/services")["items"]
            return ", ".join(each["spec"]["type"] for each in found)

        values = ("--set", "cluster.name=alpha", "--set", "cluster.id=1")
        assert "+ Deployment clustermesh-apiserver" in clustermesh("install", *values, "--dry-run")
        assert service() == ""
        (tmp_path / "helm").write_text("#!/bin/sh\necho v3.10.1\n")
        (tmp_path / "helm").chmod(0o755)
        said = clustermesh("install", *values, path=str(tmp_path))
        assert (service(), "is installed in alpha" in said) == ("NodePort", True), said
        (carried,) = environment.glob(f"lib/python3*/site-packages/{CARRIED}helm")
        warned = (
            f"{tmp_path}/helm is not used: Helm 3.14 or newer (not 4) is needed, and it is 3.10.1: {carried} is called"
        )
        assert warned in said
        said = clustermesh("upgrade", "--set", "clustermesh.apiserver.service.type=ClusterIP")
        assert (service(), "is upgraded in alpha" in said, "warning" in said) == ("ClusterIP", True, False), said
        clustermesh("enable", "--service-type", "LoadBalancer")
        assert service() == "LoadBalancer"
        clustermesh("config", "set", "clustermesh.apiserver.service.type", "NodePort")
        assert service() == "NodePort"
        assert "- Service clustermesh-apiserver" in clustermesh("uninstall")
        assert service() == ""


@pytest.fixture
def image(dist: Path, tmp_path: Path) -> tuple[Path, dict[str, Any]]:
    """The image's root file system, and its configuration."""
    (archive,) = dist.glob("clustermesh-image-*.tar")
    with tarfile.open(archive) as tar:

        def blob(digest: str) -> bytes:
            data = _file(tar, f"blobs/{digest.replace(':', '/')}")
            assert hashlib.sha256(data).hexdigest() == digest.removeprefix("sha256:")
            return data

        (listed,) = json.loads(_file(tar, "index.json"))["manifests"]
        manifest = json.loads(blob(listed["digest"]))
        config: dict[str, Any] = json.loads(blob(manifest["config"]["digest"]))
        (layer,) = manifest["layers"]
        data = blob(layer["digest"])
    assert config["rootfs"]["diff_ids"] == [layer["digest"]]
    root = tmp_path / "root"
    root.mkdir()
    subprocess.run(["tar", "-x", "-C", str(root)], input=data, check=True)
    return root, config["config"]


def _file(tar: tarfile.TarFile, name: str) -> bytes:
    found = tar.extractfile(name)
    assert found is not None
    return found.read()


@pytest.mark.root
def test_a_node_runs_from_the_image_and_its_user_may_read_and_start_all_of_it(
    image: tuple[Path, dict[str, Any]],
) -> None:
    root, config = image
    for path in root.rglob("*"):
        if not path.is_symlink() and path != root / "tmp":
            mode = path.stat().st_mode
            assert mode & 0o022 == 0, f"{path} is writable by others"
            assert mode & 0o004, f"{path} cannot be read"
    assert config["User"] == "65532:65532"
    assert not list(root.rglob("helm")), "no pod calls it"
    for command in ("clustermesh", "clustermesh-apiserver", "clustermesh-agent", "clustermesh-cni-install", "etcd"):
        argv = ["chroot", "--userspec=65532:65532", str(root), command, "--help"]
        subprocess.run(argv, env={"PATH": _SYSTEM}, capture_output=True, check=True)
    assert node_status(root, "/tmp", "/usr/local/bin") == WELL


# In a mount and network namespace of its own: the image's root, and below it what a kubelet mounts.
_POD = """\
set -e
ip link set lo up
mkdir -p "$0/run/etcd" "$0/var/lib/etcd-secrets" "$0/var/lib/cilium/etcd-secrets" "$0/var/lib/cilium/clustermesh"
mount --bind /dev "$0/dev"
mount --bind "$1" "$0/var/lib/etcd-secrets"
mount --bind "$2" "$0/var/lib/cilium/etcd-secrets"
chown 65532:65532 "$0/run/etcd"
echo "127.0.0.1 localhost" > "$0/etc/hosts"
within() { chroot --userspec=65532:65532 "$0" "$@"; }
within /usr/bin/clustermesh-apiserver etcdinit --etcd-cluster-name=clustermesh-apiserver \
  --etcd-initial-cluster-token=t --etcd-data-dir=/var/run/etcd
within /usr/bin/etcd --data-dir=/var/run/etcd --name=clustermesh-apiserver --client-cert-auth \
  --trusted-ca-file=/var/lib/etcd-secrets/ca.crt --cert-file=/var/lib/etcd-secrets/tls.crt \
  --key-file=/var/lib/etcd-secrets/tls.key --listen-client-urls=https://127.0.0.1:2379 \
  --advertise-client-urls=https://127.0.0.1:2379 --initial-cluster-token=t --auto-compaction-retention=1 &
within /usr/bin/clustermesh-apiserver kvstoremesh --cluster-name=alpha --cluster-id=1 \
  --kvstore-opt=etcd.config=/var/lib/cilium/etcd-config.yaml --kvstore-opt=etcd.qps=100 \
  --clustermesh-config=/var/lib/cilium/clustermesh --max-connected-clusters=255 --health-port=9881 &
for _ in $(seq 600); do
  python3 -c 'import urllib.request as r; print(r.urlopen("http://127.0.0.1:9881/readyz").read())' 2>/dev/null && break
  sleep 0.1
done
"""


@pytest.mark.root
def test_it_stands_in_for_the_image_of_ciliums_chart(image: tuple[Path, dict[str, Any]], tmp_path: Path) -> None:
    """The commands, files and user of Cilium's templates/clustermesh-apiserver/deployment.yaml."""
    root, _ = image
    made = tmp_path / "certs"
    initialise(made, cluster_leaves("alpha", ["127.0.0.1"]), datetime.now(UTC))
    secrets = []
    for name in ("server", "admin"):
        secret = tmp_path / name
        secret.mkdir()
        for file, of in (("ca.crt", "ca.crt"), ("tls.crt", f"{name}.crt"), ("tls.key", f"{name}.key")):
            (secret / file).write_bytes((made / of).read_bytes())
            (secret / file).chmod(0o444)
        secrets.append(str(secret))
    argv = ["unshare", "--mount", "--net", "--pid", "--fork", "--kill-child", "sh", "-c", _POD, str(root), *secrets]
    env = {"PATH": _SYSTEM, "CILIUM_CLUSTER_NAME": "alpha"}
    done = subprocess.run(argv, env=env, capture_output=True, text=True, timeout=120, check=False)
    assert (done.returncode, "ok" in done.stdout) == (0, True), done.stdout + done.stderr


def test_what_a_package_depends_on_comes_along_by_any_of_its_names() -> None:
    said = ["a\tb (>= 1) | c, v:any\t\t", "b\t\tlibc6\t", "d\ta\t\tv (= 2), w", "libc6\t\t\t", "e\tabsent\t\t"]
    installed = packages_of("\n".join(said))
    assert closure(["a"], installed) == {"a", "b", "d", "libc6"}
    with pytest.raises(KeyError, match="absent"):
        closure(["e"], installed)
