"""What ethtool switches on a device, without the program."""

from __future__ import annotations

import ctypes
import fcntl
import socket
import struct
from typing import Final

SUM_WHAT_IS_SENT: Final = 0x17  # ETHTOOL_STXCSUM: left to the device; where there is none, to nobody
GATHER: Final = 0x2C  # ETHTOOL_SGRO: a veth takes frames by NAPI, as a real device does
_SIOCETHTOOL: Final = 0x8946


def switch(device: str, feature: int, on: bool) -> None:
    """Of this thread's network namespace."""
    value = ctypes.create_string_buffer(struct.pack("=II", feature, on))
    request = struct.pack("16sP", device.encode(), ctypes.addressof(value))
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as asking:
        fcntl.ioctl(asking, _SIOCETHTOOL, request)
