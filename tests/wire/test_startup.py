"""Startup packets: every length, every layout, every way to cut them."""

from __future__ import annotations

import contextlib
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.errors import ProtocolViolation
from proxy.wire.codes import CANCEL_REQUEST, GSSENC_REQUEST, PROTOCOL_3_0, SSL_REQUEST
from proxy.wire.startup import StartupPacket, negotiate_version, parse_options, read_startup
from tests.wire.feeding import splits


def packet(code: int, body: bytes = b"") -> bytes:
    return struct.pack("!ii", len(body) + 8, code) + body


STARTUP = packet(PROTOCOL_3_0, b"user\0ctm_ab12cd34ef56\0database\0app\0\0")
CANCEL = packet(CANCEL_REQUEST, struct.pack("!I", 4_000_000_000) + b"wxyz")


def read_pieces(pieces: list[bytes]) -> StartupPacket:
    data = b""
    for piece in pieces[:-1]:
        data += piece
        assert read_startup(data) is None
    read = read_startup(data + pieces[-1])
    assert read is not None
    return read


@pytest.mark.parametrize("data", [STARTUP, CANCEL, packet(SSL_REQUEST), packet(GSSENC_REQUEST)])
def test_waits_for_the_last_byte_however_the_packet_is_cut(data: bytes) -> None:
    for pieces in splits(data):
        assert read_pieces(pieces).size == len(data)


def test_reads_parameters_of_a_startup_message() -> None:
    read = read_pieces([STARTUP])
    assert read.is_startup
    assert read.minor == 0
    assert read.parameters == {"user": "ctm_ab12cd34ef56", "database": "app"}


def test_reads_a_cancel_request_with_an_unsigned_process_id() -> None:
    read = read_pieces([CANCEL])
    assert (read.code, read.cancel_pid, read.cancel_secret) == (CANCEL_REQUEST, 4_000_000_000, b"wxyz")


def test_leaves_trailing_bytes_alone() -> None:
    read = read_startup(STARTUP + b"p\0\0\0\5x")
    assert read is not None
    assert read.size == len(STARTUP)


@pytest.mark.parametrize("length", [*range(8), 10_001, 2**31 - 1, -1, -(2**31)])
def test_rejects_a_startup_length(length: int) -> None:
    with pytest.raises(ProtocolViolation):
        read_startup(struct.pack("!i", length))


def test_accepts_the_longest_startup_packet_and_waits_for_it() -> None:
    assert read_startup(struct.pack("!ii", 10_000, PROTOCOL_3_0)) is None


def test_rejects_a_tls_client_hello_at_its_first_byte() -> None:
    with pytest.raises(ProtocolViolation, match="TLS"):
        read_startup(b"\x16")


@pytest.mark.parametrize(
    "data",
    [
        packet(SSL_REQUEST, b"x"),
        packet(GSSENC_REQUEST, b"\0\0\0\0"),
        packet(CANCEL_REQUEST, b"\0\0\0\1"),
        packet(CANCEL_REQUEST, b"\0" * 261),
        packet(2 << 16, b"user\0x\0\0"),
        packet(4 << 16, b"user\0x\0\0"),
        packet(0, b"\0"),
    ],
)
def test_rejects_packets_that_postgresql_does_not_know(data: bytes) -> None:
    with pytest.raises(ProtocolViolation):
        read_startup(data)


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"user\0x\0",
        b"user\0x",
        b"user\0\0",
        b"\0x\0\0",
        b"user\0x\0user\0y\0\0",
        b"user\0\xff\xfe\0\0",
        b"user\0x\0\0\0",
    ],
)
def test_rejects_a_malformed_parameter_list(body: bytes) -> None:
    with pytest.raises(ProtocolViolation):
        read_startup(packet(PROTOCOL_3_0, body))


@given(st.binary(max_size=64))
def test_reads_anything_or_rejects_it(data: bytes) -> None:
    try:
        read = read_startup(data)
    except ProtocolViolation:
        return
    assert read is None or 8 <= read.size <= len(data)


@pytest.mark.parametrize(
    ("text", "settings"),
    [
        ("", {}),
        ("-c sluice.pool=background", {"sluice.pool": "background"}),
        ("-csearch_path=a,b --work-mem=4MB", {"search_path": "a,b", "work_mem": "4MB"}),
        (r"-c search_path=a,\ b", {"search_path": "a, b"}),
        (r"-c application_name=back\\slash", {"application_name": "back\\slash"}),
        ("  -c   TimeZone=UTC  ", {"timezone": "UTC"}),
        ("-c a.b=c=d", {"a.b": "c=d"}),
        ("-c application_name=", {"application_name": ""}),
    ],
)
def test_reads_options_as_postgresql_does(text: str, settings: dict[str, str]) -> None:
    assert parse_options(text) == settings


@pytest.mark.parametrize("text", ["x", "-c", "-c a", "--a", "-d 5", "--", "-c =x"])
def test_rejects_options_that_would_be_lost(text: str) -> None:
    with pytest.raises(ProtocolViolation):
        parse_options(text)


@given(st.text(max_size=60))
def test_reading_options_always_ends(text: str) -> None:
    with contextlib.suppress(ProtocolViolation):
        parse_options(text)


def test_negotiates_down_and_names_what_it_does_not_know() -> None:
    answer = negotiate_version(0, ["_pq_.test"])
    assert answer == b"v\0\0\0\x16\0\3\0\0\0\0\0\1_pq_.test\0"
