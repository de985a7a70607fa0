"""What the agent is told when it is started."""

from __future__ import annotations

import argparse
import os
import re
import socket
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Final, NoReturn, TypeVar

from msgspec import Struct
from msgspec.structs import fields

from agent.bpf.layouts import ConfigFlag, XdpMode
from agent.bpf.sizes import LEAST, MOST, USUAL, USUAL_CT
from agent.plan.devices import parse_device, parse_devices, parse_ports
from clustermesh.duration import parse_cache_ttl
from clustermesh.errors import Invalid
from clustermesh.listen import parse_address
from clustermesh.logs import FORMATS
from clustermesh.model import MAX_CLUSTERS, Protocol
from clustermesh.standalone.context import CHART_PEERS
from clustermesh.wire import keys

_EXAMPLES = """examples:
  clustermesh-agent --context /etc/clustermesh
  clustermesh-agent --context /etc/clustermesh --node worker-3 --metrics 0.0.0.0:9962
  clustermesh-agent --cluster-name alpha --cluster-id 1 --kvstore-opt etcd.config=/var/lib/etcd-config/etcd.config

exit codes: 0 stopped, 1 failed, 2 wrong usage or input
"""


_Value = TypeVar("_Value")

LOADERS: Final = ("libbpf", "bcc", "auto")
ACCELERATIONS: Final[Mapping[str, tuple[XdpMode, ...]]] = MappingProxyType(
    {"disabled": (), "native": (XdpMode.NATIVE,), "best-effort": (XdpMode.NATIVE, XdpMode.GENERIC)}
)


class Options(Struct, frozen=True, kw_only=True):
    """Where things are on this node.

    The cluster is the folder `context`, unless there is a `cluster_name`: `kvstore_opt` says where its etcd is then, as
    Cilium's flag does. `metrics` is HOST:PORT for /metrics, /readyz and /livez, or "" for none.
    `clustermesh_config` is a folder of connected clusters to read instead of the one in `context`: the mirror's. After
    `clustermesh_cache_ttl` seconds without an answer of a peer's etcd, 0 for never, its services are withdrawn.
    `devices` lead outside, each a name or, with a last +, how names begin; found out where there are none.
    With `enable_host_legacy_routing` packets pass the kernel's own filters on their way to pods, at the price of speed.
    `wireguard_starter` is a pipe whose reader starts wireguard-go; None: the agent does.
    `bpf_lb_acceleration` is one of ACCELERATIONS: by whom frames from outside are translated before they are packets.
    `bpf_lb_snat_ports`, first and last, are lent to calls from outside of backends elsewhere; None: found out.
    `loader` is one of LOADERS; auto is libbpf where it is there. `bpf_..._max` are entries of maps;
    `bpf_map_dynamic_size_ratio` is the part of the memory for those that programs fill, 0 for their usual sizes.
    """

    context: Path
    node: str
    cluster_name: str | None = None
    cluster_id: int = 0
    max_connected_clusters: int = MAX_CLUSTERS
    kvstore_opt: Sequence[str] = ()
    state_dir: Path = Path("/var/lib/clustermesh")
    run_dir: Path = Path("/run/clustermesh")
    bpffs: Path = Path("/sys/fs/bpf")
    metrics: str = "127.0.0.1:9962"
    device: str = "cm-wg0"
    port: int = 51871
    wireguard_starter: Path | None = None
    clustermesh_config: Path | None = None
    log_format: str = "text"
    clustermesh_cache_ttl: float = 0.0
    devices: tuple[str, ...] = ()
    enable_host_legacy_routing: bool = False
    bpf_lb_acceleration: str = "disabled"
    bpf_lb_snat_ports: tuple[int, int] | None = None
    loader: str = "libbpf"
    bpf_lb_map_max: int = USUAL
    bpf_lb_affinity_map_max: int = USUAL
    bpf_sock_rev_map_max: int = USUAL
    bpf_ct_global_tcp_max: int = USUAL_CT
    bpf_map_dynamic_size_ratio: float = 0.0

    @property
    def socket(self) -> Path:
        return self.run_dir / "agent.sock"

    @property
    def reserved(self) -> dict[tuple[Protocol, int], str]:
        """Where this agent is called itself, at whatever address of the node, in words."""
        metrics = {(Protocol.TCP, parse_address(self.metrics)[1]): "this agent's metrics"} if self.metrics else {}
        return {(Protocol.UDP, self.port): "WireGuard"} | metrics

    @property
    def packets(self) -> ConfigFlag:
        """What is switched on for packets."""
        return ConfigFlag(0) if self.enable_host_legacy_routing else ConfigFlag.REDIRECT

    @property
    def xdp_modes(self) -> tuple[XdpMode, ...]:
        """Those in which devices that lead outside may run the program of frames, the best first."""
        return ACCELERATIONS[self.bpf_lb_acceleration]

    @property
    def pins(self) -> Path:
        return self.bpffs / "clustermesh"

    @property
    def bcc_cache(self) -> Path:
        return self.state_dir / "bcc"

    @property
    def last_good(self) -> Path:
        return self.state_dir / "clusters"


