"""Where a server listens, as it is written."""

from __future__ import annotations

import pytest

from clustermesh.errors import Invalid
from clustermesh.listen import parse_address


@pytest.mark.parametrize(
    "address", ["9962", "", "host:", "host:x", "host:65536", "host:-1", "host:" + "9" * 5000, "host:٣"]
)
def test_an_address_is_a_host_and_a_port(address: str) -> None:
    with pytest.raises(Invalid, match="must be HOST:PORT"):
        parse_address(address)


@pytest.mark.parametrize(
    ("text", "parsed"), [("127.0.0.1:9880", ("127.0.0.1", 9880)), ("[::1]:0", ("::1", 0)), (":80", ("", 80))]
)
def test_addresses(text: str, parsed: tuple[str, int]) -> None:
    assert parse_address(text) == parsed
