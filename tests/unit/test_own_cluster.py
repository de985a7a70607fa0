"""What a server or an agent is told of its cluster by flags, as Cilium's clustermesh-apiserver takes them."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml
from click.testing import CliRunner

from agent.options import parse
from agent.own_cluster import own_cluster
from clustermesh.cli import main
from clustermesh.errors import ClusterMeshError, Invalid
from clustermesh.model import Cluster
from clustermesh.own_cluster import of_flags
from clustermesh.sources.served import RULES
from clustermesh.standalone.context import CHART_PEERS, create
from clustermesh.store.login import Login
from clustermesh.store.tls import Tls

CONFIG = """\
endpoints: [https://127.0.0.1:2379]
trusted-ca-file: /var/lib/cilium/etcd-secrets/ca.crt
key-file: /var/lib/cilium/etcd-secrets/tls.key
cert-file: /var/lib/cilium/etcd-secrets/tls.crt
"""


@pytest.fixture
def config(tmp_path: Path) -> Path:
    (tmp_path / "etcd-config.yaml").write_text(CONFIG)
    return tmp_path / "etcd-config.yaml"


def test_the_own_etcd_is_where_ciliums_etcd_config_says(config: Path) -> None:
    found = of_flags("alpha", 300, [f"etcd.config={config}", "etcd.qps=1000"], Path("/users.yaml"), 511)
    secrets = Path("/var/lib/cilium/etcd-secrets")
    assert found.cluster == Cluster(name="alpha", id=300, max_clusters=511)
    assert found.endpoints == ("https://127.0.0.1:2379",)
    assert found.tls == Tls(secrets / "ca.crt", secrets / "tls.crt", secrets / "tls.key")
    assert found.users_file == Path("/users.yaml")


def test_an_agent_takes_the_same_flags_and_finds_the_others_where_the_chart_puts_them(config: Path) -> None:
    flags = ["--cluster-name", "alpha", "--cluster-id", "7", "--kvstore-opt", f"etcd.config={config}"]
    assert own_cluster(parse(flags)) == (of_flags("alpha", 7, [f"etcd.config={config}"]), CHART_PEERS)
    settings, peers = own_cluster(parse([*flags, "--clustermesh-config", "/peers", "--max-connected-clusters", "511"]))
    assert (settings.cluster.max_clusters, peers) == (511, Path("/peers"))
    with pytest.raises(Invalid, match="id"):
        own_cluster(parse(["--cluster-name", "alpha", *flags[4:]]))


def test_an_agent_of_a_cluster_that_is_a_folder_shows_its_own_certificate(tmp_path: Path) -> None:
    context = create(tmp_path / "alpha", "alpha", 1, "https://127.0.0.1:2379")
    settings, peers = own_cluster(parse(["--context", str(tmp_path / "alpha")]))
    assert settings.tls == Tls(context.ca, context.certificate("local"), context.key("local"))
    assert peers == context.peers


def test_an_etcd_without_tls_has_no_credentials(config: Path) -> None:
    config.write_text("endpoints: [http://127.0.0.1:2379]")
    assert of_flags("alpha", 1, [f"etcd.config={config}"]).tls is None


@pytest.mark.parametrize(
    ("name", "cluster_id", "options", "most"),
    [
        ("Alpha", 1, ["etcd.config=FILE"], 255),
        ("alpha", 0, ["etcd.config=FILE"], 255),
        ("alpha", 256, ["etcd.config=FILE"], 255),
        ("alpha", 1, ["etcd.config=FILE"], 300),
        ("alpha", 1, [], 255),
        ("alpha", 1, ["etcd.config="], 255),
        ("alpha", 1, ["etcd.config=FILE,consul.address=x"], 255),
        ("alpha", 1, ["etcd.config=/nowhere/at/all"], 255),
    ],
)
def test_a_bad_flag_is_refused(name: str, cluster_id: int, options: list[str], most: int, config: Path) -> None:
    with pytest.raises(ClusterMeshError):
        of_flags(name, cluster_id, [option.replace("FILE", str(config)) for option in options], most=most)


def test_the_role_that_is_needed_is_printed() -> None:
    shown = CliRunner().invoke(main, ["apiserver", "--show-role"])
    role = yaml.safe_load(shown.stdout)
    assert (shown.exit_code, role["kind"]) == (0, "ClusterRole")
    assert {verb for rule in role["rules"] for verb in rule["verbs"]} == {"list", "watch"}
    assert len(role["rules"]) == len(RULES)


def test_an_etcd_that_asks_for_a_password_is_somebody_elses_to_look_after(config: Path) -> None:
    """And who shows no certificate needs none."""
    users = Path("/users.yaml")
    config.write_text(
        "endpoints: [https://a:2379, https://b:2379]\ntrusted-ca-file: ca.crt\nusername: a\npassword: b\n"
    )
    found = of_flags("alpha", 1, [f"etcd.config={config}"], users)
    assert (found.endpoints, found.tls) == (("https://a:2379", "https://b:2379"), Tls(config.parent / "ca.crt"))
    assert found.login == Login("a", "b")
    assert not found.manages_users
    config.write_text(CONFIG)
    assert of_flags("alpha", 1, [f"etcd.config={config}"], users).manages_users
    assert not of_flags("alpha", 1, [f"etcd.config={config}"]).manages_users


def test_what_is_wrong_in_the_file_of_etcds_client_is_said_with_its_name(config: Path) -> None:
    config.write_text("endpoints: http://a:2379")
    with pytest.raises(Invalid, match=f"{config}: endpoints"):
        of_flags("alpha", 1, [f"etcd.config={config}"])
