"""Messages that are built and decoded: against the manual's layout, and with every wrong length."""

from __future__ import annotations

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.errors import InsufficientPermissions, PoolExhausted, ProtocolViolation
from proxy.wire import messages


def message(kind: bytes, body: bytes) -> bytes:
    return kind + struct.pack("!i", len(body) + 4) + body


def test_builds_messages_as_the_manual_lays_them_out() -> None:
    assert messages.query(b"SELECT 1") == message(b"Q", b"SELECT 1\0")
    assert messages.parse(b"s", b"SELECT $1", b"\0\1\0\0\0\x17") == message(
        b"P", b"s\0SELECT $1\0\0\1\0\0\0\x17"
    )
    assert messages.bind_text(b"n", [b"a", b""]) == message(b"B", b"n\0n\0\0\0\0\2\0\0\0\1a\0\0\0\0\0\0")
    assert messages.execute(b"n") == message(b"E", b"n\0\0\0\0\0")
    assert messages.close_statement(b"n") == message(b"C", b"Sn\0")
    assert messages.describe_renamed(0x44, b"n") == message(b"D", b"Sn\0")
    assert messages.parameter_status(b"TimeZone", b"UTC") == message(b"S", b"TimeZone\0UTC\0")
    assert messages.backend_key_data(7, b"abcd") == message(b"K", b"\0\0\0\7abcd")
    assert messages.command_complete(b"SET") == message(b"C", b"SET\0")
    assert messages.ready(0x54) == message(b"Z", b"T")
    assert message(b"R", b"\0\0\0\x0aSCRAM-SHA-256\0\0") == messages.AUTH_SASL_SCRAM


def test_an_error_names_code_hint_and_severity() -> None:
    error = PoolExhausted(extra="pool=primary", hint="Try again.")
    fields = messages.error_fields(messages.error_response(error), 0, 10_000)
    assert fields["S"] == "ERROR"
    assert fields["C"] == "53300"
    assert fields["D"] == "POOL_EXHAUSTED: pool=primary"
    assert fields["H"] == "Try again."
    assert messages.error_fields(messages.error_response(error, True), 0, 10_000)["V"] == "FATAL"


def test_an_error_text_cannot_end_its_field() -> None:
    data = messages.error_response(InsufficientPermissions("a\0Cb"))
    assert messages.error_fields(data, 0, len(data))["M"] == "a?Cb"


@pytest.mark.parametrize(
    ("tag", "rows"),
    [
        (b"SELECT 20000", 20000),
        (b"INSERT 0 1", 1),
        (b"COPY 5", 5),
        (b"BEGIN", 0),
        (b"", 0),
        (b"7", 7),
        (b"X 99999999999999999999999999", 999999999999999999),
    ],
)
def test_reads_the_count_of_a_command_tag(tag: bytes, rows: int) -> None:
    data = messages.command_complete(tag)
    assert messages.affected_rows(data, 0, len(data)) == rows


@pytest.mark.parametrize(
    ("body", "state"),
    [
        (b"SERROR\0C42P01\0Mx\0\0", b"42P01"),
        (b"SERROR\0Mx\0\0", b""),
        (b"\0", b""),
        (b"", b""),
        (b"C123\0\0", b""),
        (b"Sunterminated", b""),
    ],
)
def test_reads_sqlstate_or_nothing(body: bytes, state: bytes) -> None:
    data = message(b"E", body)
    assert messages.sqlstate(data, 0, len(data)) == state


def bind(portal: bytes, statement: bytes, rest: bytes = b"\0\0\0\1\0\0\0\1x\0\0") -> bytes:
    return message(b"B", portal + b"\0" + statement + b"\0" + rest)


@given(
    st.binary(max_size=20).map(lambda b: b.replace(b"\0", b"")),
    st.binary(max_size=20).map(lambda b: b.replace(b"\0", b"")),
    st.binary(max_size=40),
)
def test_a_renamed_bind_differs_in_its_name_alone(portal: bytes, name: bytes, rest: bytes) -> None:
    before = b"Z\0\0\0\5I"
    data = before + bind(portal, name, rest)
    start = len(before) + 5 + len(portal) + 1
    renamed = messages.bind_renamed(data, len(before), len(data), start, start + len(name), b"_sluice_7")
    assert renamed == bind(portal, b"_sluice_7", rest)


def test_a_bind_that_is_still_coming_is_renamed_under_its_whole_length() -> None:
    data = bind(b"", b"stmt", b"x" * 1000)
    whole = bind(b"", b"_sluice_7", b"x" * 1000)
    assert messages.bind_renamed(data[:100], 0, len(data), 6, 10, b"_sluice_7") == whole[: 100 + 5]


def row(*columns: bytes | None) -> bytes:
    body = struct.pack("!h", len(columns))
    for column in columns:
        body += struct.pack("!i", -1) if column is None else struct.pack("!i", len(column)) + column
    return message(b"D", body)


def test_reads_the_columns_of_a_row() -> None:
    data = row(b"a", None, b"")
    assert messages.first_columns(data, 0, len(data)) == [b"a", None, b""]


@pytest.mark.parametrize(
    "body", [b"", b"\0", b"\0\1", b"\0\1\0\0\0\2x", b"\0\1\xff\xff\xff\xfe", b"\xff\xff"]
)
def test_rejects_a_row_whose_lengths_disagree(body: bytes) -> None:
    data = message(b"D", body)
    with pytest.raises(ProtocolViolation):
        messages.first_columns(data, 0, len(data))


@pytest.mark.parametrize("body", [b"", b"a", b"a\0b", b"a\0"])
def test_rejects_a_parameter_status_without_its_terminators(body: bytes) -> None:
    data = message(b"S", body)
    with pytest.raises(ProtocolViolation):
        messages.parameters_of(data, 0, len(data))


def test_rejects_a_string_that_ends_behind_its_message() -> None:
    with pytest.raises(ProtocolViolation):
        messages.cstring_end(b"abc\0", 0, 3)
