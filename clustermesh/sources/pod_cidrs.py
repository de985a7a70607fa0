"""Which pod CIDRs a Node may have: none that is nobody's to have, is another Node's, or holds a Node itself. Pure.

A CIDR becomes a route on every node of the mesh. One that holds the address of a node sends that node's tunnel into
itself; one that holds this machine, its links or everybody cuts off whatever is there.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Mapping
from typing import Final

from clustermesh.address import BITS, Address, Prefix, is_ipv4, overlaps, parse_prefix, prefix_text, text, to_int

_NOBODYS: Final = tuple(
    (parse_prefix(cidr), what)
    for cidr, what in (
        ("0.0.0.0/8", "this network"),
        ("127.0.0.0/8", "loopback"),
        ("169.254.0.0/16", "link-local"),
        ("224.0.0.0/3", "multicast and reserved"),
        ("::/8", "reserved and loopback"),
        ("fe80::/10", "link-local"),
        ("ff00::/8", "multicast"),
    )
)


class PodCidrs:
    """The pod CIDRs handed out so far, beside the `nodes` at the addresses that none may hold.

    They are disjoint, so whatever overlaps a new one is its neighbour in the order.
    """

    def __init__(self, nodes: Mapping[Address, str]) -> None:
        self._blocks: list[tuple[int, int, str]] = []
        self._nodes = sorted((to_int(address), address, name) for address, name in nodes.items())

    def take(self, cidr: Prefix, node: str) -> str:
        """Take `cidr` for `node` and return "", or say what it must not be."""
        first = to_int(cidr.address)
        last = first + (1 << (BITS - cidr.length)) - 1
        if fault := _nobodys(cidr) or self._node_within(first, last):
            return fault
        place = bisect_left(self._blocks, (first, -1, ""))
        for begin, end, owner in self._blocks[max(place - 1, 0) : place + 1]:
            if begin <= last and first <= end:
                return f"must not overlap {owner}"
        self._blocks.insert(place, (first, last, f"{prefix_text(cidr)} of node {node}"))
        return ""

    def _node_within(self, first: int, last: int) -> str:
        place = bisect_left(self._nodes, (first,))
        if place == len(self._nodes) or self._nodes[place][0] > last:
            return ""
        _, address, name = self._nodes[place]
        return f"must not hold {text(address)}, where node {name} is reached"


def _nobodys(cidr: Prefix) -> str:
    for block, what in _NOBODYS:
        if is_ipv4(block.address) is is_ipv4(cidr.address) and overlaps(block, cidr):
            return f"must not overlap {prefix_text(block)} ({what}), which is no node's to hand out"
    return ""