class _Parser(argparse.ArgumentParser):
    """Says what is wrong in one line, as all commands do."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: error: {message.removeprefix('argument ')}\n")


def parse(arguments: list[str] | None = None) -> Options:
    """Options from the command line; exits with 2 and one line on a wrong one."""
    parser = _Parser(
        prog="clustermesh-agent",
        description="Keeps this node's kernel in step with the mesh: service maps, ipcache, WireGuard, routes.",
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add, defaults = parser.add_argument, {field.name: field.default for field in fields(Options)}
    context = os.environ.get("CLUSTERMESH_CONTEXT", "/etc/clustermesh")
    add("--context", type=Path, default=Path(context), metavar="DIR", help=f"the cluster's folder (default {context})")
    add("--cluster-name", metavar="NAME", help="the cluster, where no folder describes it, with the three that follow")
    add("--cluster-id", type=int, default=0, metavar="ID", help="its number")
    add("--max-connected-clusters", type=int, default=MAX_CLUSTERS, metavar="255|511", help="as in all of the mesh")
    add("--kvstore-opt", action="append", default=[], metavar="KEY=VALUE", help="etcd.config=FILE: where its etcd is")
    add(
        "--clustermesh-config",
        type=Path,
        metavar="DIR",
        help=f"the connected clusters, one file each (default: DIR/peers of --context, else {CHART_PEERS})",
    )
    add(
        "--clustermesh-cache-ttl",
        type=_typed(_cache_ttl),
        default=0.0,
        metavar="DURATION",
        help="withdraw a cluster's services once its etcd has not answered for so long, like 10m (default 0: never)",
    )
    add(
        "--devices",
        type=_typed(parse_devices),
        default=(),
        metavar="NAME,...",
        help="the devices that services are called on from outside, like eth0,bond+ (default: those of the default "
        "routes and of the Node's addresses)",
    )
    add(
        "--enable-host-legacy-routing",
        action="store_true",
        help="have packets of services pass the node's own filters (iptables, nftables) on their way to pods",
    )
    add(
        "--bpf-lb-acceleration",
        choices=tuple(ACCELERATIONS),
        default="disabled",
        help="translate frames of calls from outside of backends elsewhere before they are packets (XDP): in the "
        "drivers of the devices that lead outside, or where one cannot in the kernel (default: disabled)",
    )
    add(
        "--bpf-lb-snat-ports",
        type=_typed(parse_ports),
        metavar="FIRST-LAST",
        help="of this node, lent to calls from outside of backends elsewhere: so many a backend at once (default: "
        "10000-29999, or what is free of net.ipv4.ip_local_port_range)",
    )
    add(
        "--node",
        type=_typed(_node),
        default=socket.gethostname(),
        help="this node's name in its cluster (default: the host name)",
    )
    add(
        "--loader",
        choices=LOADERS,
        default="libbpf",
        help="who loads the programs: libbpf those that were compiled before, bcc compiles them here (default: libbpf)",
    )
    add(
        "--wireguard-starter",
        type=Path,
        metavar="PIPE",
        help="who reads it starts wireguard-go, where the kernel has no WireGuard (default: this agent does)",
    )
    add("--log-format", choices=FORMATS, default="text", help="how to log on stderr (default: text)")
    for option, kind, metavar, text in (
        ("state_dir", Path, "DIR", "kept over reboots"),
        ("run_dir", Path, "DIR", "where agent.sock is made"),
        ("bpffs", Path, "DIR", "a mounted bpf file system"),
        ("metrics", _listener, "HOST:PORT", 'HTTP metrics and health; "" for none'),
        ("device", parse_device, "NAME", "name of the WireGuard device"),
        ("port", _port, "PORT", "UDP port of WireGuard, equal in the whole mesh"),
        ("bpf_lb_map_max", _table_size, "N", "frontends the maps take, with twice as many backends"),
        ("bpf_lb_affinity_map_max", _size, "N", "clients that stay with their backend"),
        ("bpf_sock_rev_map_max", _size, "N", "unconnected sockets that know which service they meant"),
        ("bpf_ct_global_tcp_max", _size, "N", "connections of all protocols that programs follow, two entries each"),
        ("bpf_map_dynamic_size_ratio", _ratio, "RATIO", "part of the memory for what programs fill; 0: usual sizes"),
    ):
        usual = defaults[option]
        shown = f"{text} (default {usual})"
        add(
            f"--{option.replace('_', '-')}",
            type=kind if kind is Path else _typed(kind),
            default=usual,
            metavar=metavar,
            help=shown,
        )
    options = Options(**vars(parser.parse_args(arguments)))
    if options.cluster_name is None and (options.cluster_id or options.kvstore_opt):
        parser.error("--cluster-id and --kvstore-opt go with --cluster-name; else the folder of --context says both")
    return options


def _typed(read: Callable[[str], _Value]) -> Callable[[str], _Value]:
    """As argparse wants it: what is wrong with which value, behind the option."""

    def typed(text: str) -> _Value:
        try:
            return read(text)
        except Invalid as e:
            raise argparse.ArgumentTypeError(f"{e.value!r}: {e.rule}") from e

    return typed


def _listener(text: str) -> str:
    if text:
        parse_address(text)
    return text


def _cache_ttl(text: str) -> float:
    return parse_cache_ttl(text, "--clustermesh-cache-ttl")


def _node(text: str) -> str:
    return keys.check_name(text, "node")


def _size(text: str, least: int = LEAST) -> int:
    if not (text.isascii() and text.isdigit() and least <= int(text[:9]) <= MOST):
        raise Invalid("size", text, f"must be a number from {least} to {MOST}")
    return int(text)


def _table_size(text: str) -> int:
    return _size(text, USUAL)  # three quarters of the usual one may be other clusters'


def _ratio(text: str) -> float:
    if re.fullmatch(r"0|0?\.[0-9]{1,6}", text) is None or float(text) > 0.5:
        raise Invalid("ratio", text, "must be a number from 0 to 0.5, as 0.0025")
    return float(text)


def _port(text: str) -> int:
    if not (text.isascii() and text.isdigit() and len(text) <= 5 and 1 <= int(text) <= 65535):
        raise Invalid("port", text, "must be a number from 1 to 65535")
    return int(text)
