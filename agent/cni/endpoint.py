"""An interface of a pod, as it is asked for and as its file remembers it. Pure, but for reading such a file.

Names and MAC addresses follow from the container id, so whatever is left of a half-made pod is found again without any
memory of it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Final

import msgspec
from msgspec import Struct

from agent.cni.ipam import PodAddress
from agent.plan.attached import AttachedPod
from clustermesh.address import family_length, is_ipv4, parse, single, text
from clustermesh.errors import DecodeError, Invalid

_MAX_ID: Final = 200


class EndpointRequest(Struct, frozen=True, kw_only=True):
    """Parameters of cni_add, cni_del and cni_check. `netns` is the path of the pod's network namespace."""

    container_id: str
    ifname: str
    netns: str = ""
    pod_namespace: str = ""
    pod_name: str = ""


class EndpointRecord(Struct, frozen=True, kw_only=True):
    """A pod of this node, as its file remembers it. `mtu` is in bytes.

    `ip` and `gateway` are of IPv4, and "" where the pod has none: agents of before IPv6 read this file.
    """

    container_id: str
    ifname: str
    netns: str
    pod_namespace: str
    pod_name: str
    ip: str
    gateway: str
    mac: str
    host_ifname: str
    host_mac: str
    mtu: int
    ip6: str = ""
    gateway6: str = ""

    @property
    def addresses(self) -> tuple[PodAddress, ...]:
        """Of each family that the pod has. Raises Invalid for a file that somebody wrote in."""
        pairs = ((self.ip, self.gateway), (self.ip6, self.gateway6))
        return tuple(PodAddress(parse(ip), parse(gateway)) for ip, gateway in pairs if ip)

    def result(self) -> dict[str, Any]:
        """The answer to cni_add and cni_check. The first address stands outside of `ips` too, for older plugins."""
        ips = [
            {"ip": text(ip), "prefix_length": family_length(single(ip)), "gateway": text(gateway)}
            for ip, gateway in self.addresses
        ]
        return {**ips[0], "ips": ips, "mac": self.mac, "host_ifname": self.host_ifname, "mtu": self.mtu}


def make_record(request: EndpointRequest, addresses: Iterable[PodAddress], mtu: int) -> EndpointRecord:
    """What is asked for, with `addresses`, at most one of each family."""
    mac, host_mac = mac_addresses(request.container_id, request.ifname)
    fields = {"ip": "", "gateway": ""}
    for ip, gateway in addresses:
        family = "" if is_ipv4(ip) else "6"
        fields |= {f"ip{family}": text(ip), f"gateway{family}": text(gateway)}
    return EndpointRecord(
        **msgspec.structs.asdict(request),
        **fields,
        mac=mac,
        host_ifname=host_ifname(request.container_id, request.ifname),
        host_mac=host_mac,
        mtu=mtu,
    )


def as_attached(record: EndpointRecord) -> AttachedPod:
    return AttachedPod(
        container_id=record.container_id,
        ifname=record.ifname,
        addresses=tuple(address.ip for address in record.addresses),
        device=record.host_ifname,
        namespace=record.pod_namespace,
        name=record.pod_name,
    )


def host_ifname(container_id: str, ifname: str) -> str:
    """The host's end of the pod's veth pair: 15 characters, the most a device name has."""
    return f"lxc{_digest(container_id, ifname).hex()[:12]}"


def mac_addresses(container_id: str, ifname: str) -> tuple[str, str]:
    """The pod's and the host's MAC: unicast, locally administered."""
    digest = _digest(container_id, ifname)
    return "02:" + digest[8:13].hex(":"), "02:" + digest[16:21].hex(":")


def _digest(container_id: str, ifname: str) -> bytes:
    return hashlib.sha256(f"{container_id}:{ifname}".encode()).digest()


def check_request(request: EndpointRequest) -> None:
    """The two names become a file name."""
    for field, value in (("container_id", request.container_id), ("ifname", request.ifname)):
        if not value or len(value) > _MAX_ID or "/" in value or value.startswith(".") or not value.isprintable():
            raise Invalid(field, value, "must be a name that can be part of a file name")


def decode(path: Path) -> EndpointRecord:
    try:
        return msgspec.json.decode(path.read_bytes(), type=EndpointRecord)
    except (OSError, msgspec.DecodeError) as e:
        raise DecodeError("endpoint file", str(path), str(e)) from e


def decode_deletion(path: Path) -> EndpointRequest:
    try:
        request = msgspec.json.decode(path.read_bytes(), type=EndpointRequest)
        check_request(request)
    except (OSError, msgspec.DecodeError, Invalid) as e:
        raise DecodeError("queued deletion", str(path), str(e)) from e
    return request
