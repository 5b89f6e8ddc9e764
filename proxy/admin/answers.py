"""A table as messages: RowDescription and DataRows, in text or in binary (manual, "Message Formats")."""

from __future__ import annotations

import struct
from collections.abc import Iterator, Sequence
from typing import Final

from proxy.admin.columns import INT4, INT8, NUMERIC, Column, Table, Value
from proxy.wire.codes import BE_DATA_ROW, BE_NOTICE, BE_ROW_DESCRIPTION
from proxy.wire.messages import command_complete, message

TEXT_FORMAT: Final = 0
BINARY_FORMAT: Final = 1

TOGETHER: Final = 100
"""Rows that are made in one piece: some 3 ms of work at the most, for clients' sessions wait meanwhile."""

_SIZES: Final = {INT4: 4, INT8: 8}
# A numeric's digits in binary.
_NBASE: Final = 10_000


def row_description(columns: Sequence[Column], formats: Sequence[int] = ()) -> bytes:
    """Return the RowDescription; `formats` are those of a Bind: none, one for all columns, or one for each."""
    body = len(columns).to_bytes(2, "big")
    for column, form in zip(columns, _each(formats, len(columns)), strict=True):
        # No table, no attribute number, no type modifier.
        body += column.name.encode() + b"\0"
        body += struct.pack("!ihihih", 0, 0, column.type, _SIZES.get(column.type, -1), -1, form)
    return message(BE_ROW_DESCRIPTION, body)


def rows(table: Table, formats: Sequence[int] = ()) -> Iterator[bytes]:
    """Yield the DataRows of a SHOW, some at a time, and then its CommandComplete."""
    forms = _each(formats, len(table.columns))
    parts: list[bytes] = []
    for row in table.rows:
        if len(parts) == TOGETHER:
            yield b"".join(parts)
            parts.clear()
        body = [len(row).to_bytes(2, "big")]
        for value, column, form in zip(row, table.columns, forms, strict=True):
            data = _encoded(value, column.type, form)
            body.append(b"\xff\xff\xff\xff" if data is None else len(data).to_bytes(4, "big") + data)
        parts.append(message(BE_DATA_ROW, b"".join(body)))
    parts.append(command_complete(b"SHOW"))
    yield b"".join(parts)


def notice(text: str, detail: str = "") -> bytes:
    """Return a NoticeResponse."""
    fields = [b"SNOTICE", b"VNOTICE", b"C00000", b"M" + text.encode("utf-8", "replace")]
    if detail:
        fields.append(b"D" + detail.encode("utf-8", "replace"))
    return message(BE_NOTICE, b"\0".join(fields) + b"\0\0")


def _each(formats: Sequence[int], count: int) -> Sequence[int]:
    return formats if len(formats) == count else [formats[0] if formats else TEXT_FORMAT] * count


def _encoded(value: Value, type: int, form: int) -> bytes | None:
    if value is None:
        return None
    if form == BINARY_FORMAT and isinstance(value, int):
        if type == NUMERIC:
            return _numeric(value)
        if type in _SIZES:
            return value.to_bytes(_SIZES[type], "big", signed=True)
    return str(value).encode("utf-8", "replace").replace(b"\0", b"?")


def _numeric(value: int) -> bytes:
    """Return a whole number as numeric_send writes one: its digits to the base of 10,000, the highest first."""
    digits: list[int] = []
    rest = abs(value)
    while rest:
        rest, digit = divmod(rest, _NBASE)
        digits.append(digit)
    digits.reverse()
    weight = max(len(digits) - 1, 0)
    while digits and digits[-1] == 0:
        digits.pop()
    sign = 0x4000 if value < 0 else 0
    return struct.pack(f"!hhHh{len(digits)}h", len(digits), weight, sign, 0, *digits)
