"""The parts of pyroute2 that a node needs. Its package imports every protocol it knows, which is as much again."""

import importlib.util
import sys

if "pyroute2" not in sys.modules and (_spec := importlib.util.find_spec("pyroute2")) is not None:
    sys.modules["pyroute2"] = importlib.util.module_from_spec(_spec)  # its modules are found in it, and nothing is run

from pyroute2.iproute.linux import AsyncIPRoute, IPRoute
from pyroute2.netlink.exceptions import NetlinkError
from pyroute2.netlink.generic.wireguard import AsyncWireGuard

__all__ = ["AsyncIPRoute", "AsyncWireGuard", "IPRoute", "NetlinkError"]
