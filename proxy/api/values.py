"""Values between JSON and PostgreSQL's text format."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from typing import Any, Final

# Of pg_type.
_BOOL: Final = 16
_INTEGERS: Final = frozenset((20, 21, 23, 26))
_FLOATS: Final = frozenset((700, 701))
_JSONS: Final = frozenset((114, 3802))
_NAMES: Final = {
    16: "bool", 17: "bytea", 18: "char", 19: "name", 20: "int8", 21: "int2", 23: "int4", 25: "text", 26: "oid",
    114: "json", 700: "float4", 701: "float8", 869: "inet", 1042: "bpchar", 1043: "varchar", 1082: "date",
    1083: "time", 1114: "timestamp", 1184: "timestamptz", 1186: "interval", 1700: "numeric", 2950: "uuid",
    3802: "jsonb",
}  # fmt: skip
_NUMBER: Final = re.compile(rb"-?\d+(?:\.\d+)?(?:e[+-]?\d+)?")
_BREAKS: Final = bytes.maketrans(b"\r\n", b"  ")


def parameter(value: Any) -> str | None:
    """Return a JSON value as the text of a parameter: arrays as PostgreSQL's, objects as JSON, null as NULL."""
    if value is None:
        return None
    if isinstance(value, str):
        return value
    if isinstance(value, list):
        return "{" + ",".join(_element(each) for each in value) + "}"
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"))


def _element(value: Any) -> str:
    text = parameter(value)
    if text is None:
        return "NULL"
    if isinstance(value, list):
        return text
    escaped = text.replace("\\", "\\\\").replace('"', '\\"')
    return f'"{escaped}"'


def columns(description: bytes) -> list[dict[str, Any]]:
    """Return name, type and OID of each column, from the body of a RowDescription (manual, "Message Formats")."""
    found = []
    position = 2
    for _ in range(int.from_bytes(description[:2], "big")):
        end = description.index(b"\0", position)
        oid = int.from_bytes(description[end + 7 : end + 11], "big")
        name = description[position:end].decode("utf-8", "replace")
        found.append({"name": name, "type": _NAMES.get(oid), "oid": oid})
        position = end + 19
    return found


def row(values: Sequence[bytes | None], types: Sequence[int]) -> bytes:
    """Return a row as a JSON array: numbers, truth values and JSON as such, the rest as text. It has no line break."""
    return b"[" + b",".join(_value(each, oid) for each, oid in zip(values, types, strict=True)) + b"]"


def _value(value: bytes | None, oid: int) -> bytes:
    if value is None:
        return b"null"
    if oid == _BOOL:
        return b"true" if value == b"t" else b"false"
    if oid in _JSONS:
        # A line break within a string is escaped there: these stand between values.
        return value.translate(_BREAKS)
    # NaN and Infinity are no numbers in JSON.
    if (oid in _INTEGERS or oid in _FLOATS) and _NUMBER.fullmatch(value):
        return value
    return json.dumps(value.decode("utf-8", "replace"), ensure_ascii=False).encode()
