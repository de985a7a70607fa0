"""A TUN device that outlives the process attached to it.

While wireguard-go is dead, its device, routes and attached eBPF programs stay where they are: packets for peers are
dropped there instead of leaving unencrypted, and the next wireguard-go takes the same device over.
"""

from __future__ import annotations

import errno
import fcntl
import os
import struct
from pathlib import Path
from typing import Final

from clustermesh.errors import Refused

_TUNSETIFF: Final = 0x400454CA
_TUNSETPERSIST: Final = 0x400454CB
_IFF_TUN, _IFF_NO_PI, _IFF_VNET_HDR = 0x0001, 0x1000, 0x4000  # the flags wireguard-go attaches with: they must be equal
_DEVICE: Final = Path("/dev/net/tun")


def make_persistent(name: str) -> None:
    """Make the TUN device `name` exist until somebody deletes it; a process attached already is success.

    Raises Refused: no /dev/net/tun, no CAP_NET_ADMIN, or `name` belongs to another kind of device.
    """
    try:
        fd = os.open(_DEVICE, os.O_RDWR | os.O_CLOEXEC)
    except OSError as e:
        raise Refused(f"{_DEVICE}: {e.strerror} (wireguard-go needs the TUN driver)") from e
    try:
        # struct ifreq (linux/if.h): 16 bytes of name, then the flags in a union of 24 bytes
        fcntl.ioctl(fd, _TUNSETIFF, struct.pack("16sH22x", name.encode(), _IFF_TUN | _IFF_NO_PI | _IFF_VNET_HDR))
        fcntl.ioctl(fd, _TUNSETPERSIST, 1)
    except OSError as e:
        if e.errno != errno.EBUSY:
            raise Refused(f"TUN device {name}: {e.strerror}") from e
    finally:
        os.close(fd)
