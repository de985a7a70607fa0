"""decode(encode(x)) == x for whatever the model can say, and encoding is canonical."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from wire_values import CODECS, identities

from clustermesh.model import Identity
from clustermesh.wire import identity


@pytest.mark.parametrize("noun", CODECS)
@given(data=st.data())
def test_decoding_what_was_encoded_gives_it_back(noun: str, data: st.DataObject) -> None:
    values, encode, decode = CODECS[noun]
    value = data.draw(values)
    written = encode(value)
    assert decode(written) == value
    assert encode(decode(written)) == written


@given(identities)
def test_decoding_an_encoded_identity_gives_it_back(value: Identity) -> None:
    assert identity.decode(identity.encode(value), value.id) == value
