"""Encode access records as rows of PostgreSQL's binary COPY format, for table sluice.api_access_logs.

A row is a 16-bit count of fields, then each field as a 32-bit length (-1 for NULL) and its bytes (manual,
COPY, "Binary Format"). What stays the same between rows is encoded once, as a *part*: a run of whole
fields. The order of the columns makes each part one such run:

    id, at, event                                              each row
    key_id, user_id, client_addr, application_name, database   session_part: once for each login
    pool, host                                                 pool_part: once for each server connection
    target, reason                                             route_part: once for each pair
    intent, fingerprint, statement                             Intent.log_part: once for each kept intent
    rows … traceparent                                         each row

The id is a UUID of version 7 (RFC 9562, section 5.7): the milliseconds of the record's time, then a counter
of 26 bits that goes up with each row whatever the time (section 6.2, method 1), then 48 random bits that are
handed in. So ids of one millisecond sort in the order of recording, and none repeats in one process.

PostgreSQL refuses NUL and broken UTF-8 in a text, and the whole COPY with it: both are replaced here.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from ipaddress import IPv4Address, IPv6Address, ip_address
from typing import Final, final

from librt.strings import BytesWriter, write_i16_be, write_i32_be, write_i64_be
from mypy_extensions import i16, i32, i64

from proxy.query.intent import Intent

COLUMNS: Final = 26
NULL: Final = b"\xff\xff\xff\xff"
TRUE: Final = b"\x00\x00\x00\x01\x01"
FALSE: Final = b"\x00\x00\x00\x01\x00"
# in_transaction, pinned, sqlstate, code, traceparent
_PLAIN_END: Final = FALSE + FALSE + NULL + NULL + NULL

# Longest texts in bytes: a name is an identifier or an e-mail address; a statement of some pages says enough.
MAX_NAME: Final = 256
MAX_REASON: Final = 512
MAX_STATEMENT: Final = 8192

# From 1970 to 2000, where PostgreSQL's timestamps start, in microseconds.
_EPOCH_US: Final[i64] = 946_684_800_000_000
_COUNTER_MASK: Final[i64] = 0x3FF_FFFF
# The variant bits 10 of RFC 9562, section 4.1, at the top of the id's lower half.
_VARIANT: Final[i64] = -0x7FFF_FFFF_FFFF_FFFF - 1
_NEVER: Final[i64] = 0x7FFF_FFFF_FFFF_FFFF
# Random bytes that a buffer wants: 6 for the end of its ids, 4 for where the counter starts.
SEED: Final = 10
_KEEP_CAPACITY: Final[i64] = 1 << 20

# Address families as PostgreSQL's inet_send writes them (PGSQL_AF_INET, PGSQL_AF_INET6).
_INET: Final = b"\x02\x20\x00\x04"
_INET6: Final = b"\x03\x80\x00\x10"

# A whole API key where only its id belongs, as in a user name: the secret must not reach a log.
_API_KEY: Final = re.compile(r"(ctm_[0-9A-Za-z]{12}_)[0-9A-Za-z_-]+")


def mask_keys(text: str) -> str:
    """Return `text` with the secret of each API key in it replaced by `***`; the key's id stays."""
    if "ctm_" not in text:
        return text
    return _API_KEY.sub(r"\1***", text)


def text_field(text: str, limit: int = MAX_NAME) -> bytes:
    """Return a text as one field, at most `limit` bytes of UTF-8 long; NULL for an empty one.

    NUL and lone surrogates are replaced, secrets of API keys masked; a text that was cut ends in an ellipsis.
    """
    if not text:
        return NULL
    # A character is a byte at least; one more than the limit tells that there was more.
    body = mask_keys(text[: limit + 1]).replace("\0", "\ufffd").encode("utf-8", "replace")
    if len(body) > limit:
        # The cut may fall into a character: what is left of it is dropped.
        body = body[: limit - 3].decode("utf-8", "ignore").encode() + b"\xe2\x80\xa6"
    return len(body).to_bytes(4, "big") + body


