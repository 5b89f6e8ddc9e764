"""Tables on the wire, decoded by a decoder of the tests' own."""

from __future__ import annotations

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.admin import answers
from proxy.admin.answers import TOGETHER, notice, row_description
from proxy.admin.columns import INT4, INT8, NUMERIC, Column, Table

TABLE = Table(
    (Column("name"), Column("port", INT4), Column("ttl", INT8), Column("count", NUMERIC)),
    [("ä", 5432, -1, 12_345_678), (None, None, None, None)],
)


def rows(table: Table, formats: tuple[int, ...] = ()) -> bytes:
    return b"".join(answers.rows(table, formats))


def split(data: bytes) -> list[tuple[bytes, bytes]]:
    messages = []
    while data:
        (length,) = struct.unpack_from("!i", data, 1)
        messages.append((data[:1], data[5 : length + 1]))
        data = data[length + 1 :]
    return messages


def fields(body: bytes) -> list[bytes | None]:
    (count,) = struct.unpack_from("!h", body)
    values: list[bytes | None] = []
    body = body[2:]
    for _ in range(count):
        (length,) = struct.unpack_from("!i", body)
        values.append(None if length < 0 else body[4 : 4 + length])
        body = body[4 + max(length, 0) :]
    assert not body
    return values


def numeric(data: bytes) -> int:
    """Return what numeric_recv would make of a whole number (src/backend/utils/adt/numeric.c)."""
    count, weight, sign, scale = struct.unpack_from("!hhHh", data)
    digits = struct.unpack_from(f"!{count}h", data, 8)
    assert len(data) == 8 + 2 * count
    assert scale == 0
    assert all(0 <= digit < 10_000 for digit in digits)
    assert count == 0 or (digits[0] != 0 and weight >= count - 1)
    value = sum(int(digit) * int(10_000 ** (weight - i)) for i, digit in enumerate(digits))
    return -value if sign == 0x4000 else value


def test_a_description_names_columns_with_their_types() -> None:
    ((kind, body),) = split(row_description(TABLE.columns))
    assert kind == b"T"
    assert body[:2] == b"\0\4"
    name, port = b"name\0", b"port\0"
    assert body[2:].startswith(name + struct.pack("!ihihih", 0, 0, 25, -1, -1, 0) + port)
    assert struct.pack("!ihihih", 0, 0, 23, 4, -1, 0) in body


def test_rows_are_text_with_nulls() -> None:
    first, second, end = split(rows(TABLE))
    assert fields(first[1]) == ["ä".encode(), b"5432", b"-1", b"12345678"]
    assert fields(second[1]) == [None] * 4
    assert end == (b"C", b"SHOW\0")


def test_rows_are_binary_where_that_is_asked_for() -> None:
    name, port, ttl, count = fields(split(rows(TABLE, (1,)))[0][1])
    assert name == "ä".encode()
    assert port == struct.pack("!i", 5432)
    assert ttl == struct.pack("!q", -1)
    assert count is not None
    assert numeric(count) == 12_345_678


def test_each_column_may_have_its_own_format() -> None:
    _, port, ttl, _ = fields(split(rows(TABLE, (0, 1, 0, 0)))[0][1])
    assert (port, ttl) == (struct.pack("!i", 5432), b"-1")
    description = split(row_description(TABLE.columns, (0, 1, 0, 0)))[0][1]
    assert struct.pack("!ihihih", 0, 0, 23, 4, -1, 1) in description


@given(st.integers(min_value=-(10**30), max_value=10**30))
def test_any_whole_number_is_a_numeric(value: int) -> None:
    table = Table((Column("n", NUMERIC),), [(value,)])
    (data,) = fields(split(rows(table, (1,)))[0][1])
    assert data is not None
    assert numeric(data) == value


@pytest.mark.parametrize("text", ["a\0b", "\ud800"])
def test_a_text_that_cannot_be_sent_is_made_one_that_can(text: str) -> None:
    table = Table((Column("name"),), [(text,)])
    (data,) = fields(split(rows(table))[0][1])
    assert data is not None
    assert b"\0" not in data
    data.decode()


def test_a_notice_has_its_detail() -> None:
    assert split(notice("heard", "much")) == [(b"N", b"SNOTICE\0VNOTICE\0C00000\0Mheard\0Dmuch\0\0")]


def test_many_rows_are_made_some_at_a_time() -> None:
    table = Table((Column("n", INT4),), ((number,) for number in range(TOGETHER * 2 + 1)))
    parts = list(answers.rows(table))
    assert [len(split(part)) for part in parts] == [TOGETHER, TOGETHER, 2]
    assert split(parts[-1])[-1] == (b"C", b"SHOW\0")
