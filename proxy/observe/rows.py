"""Read encoded access records again: cut them into rows, print them as JSON lines, make them plain ASCII.

Rows are those of proxy.observe.record: whole, one behind the other, without the header and the trailer of a
COPY. They come from this process alone, so that nothing is checked here; a broken row is our own mistake.
"""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from ipaddress import ip_address
from typing import Final

from librt.strings import BytesWriter, read_i32_be, read_i64_be
from mypy_extensions import i64

# The signature, 32 bits of flags and the length of the header's extension (manual, COPY, "File Header").
_HEADER: Final = b"PGCOPY\n\xff\r\n\x00" + bytes(8)
_TRAILER: Final = b"\xff\xff"
# Bytes of a CopyData message: they are copied into the message and from there into the socket while the
# processor's cache still has them.
_PIECE: Final = 65_536

# Name and type of each column of sluice.api_access_logs, in their order there.
COLUMNS: Final = [
    ("id", "uuid"),
    ("at", "timestamptz"),
    ("event", "text"),
    ("key_id", "text"),
    ("user_id", "text"),
    ("client_addr", "inet"),
    ("application_name", "text"),
    ("database", "text"),
    ("pool", "text"),
    ("host", "text"),
    ("target", "text"),
    ("reason", "text"),
    ("intent", "text"),
    ("fingerprint", "text"),
    ("statement", "text"),
    ("rows", "bigint"),
    ("bytes_in", "bigint"),
    ("bytes_out", "bigint"),
    ("queued_us", "bigint"),
    ("first_byte_us", "bigint"),
    ("duration_us", "bigint"),
    ("in_transaction", "boolean"),
    ("pinned", "boolean"),
    ("sqlstate", "text"),
    ("code", "text"),
    ("traceparent", "text"),
]
_TYPES: Final = [kind for _, kind in COLUMNS]
_NAMES: Final = [b', "%s": ' % name.encode() for name, _ in COLUMNS]
_FIELDS: Final[i64] = 26
_EVENT: Final[i64] = 2
_TARGET: Final[i64] = 10
_ROWS: Final[i64] = 15
_EPOCH: Final = datetime(2000, 1, 1, tzinfo=UTC)

# What was printed before: at most some 8 MiB of runs of fields, and the last minutes' seconds.
_MAX_REMEMBERED: Final = 1024
_MAX_RUNS: Final = 4096
_MAX_SECONDS: Final = 256
_runs: Final[dict[bytes, bytes]] = {}
_seconds: Final[dict[int, str]] = {}


def copy_payload(rows: bytes) -> list[memoryview]:
    """Return what COPY … FROM STDIN (FORMAT binary) takes, in pieces: `rows` between header and trailer."""
    whole = memoryview(rows)
    middle = [whole[start : start + _PIECE] for start in range(0, len(rows), _PIECE)]
    return [memoryview(_HEADER), *middle, memoryview(_TRAILER)]


def cut(rows: bytes, start: i64, size: i64) -> i64:
    """Return where the rows from offset `start` end that fit into `size` bytes; at least one row, if any."""
    total: i64 = len(rows)
    end = start
    while end < total:
        following = _row_end(rows, end)
        if following - start > size and end > start:
            break
        end = following
    return end


def count(rows: bytes) -> int:
    """Return the number of rows."""
    total: i64 = len(rows)
    at: i64 = 0
    number = 0
    while at < total:
        at = _row_end(rows, at)
        number += 1
    return number


def json_lines(rows: bytes, start: i64, end: i64) -> bytes:
    """Return the rows between two offsets as lines of JSON, all ASCII: an object each, without its NULLs.

    Control characters, newlines and bidi marks of a client's texts are escaped, so that a row stays one line.
    """
    w = BytesWriter()
    at = start
    while at < end:
        # id and at are never NULL and of one size.
        w.write(_json_id(rows, at + 6))
        w.write(_json_time(read_i64_be(rows, at + 26)))
        at += 34
        # These two runs of fields, most of a row, come again and again.
        following = skip(rows, at, _TARGET - _EVENT)
        w.write(_remembered(rows[at:following], _EVENT))
        at = skip(rows, following, _ROWS - _TARGET)
        w.write(_remembered(rows[following:at], _TARGET))
        following = skip(rows, at, _FIELDS - _ROWS)
        _write_fields(w, rows, at, following, _ROWS)
        at = following
        w.write(b"}\n")
    return w.getvalue()


