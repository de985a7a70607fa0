"""Addresses of etcd servers."""

import contextlib
import traceback

import pytest
from hypothesis import given
from hypothesis import strategies as st

from clustermesh.errors import Invalid
from clustermesh.store.endpoint import Endpoint, parse


@pytest.mark.parametrize(
    ("url", "endpoint", "target"),
    [
        (
            "https://east.mesh.cilium.io:32379",
            Endpoint("east.mesh.cilium.io", 32379, True),
            "east.mesh.cilium.io:32379",
        ),
        ("http://127.0.0.1", Endpoint("127.0.0.1", 2379, False), "127.0.0.1:2379"),
        ("https://[fd00::1]:2379/", Endpoint("fd00::1", 2379, True), "[fd00::1]:2379"),
    ],
)
def test_an_endpoint_is_read_and_dialled(url, endpoint, target) -> None:
    assert parse(url) == endpoint
    assert endpoint.target == target
    assert parse(str(endpoint)) == endpoint


@pytest.mark.parametrize(
    "url",
    [
        "",
        "127.0.0.1:2379",
        "unix://etcd.sock",
        "https://:2379",
        "https://a:0",
        "https://a:99999",
        "https://a:b",
        "https://me@a:1",
        "https://a:1/path",
        "https://a:1?x",
        "https://[::1",
        "https://a..b:2379",
        f"https://{'a' * 64}.test:2379",
        "http://a\0b:2379",
        "http://a b:2379",
        "http://a\tb:2379",
        " http://a:2379",
        "http://a\x7f:2379",
        "http://a\u200b:2379",
    ],
)
def test_anything_else_is_invalid(url) -> None:
    with pytest.raises(Invalid, match="endpoint"):
        parse(url)


@given(st.text())
def test_garbage_raises_only_invalid(url) -> None:
    for text in (url, "https://" + url):
        with contextlib.suppress(Invalid):
            assert parse(str(parse(text))) == parse(text)


@pytest.mark.parametrize(
    "url",
    ["https://u:SECRET@a:1", "https://u:pa/SECRET@a:1", "https://u:SECRET@b@a:1", "u:SECRET@a", "https://u:SECRET@[a"],
)
def test_who_logs_in_is_not_part_of_it_and_what_he_is_known_by_is_not_told(url: str) -> None:
    with pytest.raises(Invalid, match="username and password") as told:
        parse(url)
    assert "SECRET" not in str(told.value)
    assert "SECRET" not in "".join(traceback.format_exception(told.value))
