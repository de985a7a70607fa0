"""The parts of pyroute2 that a node needs. Its package imports every protocol it knows, which is a third as much again
(17 ms of CPU at each start): that is left until somebody asks for what only the package has."""
# ruff: noqa: E402  # the package is deferred before anything of it is imported

from agent.late_package import defer

defer("pyroute2")

from pyroute2.iproute.linux import AsyncIPRoute, IPRoute
from pyroute2.netlink.exceptions import NetlinkError
from pyroute2.netlink.generic.wireguard import AsyncWireGuard

__all__ = ["AsyncIPRoute", "AsyncWireGuard", "IPRoute", "NetlinkError"]
