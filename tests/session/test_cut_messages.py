"""What reads messages takes any bytes, however short: compiled, a slice that ends before it begins is an error.

In Python it is empty; mypyc's, of bytes, asks for a negative size (SystemError).
"""

from __future__ import annotations

from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.errors import ProtocolViolation
from proxy.query.naming import find_names
from proxy.query.shape import shape_key
from proxy.session.renaming import Edit
from proxy.wire.hello import protocols, record_size
from proxy.wire.messages import error_fields, first_columns, parameters_of, sqlstate
from proxy.wire.scram import read_initial_response
from proxy.wire.startup import read_startup

READERS: dict[str, Callable[[bytes], object]] = {
    "error_fields": lambda body: error_fields(framed(body), 0, len(body) + 5),
    "sqlstate": lambda body: sqlstate(framed(body), 0, len(body) + 5),
    "parameters_of": lambda body: parameters_of(framed(body), 0, len(body) + 5),
    "first_columns": lambda body: first_columns(framed(body), 0, len(body) + 5),
    "read_initial_response": lambda body: read_initial_response(framed(body)),
    "retell": lambda body: Edit().retell(framed(body)),
    "read_startup": lambda body: read_startup((len(body) + 4).to_bytes(4, "big") + body),
    "protocols": lambda body: protocols(b"\x16\x03\x01" + len(body).to_bytes(2, "big") + body),
    "record_size": record_size,
    "find_names": lambda body: find_names(body, 1),
    "shape_key": shape_key,
}


def framed(body: bytes) -> bytes:
    return b"E" + (len(body) + 4).to_bytes(4, "big") + body


@pytest.mark.parametrize("name", READERS)
@given(body=st.binary(max_size=12) | st.text('PEM"1$\0 ax', max_size=12).map(str.encode))
def test_a_short_message_is_read_or_refused(name: str, body: bytes) -> None:
    try:
        READERS[name](body)
    except ProtocolViolation as refused:
        assert refused.message


def test_an_error_without_fields_is_told_as_it_is() -> None:
    assert Edit().retell(b"E\0\0\0\4") == b"E\0\0\0\4"
