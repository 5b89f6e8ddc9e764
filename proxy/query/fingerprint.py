"""What groups statements that differ in literals alone, in the access log."""

from __future__ import annotations

import hashlib
from typing import Final

from pglast.parser import ParseError
from pglast.parser import fingerprint as _fingerprint

MAX_TEXT: Final = 4096
"""Bytes of a text of which libpg_query's fingerprint is taken, which takes longer than to parse it."""


def fingerprint_of(sql: bytes, normalized: str) -> str:
    """Return libpg_query's fingerprint of `sql`, 16 hex digits; where that is b"" a hash of `normalized`, as many."""
    if sql:
        try:
            return str(_fingerprint(sql.decode("utf-8")))
        except (ParseError, UnicodeDecodeError):
            pass
    return hashlib.blake2b(normalized.encode("utf-8", "surrogateescape"), digest_size=8).hexdigest()
