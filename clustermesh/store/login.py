"""A user of etcd by name and password, where no certificate says who we are.

etcd gives a token for them, which goes with every call and ends: after a while (--auth-token-ttl), and with the server.
"""

from __future__ import annotations

from msgspec import Struct


class Login(Struct, frozen=True):
    """What etcd knows as a user. The password is in no text made of this."""

    name: str
    password: str

    def __repr__(self) -> str:
        return f"Login({self.name!r}, ...)"
