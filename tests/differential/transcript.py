"""Messages of a server as lines that a person can read, and that are equal where a client sees the same.

What differs between any two sessions of PostgreSQL is left out of the lines: process ids and cancel keys, the OIDs
of what a case makes, the number of a session's temporary schema.
"""

from __future__ import annotations

import hashlib
import re
import struct
from collections.abc import Callable, Iterator
from itertools import groupby
from typing import Final

FIRST_OWN_OID: Final = 16384
"""The first OID that isn't PostgreSQL's own (FirstNormalObjectId in access/transam.h)."""

_LONGEST: Final = 200
_TEMPORARY: Final = re.compile(r"pg_(toast_)?temp_\d+")
_ROW_POSITION: Final = re.compile(r"tuple \(\d+,\d+\)")


class Transcript:
    """The lines of one session."""

    def __init__(self) -> None:
        self.lines: list[str] = []
        self._oids: dict[int, int] = {}

    def add(self, kind: bytes, body: bytes) -> str:
        """Add a message, and return its line."""
        render = _RENDERERS.get(kind)
        line = render(self, body) if render else f"{kind!r} {body.hex()}"
        self.lines.append(line)
        return line

    def note(self, text: str) -> None:
        """Add what happened and isn't a message."""
        self.lines.append(f"({text})")

    def take(self) -> list[str]:
        """Return the lines so far, and start anew."""
        taken, self.lines = self.lines, []
        return list(_ordered(taken))

    def oid(self, number: int) -> str:
        """Return an OID; one of a case's own objects as its place among those."""
        if number < FIRST_OWN_OID:
            return str(number)
        return f"#{self._oids.setdefault(number, len(self._oids) + 1)}"


def _ordered(lines: list[str]) -> Iterator[str]:
    """Give the lines; of ParameterStatus messages in a row the order is that of a hash table."""
    for reported, group in groupby(lines, lambda line: line.startswith("ParameterStatus")):
        together = list(group)
        yield from sorted(together) if reported else together


def _text(data: bytes) -> str:
    try:
        text = _ROW_POSITION.sub("tuple", _TEMPORARY.sub(r"pg_\1temp_N", data.decode()))
    except UnicodeDecodeError:
        return f"hex:{data.hex()}"[:_LONGEST]
    if len(text) > _LONGEST:
        return f"{text[:40]!r}… of {len(data)} bytes, {hashlib.sha256(data).hexdigest()[:12]}"
    return repr(text)


def _authentication(_: Transcript, body: bytes) -> str:
    return f"Authentication {int.from_bytes(body[:4], 'big')}"


def _parameter_status(_: Transcript, body: bytes) -> str:
    name, value, _rest = body.split(b"\0")
    if name == b"session_authorization":
        return "ParameterStatus session_authorization"
    return f"ParameterStatus {name.decode()}={value.decode()}"


def _row_description(transcript: Transcript, body: bytes) -> str:
    (count,) = struct.unpack_from("!H", body)
    at, columns = 2, list[str]()
    for _ in range(count):
        end = body.index(b"\0", at)
        table, column, kind, size, modifier, form = struct.unpack_from("!IhIhih", body, end + 1)
        where = f" {transcript.oid(table)}.{column}" if table else ""
        columns.append(f"{body[at:end].decode()}:{transcript.oid(kind)}/{size}/{modifier}/{form}{where}")
        at = end + 19
    return _shortened(f"RowDescription {', '.join(columns)}")


def _data_row(_: Transcript, body: bytes) -> str:
    (count,) = struct.unpack_from("!H", body)
    at, values = 2, list[str]()
    for _number in range(count):
        (length,) = struct.unpack_from("!i", body, at)
        at += 4
        if length < 0:
            values.append("NULL")
            continue
        values.append(_text(body[at : at + length]))
        at += length
    return _shortened(f"DataRow {', '.join(values)}")


def _shortened(line: str) -> str:
    if len(line) < 2000:
        return line
    return f"{line[:200]}… {hashlib.sha256(line.encode()).hexdigest()[:12]}"


def _fields(word: str) -> Callable[[Transcript, bytes], str]:
    def render(_: Transcript, body: bytes) -> str:
        told = {part[:1].decode(): part[1:] for part in body.split(b"\0") if part}
        severity, code, text = (told.pop(each, b"").decode() for each in ("S", "C", "M"))
        for each in ("V", "F", "L", "R"):
            told.pop(each, None)
        rest = " ".join(f"{name}={_text(value)}" for name, value in sorted(told.items()))
        return f"{word} {severity} {code} {_text(text.encode())} {rest}".rstrip()

    return render


def _parameter_description(transcript: Transcript, body: bytes) -> str:
    (count,) = struct.unpack_from("!H", body)
    return _shortened(
        f"ParameterDescription {[transcript.oid(each) for each in struct.unpack_from(f'!{count}I', body, 2)]}"
    )


def _notification(_: Transcript, body: bytes) -> str:
    channel, payload, _rest = body[4:].split(b"\0")
    return f"NotificationResponse {channel.decode()} {payload.decode()!r}"


def _copy(word: str) -> Callable[[Transcript, bytes], str]:
    return lambda _, body: f"{word} {body.hex()}"


def _plain(word: str) -> Callable[[Transcript, bytes], str]:
    return lambda _, body: f"{word} {_text(body.rstrip(bytes(1)))}" if body else word


_RENDERERS: Final[dict[bytes, Callable[[Transcript, bytes], str]]] = {
    b"R": _authentication,
    b"S": _parameter_status,
    b"K": lambda _, body: f"BackendKeyData with a key of {len(body) - 4} bytes",
    b"Z": lambda _, body: f"ReadyForQuery {body.decode()}",
    b"T": _row_description,
    b"D": _data_row,
    b"C": _plain("CommandComplete"),
    b"I": _plain("EmptyQueryResponse"),
    b"E": _fields("ErrorResponse"),
    b"N": _fields("NoticeResponse"),
    b"1": _plain("ParseComplete"),
    b"2": _plain("BindComplete"),
    b"3": _plain("CloseComplete"),
    b"n": _plain("NoData"),
    b"s": _plain("PortalSuspended"),
    b"t": _parameter_description,
    b"A": _notification,
    b"G": _copy("CopyInResponse"),
    b"H": _copy("CopyOutResponse"),
    b"W": _copy("CopyBothResponse"),
    b"d": _plain("CopyData"),
    b"c": _plain("CopyDone"),
    b"v": _plain("NegotiateProtocolVersion"),
}
