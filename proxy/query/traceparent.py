"""Whose trace a statement belongs to, as its text says: sqlcommenter's comment at the end.

    SELECT 1 /*action='list',traceparent='00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01'*/

Values are percent-encoded between quotes, keys sorted (google.github.io/sqlcommenter/spec); what traceparent may be is
W3C's "Trace Context", section 3.2. It is what a client claims: it goes into the log, and nothing goes by it.
"""

from __future__ import annotations

from typing import Final
from urllib.parse import unquote_to_bytes

from mypy_extensions import i64

LENGTH: Final = 55
"""Bytes of a traceparent of version 00."""

_REACH: Final[i64] = 4096
"""Bytes from the end within which the comment begins: a tracestate may have 512, other keys some more."""

_SLASH: Final = 0x2F
_STAR: Final = 0x2A
_SEMICOLON: Final = 0x3B
_DASH: Final = 0x2D
_BLANK: Final = 0x20
_KEY: Final = b"traceparent='"
_NO_TRACE: Final = b"0" * 32
_NO_SPAN: Final = b"0" * 16


def traceparent_of(sql: bytes) -> bytes:
    """Return the traceparent in the comment at the end of `sql`, b"" where there is none or it isn't valid.

    Blanks and semicolons may stand behind the comment.
    """
    end: i64 = len(sql)
    while end > 0 and (sql[end - 1] <= _BLANK or sql[end - 1] == _SEMICOLON):
        end -= 1
    if end < LENGTH or sql[end - 1] != _SLASH or sql[end - 2] != _STAR:
        return b""
    end -= 2
    start: i64 = sql.rfind(b"/*", end - _REACH if end > _REACH else 0, end)
    if start < 0:
        return b""
    start += 2
    at: i64 = sql.find(_KEY, start, end)
    while at >= 0 and not _begins_pair(sql, start, at):
        at = sql.find(_KEY, at + 1, end)
    if at < 0:
        return b""
    at += len(_KEY)
    close: i64 = sql.find(b"'", at, end)
    if close < 0:
        return b""
    value = sql[at:close]
    if b"%" in value:
        value = unquote_to_bytes(value)
    return value if _is_valid(value) else b""


def _begins_pair(sql: bytes, start: i64, at: i64) -> bool:
    """Tell whether a key begins at `at`: behind a comma or the comment's beginning, and blanks."""
    while at > start and sql[at - 1] <= _BLANK:
        at -= 1
    return at == start or sql[at - 1] == 0x2C


def _is_valid(value: bytes) -> bool:
    """Tell whether `value` is a traceparent of version 00, with ids that aren't all zeros."""
    if len(value) != LENGTH:
        return False
    i: i64 = 0
    while i < LENGTH:
        byte: i64 = value[i]
        if i == 2 or i == 35 or i == 52:
            if byte != _DASH:
                return False
        elif not (0x30 <= byte <= 0x39 or 0x61 <= byte <= 0x66):
            return False
        i += 1
    return value[:2] == b"00" and value[3:35] != _NO_TRACE and value[36:52] != _NO_SPAN
