"""HOST:PORT, where a server of this project's own listens: read before anything of the server itself is imported."""

from __future__ import annotations

from clustermesh.errors import Invalid


def parse_address(address: str) -> tuple[str, int]:
    """("127.0.0.1", 9962) from "127.0.0.1:9962"; IPv6 in brackets, ":9962" is every address. Raises Invalid."""
    host, colon, port = address.rpartition(":")
    if not colon or not port.isascii() or not port.isdigit() or len(port) > 5 or int(port) > 65535:
        raise Invalid("address", address, "must be HOST:PORT, as 127.0.0.1:9962")
    return host.strip("[]"), int(port)
