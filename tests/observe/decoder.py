"""A reader of binary COPY rows that shares nothing with the encoder: written from the manual alone."""

from __future__ import annotations

import ipaddress
import struct
import uuid
from datetime import UTC, datetime, timedelta
from typing import Any

# The table's columns, as in its CREATE TABLE.
TABLE = """
    id uuid, at timestamptz, event text, key_id text, user_id text, client_addr inet, application_name text,
    database text, pool text, host text, target text, reason text, intent text, fingerprint text,
    statement text, rows bigint, bytes_in bigint, bytes_out bigint, queued_us bigint, first_byte_us bigint,
    duration_us bigint, in_transaction boolean, pinned boolean, sqlstate text, code text, traceparent text
"""
COLUMNS = [tuple(column.split()) for column in TABLE.split(",")]


def decode(rows: bytes) -> list[dict[str, Any]]:
    """Return the rows; each byte must belong to one."""
    at = 0
    decoded = []
    while at < len(rows):
        (fields,) = struct.unpack_from("!h", rows, at)
        at += 2
        assert fields == len(COLUMNS)
        row: dict[str, Any] = {}
        for name, kind in COLUMNS:
            (size,) = struct.unpack_from("!i", rows, at)
            at += 4
            if size == -1:
                row[name] = None
                continue
            assert size >= 0
            assert at + size <= len(rows)
            row[name] = value(kind, rows[at : at + size])
            at += size
        decoded.append(row)
    return decoded


def value(kind: str, body: bytes) -> Any:
    if kind == "text":
        return body.decode("utf-8", "strict")
    if kind == "uuid":
        return uuid.UUID(bytes=body)
    if kind == "bigint":
        assert len(body) == 8
        return struct.unpack("!q", body)[0]
    if kind == "boolean":
        assert body in (b"\x00", b"\x01")
        return body == b"\x01"
    if kind == "timestamptz":
        assert len(body) == 8
        return datetime(2000, 1, 1, tzinfo=UTC) + timedelta(microseconds=struct.unpack("!q", body)[0])
    assert kind == "inet"
    family, bits, is_cidr, length = body[:4]
    assert len(body) == 4 + length
    assert (family, bits, is_cidr, length) in ((2, 32, 0, 4), (3, 128, 0, 16))
    return ipaddress.ip_address(body[4:])
