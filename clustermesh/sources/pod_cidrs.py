"""Which pod CIDRs a Node may have: none that is nobody's to have, is another Node's, or holds a Node itself. Pure.

A CIDR becomes a route on every node of the mesh. One that holds the address of a node sends that node's tunnel into
itself; one that holds this machine, its links or everybody cuts off whatever is there.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Mapping

from clustermesh.address import BITS, Address, Prefix, nobodys, prefix_text, text, to_int


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
    clash = nobodys(cidr)
    return "" if clash is None else f"must not overlap {prefix_text(clash)}, which is no node's to hand out"
