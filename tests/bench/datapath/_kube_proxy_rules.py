"""What kube-proxy writes for services, in its own form (chains, statistic matches and verdict maps as its source
has them): for iptables-restore, and for nft, in pieces.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from typing import Final

from tests.bench.datapath._load import Target
from tests.bench.datapath._network import POD_CIDRS
from tests.bench.datapath._services import PORT, Made

_PIECE: Final = 40_000  # lines: the time of one transaction of nft grows with the square of its size
_NFT: Final = "ip kube-proxy"


def _hash(*words: object) -> str:
    digest = hashlib.sha256("".join(map(str, words)).encode()).digest()
    return base64.b32encode(digest).decode()[:16]


def _port_name(service: Made) -> str:
    return f"default/{service.name}:http"


# -- iptables ---------------------------------------------------------------------------------------------------------

_FILTER: Final = """*filter
:KUBE-FIREWALL - [0:0]
:KUBE-FORWARD - [0:0]
:KUBE-SERVICES - [0:0]
:KUBE-EXTERNAL-SERVICES - [0:0]
:KUBE-NODEPORTS - [0:0]
:KUBE-PROXY-FIREWALL - [0:0]
-A INPUT -m conntrack --ctstate NEW -m comment --comment "kubernetes load balancer firewall" -j KUBE-PROXY-FIREWALL
-A INPUT -m comment --comment "kubernetes health check service ports" -j KUBE-NODEPORTS
-A INPUT -m conntrack --ctstate NEW -m comment --comment "kubernetes externally-visible service portals" \
-j KUBE-EXTERNAL-SERVICES
-A INPUT -j KUBE-FIREWALL
-A FORWARD -m conntrack --ctstate NEW -m comment --comment "kubernetes load balancer firewall" -j KUBE-PROXY-FIREWALL
-A FORWARD -m comment --comment "kubernetes forwarding rules" -j KUBE-FORWARD
-A FORWARD -m conntrack --ctstate NEW -m comment --comment "kubernetes service portals" -j KUBE-SERVICES
-A FORWARD -m conntrack --ctstate NEW -m comment --comment "kubernetes externally-visible service portals" \
-j KUBE-EXTERNAL-SERVICES
-A OUTPUT -m conntrack --ctstate NEW -m comment --comment "kubernetes load balancer firewall" -j KUBE-PROXY-FIREWALL
-A OUTPUT -m conntrack --ctstate NEW -m comment --comment "kubernetes service portals" -j KUBE-SERVICES
-A OUTPUT -j KUBE-FIREWALL
-A KUBE-FIREWALL ! -s 127.0.0.0/8 -d 127.0.0.0/8 -m comment --comment "block incoming localnet connections" \
-m conntrack ! --ctstate RELATED,ESTABLISHED,DNAT -j DROP
-A KUBE-FORWARD -m conntrack --ctstate INVALID -j DROP
-A KUBE-FORWARD -m comment --comment "kubernetes forwarding rules" -m mark --mark 0x4000/0x4000 -j ACCEPT
-A KUBE-FORWARD -m comment --comment "kubernetes forwarding conntrack rule" -m conntrack --ctstate RELATED,ESTABLISHED \
-j ACCEPT
COMMIT
*nat
:KUBE-SERVICES - [0:0]
:KUBE-NODEPORTS - [0:0]
:KUBE-POSTROUTING - [0:0]
:KUBE-MARK-MASQ - [0:0]
"""
_NAT: Final = """-A PREROUTING -m comment --comment "kubernetes service portals" -j KUBE-SERVICES
-A OUTPUT -m comment --comment "kubernetes service portals" -j KUBE-SERVICES
-A POSTROUTING -m comment --comment "kubernetes postrouting rules" -j KUBE-POSTROUTING
-A KUBE-POSTROUTING -m mark ! --mark 0x4000/0x4000 -j RETURN
-A KUBE-POSTROUTING -j MARK --xor-mark 0x4000
-A KUBE-POSTROUTING -m comment --comment "kubernetes service traffic requiring SNAT" -j MASQUERADE --random-fully
-A KUBE-MARK-MASQ -j MARK --or-mark 0x4000
"""
_LAST: Final = (
    '-A KUBE-SERVICES -m comment --comment "kubernetes service nodeports; NOTE: this must be the last rule in this '
    'chain" -m addrtype --dst-type LOCAL -j KUBE-NODEPORTS\nCOMMIT\n'
)


def for_iptables(services: Iterable[Made]) -> str:
    """The whole of it, for iptables-restore."""
    chains, jumps, rules = list[str](), list[str](), list[str]()
    for service in services:
        name, chain = _port_name(service), f"KUBE-SVC-{_hash(_port_name(service), 'tcp')}"
        called = f'-m comment --comment "{name} cluster IP" -m tcp -p tcp -d {service.vip} --dport {PORT}'
        chains.append(chain)
        jumps.append(f"-A KUBE-SERVICES {called} -j {chain}")
        rules.append(f"-A {chain} {called} ! -s {POD_CIDRS} -j KUBE-MARK-MASQ")
        for left, target in zip(range(len(service.backends), 0, -1), service.backends, strict=True):
            end = f"KUBE-SEP-{_hash(name, 'tcp', *target)}"
            chance = f"-m statistic --mode random --probability {1 / left:.10f} " if left > 1 else ""
            chains.append(end)
            rules.append(f'-A {chain} -m comment --comment "{name} -> {_text(target)}" {chance}-j {end}')
            rules += _end_point(end, name, target)
    return "".join([_FILTER, *(f":{each} - [0:0]\n" for each in chains), _NAT, _lines(jumps), _lines(rules), _LAST])


def node_port_for_iptables(port: int, targets: Sequence[Target]) -> str:
    """One UDP service at a node port, for iptables-restore."""
    name, call, chain = "default/node:dns", "KUBE-EXT-NODE", "KUBE-SVC-NODE"
    chains, rules = [call, chain], [f"-A {call} -j KUBE-MARK-MASQ", f"-A {call} -j {chain}"]
    jump = f'-A KUBE-NODEPORTS -m comment --comment "{name}" -m udp -p udp --dport {port} -j {call}'
    for left, (address, target) in zip(range(len(targets), 0, -1), targets, strict=True):
        end = f"KUBE-SEP-{_hash(name, 'udp', address)}"
        chance = f"-m statistic --mode random --probability {1 / left:.10f} " if left > 1 else ""
        chains.append(end)
        rules.append(f'-A {chain} -m comment --comment "{name}" {chance}-j {end}')
        rules.append(f"-A {end} -s {address} -j KUBE-MARK-MASQ")
        rules.append(f"-A {end} -m udp -p udp -j DNAT --to-destination {address}:{target}")
    return "".join([_FILTER, *(f":{each} - [0:0]\n" for each in chains), _NAT, _lines([jump, *rules]), _LAST])


def _end_point(chain: str, name: str, target: Target) -> Iterator[str]:
    yield f'-A {chain} -m comment --comment "{name}" -s {target[0]} -j KUBE-MARK-MASQ'
    yield f'-A {chain} -m comment --comment "{name}" -m tcp -p tcp -j DNAT --to-destination {_text(target)}'


def _text(target: Target) -> str:
    return f"{target[0]}:{target[1]}"


def _lines(lines: Iterable[str]) -> str:
    return "".join(f"{line}\n" for line in lines)


# -- nftables ---------------------------------------------------------------------------------------------------------

_BASE: Final = f"""add table {_NFT}
add set {_NFT} cluster-ips {{ type ipv4_addr ; }}
add set {_NFT} nodeport-ips {{ type ipv4_addr ; }}
add map {_NFT} no-endpoint-services {{ type ipv4_addr . inet_proto . inet_service : verdict ; }}
add map {_NFT} no-endpoint-nodeports {{ type inet_proto . inet_service : verdict ; }}
add map {_NFT} firewall-ips {{ type ipv4_addr . inet_proto . inet_service : verdict ; }}
add map {_NFT} service-ips {{ type ipv4_addr . inet_proto . inet_service : verdict ; }}
add map {_NFT} service-nodeports {{ type inet_proto . inet_service : verdict ; }}
add chain {_NFT} mark-for-masquerade
add rule {_NFT} mark-for-masquerade mark set mark or 0x4000
add chain {_NFT} masquerading
add rule {_NFT} masquerading mark and 0x4000 == 0 return
add rule {_NFT} masquerading mark set mark xor 0x4000
add rule {_NFT} masquerading masquerade fully-random
add chain {_NFT} reject-chain
add rule {_NFT} reject-chain reject
add chain {_NFT} cluster-ips-check
add rule {_NFT} cluster-ips-check ip daddr @cluster-ips reject
add chain {_NFT} service-endpoints-check
add rule {_NFT} service-endpoints-check ip daddr . meta l4proto . th dport vmap @no-endpoint-services
add chain {_NFT} nodeport-endpoints-check
add rule {_NFT} nodeport-endpoints-check ip daddr @nodeport-ips meta l4proto . th dport vmap @no-endpoint-nodeports
add chain {_NFT} firewall-check
add rule {_NFT} firewall-check ip daddr . meta l4proto . th dport vmap @firewall-ips
add chain {_NFT} services
add rule {_NFT} services ip daddr . meta l4proto . th dport vmap @service-ips
add rule {_NFT} services ip daddr @nodeport-ips meta l4proto . th dport vmap @service-nodeports
add chain {_NFT} filter-prerouting {{ type filter hook prerouting priority -110 ; }}
add rule {_NFT} filter-prerouting ct state new jump firewall-check
add chain {_NFT} filter-input {{ type filter hook input priority -110 ; }}
add rule {_NFT} filter-input ct state new jump nodeport-endpoints-check
add rule {_NFT} filter-input ct state new jump service-endpoints-check
add chain {_NFT} filter-forward {{ type filter hook forward priority -110 ; }}
add rule {_NFT} filter-forward ct state new jump service-endpoints-check
add rule {_NFT} filter-forward ct state new jump cluster-ips-check
add chain {_NFT} filter-output {{ type filter hook output priority -110 ; }}
add rule {_NFT} filter-output ct state new jump service-endpoints-check
add rule {_NFT} filter-output ct state new jump firewall-check
add chain {_NFT} filter-output-post-dnat {{ type filter hook output priority -90 ; }}
add rule {_NFT} filter-output-post-dnat ct state new jump cluster-ips-check
add chain {_NFT} nat-prerouting {{ type nat hook prerouting priority dstnat ; }}
add rule {_NFT} nat-prerouting jump services
add chain {_NFT} nat-output {{ type nat hook output priority -100 ; }}
add rule {_NFT} nat-output jump services
add chain {_NFT} nat-postrouting {{ type nat hook postrouting priority srcnat ; }}
add rule {_NFT} nat-postrouting jump masquerading
"""


def for_nft(services: Iterable[Made]) -> Iterator[str]:
    """In pieces for `nft -f`, one after the other."""
    yield _BASE
    lines = (line for service in services for line in _nft_service(service))
    while piece := list(islice(lines, _PIECE)):
        yield _lines(piece)


def _nft_service(service: Made) -> Iterator[str]:
    name = _port_name(service)
    what = f"default/{service.name}/tcp/http"
    chain = f"service-{_hash(name, 'tcp')[:8]}-{what}"
    ends = [f"endpoint-{_hash(name, *each)[:8]}-{what}__{each[0]}/{each[1]}" for each in service.backends]
    for end, (address, port) in zip(ends, service.backends, strict=True):
        yield f"add chain {_NFT} {end}"
        yield f"add rule {_NFT} {end} ip saddr {address} jump mark-for-masquerade"
        yield f"add rule {_NFT} {end} meta l4proto tcp dnat to {address}:{port}"
    yield f"add chain {_NFT} {chain}"
    called = f"ip daddr {service.vip} tcp dport {PORT}"
    yield f"add rule {_NFT} {chain} {called} ip saddr != {POD_CIDRS} jump mark-for-masquerade"
    chances = ", ".join(f"{number} : goto {end}" for number, end in enumerate(ends))
    yield f"add rule {_NFT} {chain} numgen random mod {len(ends)} vmap {{ {chances} }}"
    yield f"add element {_NFT} cluster-ips {{ {service.vip} }}"
    yield f"add element {_NFT} service-ips {{ {service.vip} . tcp . {PORT} : goto {chain} }}"