def to_ascii(rows: bytes) -> bytes:
    """Return the rows with each other character escaped, for a database whose encoding lacks them."""
    w = BytesWriter()
    at: i64 = 0
    total: i64 = len(rows)
    while at < total:
        w.write(rows[at : at + 2])
        at += 2
        field: i64 = 0
        while field < _FIELDS:
            size = i64(read_i32_be(rows, at))
            whole = rows[at : at + 4 + (size if size > 0 else 0)]
            at += len(whole)
            if _TYPES[field] == "text" and not whole[4:].isascii():
                plain = whole[4:].decode().encode("ascii", "backslashreplace")
                whole = len(plain).to_bytes(4, "big") + plain
            w.write(whole)
            field += 1
    return w.getvalue()


def _row_end(rows: bytes, start: i64) -> i64:
    return skip(rows, start + 2, _FIELDS)


def skip(rows: bytes, start: i64, fields: i64) -> i64:
    """Return the offset behind so many fields."""
    at = start
    while fields > 0:
        size = i64(read_i32_be(rows, at))
        at += 4
        if size > 0:
            at += size
        fields -= 1
    return at


def _remembered(run: bytes, first: i64) -> bytes:
    """Return a run of fields, from column `first` on, as members of a JSON object; short ones are kept.

    Runs of another number of fields never have the same bytes, so that `first` is no part of what is kept.
    """
    known = _runs.get(run)
    if known is None:
        w = BytesWriter()
        _write_fields(w, run, 0, len(run), first)
        known = w.getvalue()
        if len(run) <= _MAX_REMEMBERED:
            if len(_runs) >= _MAX_RUNS:
                _runs.clear()
            _runs[run] = known
    return known


def _write_fields(w: BytesWriter, rows: bytes, start: i64, end: i64, first: i64) -> None:
    at = start
    field = first
    while at < end:
        size = i64(read_i32_be(rows, at))
        at += 4
        if size >= 0:
            w.write(_NAMES[field])
            kind = _TYPES[field]
            if kind == "bigint":
                w.write(str(read_i64_be(rows, at)).encode())
            elif kind == "boolean":
                w.write(b"true" if rows[at] else b"false")
            elif kind == "inet":
                w.write(_json_address(rows[at + 4 : at + size]))
            else:
                # json.dumps leaves DEL as it is.
                text = json.dumps(rows[at : at + size].decode())
                w.write(text.replace("\x7f", "\\u007f").encode())
            at += size
        field += 1


def _json_id(rows: bytes, at: i64) -> bytes:
    digits = rows[at : at + 16].hex()
    opening = '{"id": "' + digits[:8] + "-" + digits[8:12] + "-" + digits[12:16]
    return (opening + "-" + digits[16:20] + "-" + digits[20:] + '", "at": ').encode()


def _json_time(since_2000_us: i64) -> bytes:
    """Return a timestamp as a JSON string in ISO 8601, in UTC and with milliseconds."""
    second = since_2000_us // 1_000_000
    ms = since_2000_us // 1000 % 1000
    known = _seconds.get(second)
    if known is None:
        known = (_EPOCH + timedelta(seconds=int(second))).strftime('"%Y-%m-%dT%H:%M:%S.')
        if len(_seconds) >= _MAX_SECONDS:
            _seconds.clear()
        _seconds[second] = known
    # Three digits: the first of four goes.
    return (known + str(1000 + ms)[1:] + 'Z"').encode()


def _json_address(packed: bytes) -> bytes:
    return f'"{ip_address(packed)}"'.encode()
