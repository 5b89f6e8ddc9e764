from __future__ import annotations

import json
import struct
from typing import Any

import pytest

from proxy.api import values


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (None, None),
        ("", ""),
        ("it's", "it's"),
        (1, "1"),
        (-1.5, "-1.5"),
        (True, "true"),
        (False, "false"),
        ([], "{}"),
        ([1, None, 3], '{"1",NULL,"3"}'),
        (["NULL", 'a"b', "c\\d", "e,f", "{}"], '{"NULL","a\\"b","c\\\\d","e,f","{}"}'),
        ([[1], [2]], '{{"1"},{"2"}}'),
        ({"a": [1, "ü"]}, '{"a":[1,"ü"]}'),
        ([{"a": "b"}], '{"{\\"a\\":\\"b\\"}"}'),
    ],
)
def test_json_becomes_a_parameter(value: Any, text: str | None) -> None:
    assert values.parameter(value) == text


@pytest.mark.parametrize(
    ("value", "oid", "shown"),
    [
        (None, 23, None),
        (b"t", 16, True),
        (b"f", 16, False),
        (b"-42", 20, -42),
        (b"1e+16", 701, 1e16),
        (b"1.5e-07", 701, 1.5e-07),
        (b"NaN", 701, "NaN"),
        (b"-Infinity", 700, "-Infinity"),
        (b"12345678901234567890.123456789", 1700, "12345678901234567890.123456789"),
        (b'{"a": "b"}', 3802, {"a": "b"}),
        (b'{"a":\n [1,\r\n2]}', 114, {"a": [1, 2]}),
        (b"null", 3802, None),
        ('"ü"\n'.encode(), 25, '"ü"\n'),
        (b"\xff", 25, "\ufffd"),
        (b"2026-11-28", 1082, "2026-11-28"),
        (b"7", 99_999, "7"),
    ],
)
def test_a_column_becomes_json(value: bytes | None, oid: int, shown: Any) -> None:
    row = values.row([value], [oid])
    assert json.loads(row) == [shown]
    assert b"\n" not in row and b"\r" not in row


def test_columns_are_described() -> None:
    column = struct.pack("!IHIhih", 0, 0, 23, 4, -1, 0)
    other = struct.pack("!IHIhih", 0, 0, 99_999, -1, -1, 0)
    assert values.columns(b"\0\2" + b"id\0" + column + b"what\0" + other) == [
        {"name": "id", "type": "int4", "oid": 23},
        {"name": "what", "type": None, "oid": 99_999},
    ]
    assert values.columns(b"\0\0") == []
