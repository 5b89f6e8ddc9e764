from __future__ import annotations

import ssl

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.wire.hello import protocols, record_size


def hello(*offered: str, version: ssl.TLSVersion = ssl.TLSVersion.TLSv1_3) -> bytes:
    """Return what OpenSSL sends first."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.maximum_version = version
    if offered:
        context.set_alpn_protocols(list(offered))
    out = ssl.MemoryBIO()
    channel = context.wrap_bio(ssl.MemoryBIO(), out, server_hostname="localhost")
    with pytest.raises(ssl.SSLWantReadError):
        channel.do_handshake()
    return out.read()


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
@pytest.mark.parametrize("offered", [[], ["postgresql"], ["h2", "http/1.1"]])
def test_the_protocols_of_a_client_hello(offered: list[str], version: ssl.TLSVersion) -> None:
    data = hello(*offered, version=version)
    assert record_size(data) == len(data)
    assert protocols(data) == [each.encode() for each in offered]


def test_a_part_of_a_client_hello_says_nothing() -> None:
    data = hello("postgresql")
    for end in range(len(data)):
        assert protocols(data[:end]) is None
        assert record_size(data[:end]) == (len(data) if end >= 5 else 0)


@pytest.mark.parametrize(
    "data", [b"", b"\x16\x03\x01\0\0", b"\x16\x03\x01\x40\x01", b"\x17\x03\x01\0\x10", b"\0\0\0\x08\x04"]
)
def test_no_record(data: bytes) -> None:
    assert record_size(data) == 0


@given(st.binary(max_size=300), st.integers(0, 2**24 - 1))
def test_any_bytes_end(data: bytes, length: int) -> None:
    whole = b"\x16\x03\x01\0\0\x01" + length.to_bytes(3, "big") + data
    offered = protocols(whole)
    assert offered is None or sum(map(len, offered)) <= len(data)
    assert length <= len(data) or offered is None


@given(st.data())
def test_a_hello_with_a_byte_changed_is_still_read_to_its_end(data: st.DataObject) -> None:
    sent = bytearray(HELLO)
    sent[data.draw(st.integers(0, len(sent) - 1))] = data.draw(st.integers(0, 255))
    offered = protocols(bytes(sent))
    assert offered is None or sum(map(len, offered)) <= len(sent)


HELLO = hello("postgresql", "h2")
