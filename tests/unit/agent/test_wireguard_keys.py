"""The node's key: made once, kept for ever, in RFC 7748's form."""

from __future__ import annotations

import base64
from contextlib import suppress
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.wireguard import keys
from clustermesh.errors import Invalid, Refused

# RFC 7748, section 6.1: Alice
RFC_PRIVATE = bytes.fromhex("77076d0a7318a57d3c16c17251b26645df4c2f87ebc0992ab177fba51db92c2a")
RFC_PUBLIC = bytes.fromhex("8520f0098930a754748b7ddcb43ef75a0dbf3a0d26381af4eba4a98eaa9b4e6a")


def test_public_key_is_the_one_of_rfc_7748() -> None:
    assert base64.b64decode(keys.public_key(RFC_PRIVATE)) == RFC_PUBLIC


@given(st.binary(min_size=32, max_size=32))
def test_both_ways_to_derive_a_public_key_agree(raw: bytes) -> None:
    private_key = keys.clamp(raw)
    assert keys.derive_by_openssl(private_key) in (keys.derive_by_cryptography(private_key), None)


def test_public_key_is_derived_where_there_is_no_openssl(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(keys, "_OPENSSL", "libcrypto.so.none")
    assert keys.derive_by_openssl(RFC_PRIVATE) is None
    assert base64.b64decode(keys.public_key(RFC_PRIVATE)) == RFC_PUBLIC


@given(st.binary(min_size=32, max_size=32))
def test_clamping_changes_only_the_bits_rfc_7748_names(raw: bytes) -> None:
    clamped = keys.clamp(raw)
    assert clamped[0] & 7 == 0
    assert clamped[31] & 0xC0 == 0x40
    assert clamped[1:31] == raw[1:31]
    assert clamped[0] ^ raw[0] < 8
    assert keys.clamp(clamped) == clamped
    assert keys.public_key(raw) == keys.public_key(clamped)


def test_key_survives_a_restart(tmp_path: Path) -> None:
    path = tmp_path / "state" / "wireguard" / "cm-wg0.key"
    first = keys.load_or_create(path)
    assert keys.load_or_create(path) == first
    assert path.read_bytes() == first
    assert path.stat().st_mode & 0o777 == 0o600
    assert path.parent.stat().st_mode & 0o777 == 0o700
    assert list(path.parent.iterdir()) == [path]


def test_key_that_is_as_it_should_be_is_only_read(tmp_path: Path) -> None:
    """A disk that has become read-only keeps no agent from starting."""
    path = tmp_path / "state" / "cm-wg0.key"
    keys.load_or_create(path)
    changed = [place.stat().st_ctime_ns for place in (path, path.parent)]
    keys.load_or_create(path)
    assert [place.stat().st_ctime_ns for place in (path, path.parent)] == changed


def test_key_that_others_could_read_is_closed_to_them(tmp_path: Path) -> None:
    path = tmp_path / "cm-wg0.key"
    path.write_bytes(RFC_PRIVATE)
    path.chmod(0o644)
    assert keys.load_or_create(path) == keys.clamp(RFC_PRIVATE)
    assert path.stat().st_mode & 0o777 == 0o600


def test_an_empty_file_left_by_a_crash_is_filled_and_told(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "cm-wg0.key"
    path.touch()
    assert keys.load_or_create(path) == path.read_bytes()
    assert len(path.read_bytes()) == 32
    assert f"{path} is empty" in caplog.text


@pytest.mark.parametrize("content", [b"x", b"x" * 31, base64.b64encode(RFC_PRIVATE)])
def test_broken_key_file_is_refused_and_left_as_it_is(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "cm-wg0.key"
    path.write_bytes(content)
    with pytest.raises(Refused, match=rf"cm-wg0.key holds {len(content)} bytes.*restore it, or remove it"):
        keys.load_or_create(path)
    assert path.read_bytes() == content


def test_unwritable_folder_is_refused_with_its_reason(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("not a folder")
    with pytest.raises(Refused, match=r"private key .*(File exists|Not a directory)"):
        keys.load_or_create(tmp_path / "file" / "cm-wg0.key")


@pytest.mark.parametrize(
    "text",
    ["", "AAAA", "not base64!", "A" * 43 + "=", base64.b64encode(bytes(32)).decode(), "A" * 42 + "B=", "ü" * 44],
)
def test_what_is_no_public_key_is_invalid(text: str) -> None:
    with pytest.raises(Invalid):
        keys.decode_public_key(text)


@given(st.text(max_size=60))
def test_any_text_is_a_key_or_invalid(text: str) -> None:
    with suppress(Invalid):
        assert len(keys.decode_public_key(text)) == 32