def address_field(address: str) -> bytes:
    """Return an IPv4 or IPv6 address as a field of type inet; NULL for anything else, as a Unix socket's "".

    An IPv4 client of a socket that listens for both is written as IPv4; a scope (`%eth0`) is left out.
    """
    try:
        parsed: IPv4Address | IPv6Address = ip_address(address.partition("%")[0])
    except ValueError:
        return NULL
    if isinstance(parsed, IPv6Address):
        mapped = parsed.ipv4_mapped
        if mapped is None:
            return b"\x00\x00\x00\x14" + _INET6 + parsed.packed
        return b"\x00\x00\x00\x08" + _INET + mapped.packed
    return b"\x00\x00\x00\x08" + _INET + parsed.packed


def session_part(key_id: str, user_id: str, client_addr: str, application_name: str, database: str) -> bytes:
    """Return what is the same for a session: key_id, user_id, client_addr, application_name, database."""
    return (
        text_field(key_id)
        + text_field(user_id)
        + address_field(client_addr)
        + text_field(application_name)
        + text_field(database)
    )


def pool_part(pool: str, host: str) -> bytes:
    """Return what is the same for a server connection: pool, host."""
    return text_field(pool) + text_field(host)


def route_part(target: str, reason: str) -> bytes:
    """Return where a statement went and why: target, reason."""
    return text_field(target) + text_field(reason, MAX_REASON)


@final
class AccessBuffer:
    """Rows that were recorded and not yet taken.

    `seed` is SEED random bytes; each `take` may hand in new ones. `statements` says what the column statement
    holds: `normalized`, `full` or `none`; intents keep what was encoded for it (`Intent.log_part`), so a
    buffer with another choice needs a new IntentCache. `wake` is called, once between two takes, when the
    rows have passed `wake_bytes`: it must not take them at once. A buffer that isn't `enabled` stays empty.
    """

    def __init__(
        self,
        seed: bytes,
        statements: str = "normalized",
        wake_bytes: i64 = _NEVER,
        wake: Callable[[], None] | None = None,
        enabled: bool = True,
    ) -> None:
        self.enabled: Final = enabled
        self.statements: Final = statements
        # Rows that `take` will give, and where those of events begin among them.
        self.rows: i64 = 0
        self.events: list[int] = []
        self._writer = BytesWriter()
        self._wake: Final = wake
        self._wake_bytes: Final = wake_bytes
        self._wake_at: i64 = wake_bytes
        self._counter: i64 = int.from_bytes(seed[6:10], "big") & int(_COUNTER_MASK)
        self._random: i64 = int.from_bytes(seed[:6], "big")

    def statement(
        self,
        session: bytes,
        pool: bytes,
        route: bytes,
        intent: Intent,
        started: float,
        queued_us: i64,
        first_byte_us: i64,
        duration_us: i64,
        rows: i64,
        bytes_in: i64,
        bytes_out: i64,
        in_transaction: bool,
        pinned: bool,
        sqlstate: bytes,
        code: bytes,
        traceparent: bytes,
        text: bytes = b"",
    ) -> None:
        """Append the record of one Query or Execute.

        `started` is the wall clock in seconds since 1970; a negative number and an empty text become NULL.
        `text` is what the client sent: it is written only with `statements: full`.
        """
        if not self.enabled:
            return
        self._begin(started, b"\x00\x00\x00\x09statement")
        w = self._writer
        w.write(session)
        w.write(pool)
        w.write(route)
        if not intent.log_part:
            intent.log_part = self._log_part(intent)
        w.write(intent.log_part)
        if self.statements == "full":
            whole = text[: MAX_STATEMENT + 1].decode("utf-8", "replace") if text else intent.normalized
            w.write(text_field(whole, MAX_STATEMENT))
        _number(w, rows)
        _number(w, bytes_in)
        _number(w, bytes_out)
        _number(w, queued_us)
        _number(w, first_byte_us)
        _number(w, duration_us)
        if not (in_transaction or pinned) and len(sqlstate) + len(code) + len(traceparent) == 0:
            # Nearly every row ends like this.
            w.write(_PLAIN_END)
        else:
            w.write(TRUE if in_transaction else FALSE)
            w.write(TRUE if pinned else FALSE)
            _bytes_field(w, sqlstate)
            _bytes_field(w, code)
            _bytes_field(w, traceparent)
        self._end()

    def event(
        self,
        name: str,
        at: float,
        session: bytes,
        reason: str = "",
        sqlstate: str = "",
        code: str = "",
        intent: Intent | None = None,
        statement: str = "",
        pool: bytes = NULL + NULL,
        duration_us: i64 = -1,
    ) -> None:
        """Append a record of what isn't a statement on a server; what doesn't apply is NULL.

        `name` is login, login_failed, denied, revoked, cancel or admin; `at` the wall clock in seconds since
        1970. The text is `statement`, or that of `intent`; with `statements: none` there is none, and where
        there is an intent `statement` is written only with `statements: full`.
        """
        if not self.enabled:
            return
        self.events.append(len(self._writer))
        self._begin(at, text_field(name))
        w = self._writer
        w.write(session)
        w.write(pool)
        w.write(NULL)
        w.write(text_field(reason, MAX_REASON))
        kind = fingerprint = ""
        if intent is not None:
            kind, fingerprint = intent.kind, intent.fingerprint
            statement = statement if statement and self.statements == "full" else intent.normalized
        w.write(text_field(kind))
        w.write(text_field(fingerprint))
        w.write(NULL if self.statements == "none" else text_field(statement, MAX_STATEMENT))
        # rows, bytes_in, bytes_out, queued_us, first_byte_us
        w.write(NULL + NULL + NULL + NULL + NULL)
        _number(w, duration_us)
        # in_transaction, pinned
        w.write(NULL + NULL)
        w.write(text_field(sqlstate))
        w.write(text_field(code))
        w.write(NULL)
        self._end()

    def take(self, seed: bytes = b"") -> bytes:
        """Return the rows so far and start anew; `seed`, SEED random bytes, renews the ids' end."""
        taken = self._writer.getvalue()
        if len(taken) > _KEEP_CAPACITY:
            # After a burst the memory goes back; else it is used again.
            self._writer = BytesWriter()
        else:
            self._writer.truncate(0)
        self.rows = 0
        self.events = []
        self._wake_at = self._wake_bytes
        if seed:
            self._random = int.from_bytes(seed[:6], "big")
        return taken

    def _begin(self, at: float, event: bytes) -> None:
        w = self._writer
        ms: i64 = int(at * 1000.0)
        counter: i64 = (self._counter + 1) & _COUNTER_MASK
        self._counter = counter
        write_i16_be(w, i16(COLUMNS))
        write_i32_be(w, 16)
        write_i64_be(w, (ms << 16) | 0x7000 | (counter >> 14))
        write_i64_be(w, _VARIANT | ((counter & 0x3FFF) << 48) | self._random)
        write_i32_be(w, 8)
        write_i64_be(w, ms * 1000 - _EPOCH_US)
        w.write(event)

    def _end(self) -> None:
        self.rows += 1
        if len(self._writer) >= self._wake_at:
            self._wake_at = _NEVER
            if self._wake is not None:
                self._wake()

    def _log_part(self, intent: Intent) -> bytes:
        """Encode what all records of `intent` share; with `statements: full` each row's text follows it."""
        part = text_field(intent.kind) + text_field(intent.fingerprint)
        if self.statements == "normalized":
            return part + text_field(intent.normalized, MAX_STATEMENT)
        return part if self.statements == "full" else part + NULL


def _number(w: BytesWriter, value: i64) -> None:
    if value < 0:
        w.write(NULL)
    else:
        write_i32_be(w, 8)
        write_i64_be(w, value)


def _bytes_field(w: BytesWriter, value: bytes) -> None:
    """Write a short text; one that isn't plain ASCII came from a hostile peer, and is made safe."""
    if not value:
        w.write(NULL)
    elif value.isascii() and b"\0" not in value and len(value) <= MAX_NAME:
        write_i32_be(w, i32(len(value)))
        w.write(value)
    else:
        w.write(text_field(value[: MAX_NAME + 1].decode("utf-8", "replace")))
