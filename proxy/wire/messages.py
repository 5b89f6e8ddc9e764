"""Building messages, and decoding the few that the proxy looks into.

Everything here takes and returns whole messages as bytes; nothing keeps state.
"""

from __future__ import annotations

from typing import Final

from librt.strings import BytesWriter, read_i16_be, read_i32_be, write_i16_be, write_i32_be
from mypy_extensions import i16, i32, i64

from proxy.errors import ClientError, ProtocolViolation
from proxy.wire.codes import HEADER, MAX_HELD

SYNC: Final = b"S\x00\x00\x00\x04"
FLUSH: Final = b"H\x00\x00\x00\x04"
TERMINATE: Final = b"X\x00\x00\x00\x04"
PARSE_COMPLETE: Final = b"1\x00\x00\x00\x04"
BIND_COMPLETE: Final = b"2\x00\x00\x00\x04"
EMPTY_QUERY: Final = b"I\x00\x00\x00\x04"
NO_DATA: Final = b"n\x00\x00\x00\x04"
NO_PARAMETERS: Final = b"t\x00\x00\x00\x06\x00\x00"
CLOSE_COMPLETE: Final = b"3\x00\x00\x00\x04"
_NEAR: Final = 48

READY_IDLE: Final = b"Z\x00\x00\x00\x05I"
READY_IN_TRANSACTION: Final = b"Z\x00\x00\x00\x05T"
READY_FAILED: Final = b"Z\x00\x00\x00\x05E"
AUTH_OK: Final = b"R\x00\x00\x00\x08\x00\x00\x00\x00"
AUTH_CLEARTEXT_PASSWORD: Final = b"R\x00\x00\x00\x08\x00\x00\x00\x03"
AUTH_SASL_SCRAM: Final = b"R\x00\x00\x00\x17\x00\x00\x00\x0aSCRAM-SHA-256\x00\x00"
AUTH_SASL_SCRAM_PLUS: Final = b"R\x00\x00\x00\x2a\x00\x00\x00\x0aSCRAM-SHA-256-PLUS\x00SCRAM-SHA-256\x00\x00"


def message(kind: i64, body: bytes) -> bytes:
    """Return `body` behind the header of a message of type `kind`."""
    w = BytesWriter()
    w.append(kind)
    n: i64 = len(body)
    write_i32_be(w, i32(n + 4))
    w.write(body)
    return w.getvalue()


def query(sql: bytes) -> bytes:
    """Return a Query message."""
    return message(0x51, sql + b"\0")


def parse(name: bytes, sql: bytes, parameter_types: bytes = b"\0\0") -> bytes:
    """Return a Parse message; `parameter_types` is the count and the OIDs as on the wire."""
    return message(0x50, name + b"\0" + sql + b"\0" + parameter_types)


def bind_unnamed(name: bytes) -> bytes:
    """Return a Bind of statement `name`, without parameters, to the unnamed portal."""
    return message(0x42, b"\0" + name + b"\0\0\0\0\0\0\0")


def bind_text(name: bytes, values: list[bytes]) -> bytes:
    """Return a Bind of statement `name` to the unnamed-like portal of the same name, with text parameters."""
    w = BytesWriter()
    w.write(name)
    w.append(0)
    w.write(name)
    w.write(b"\0\0\0")
    write_i16_be(w, i16(len(values)))
    for value in values:
        write_i32_be(w, i32(len(value)))
        w.write(value)
    w.write(b"\0\0")
    return message(0x42, w.getvalue())


def execute(portal: bytes) -> bytes:
    """Return an Execute of `portal` without a row limit."""
    return message(0x45, portal + b"\0\0\0\0\0")


def close_statement(name: bytes) -> bytes:
    """Return a Close of the prepared statement `name`."""
    return message(0x43, b"S" + name + b"\0")


def close_portal(name: bytes) -> bytes:
    """Return a Close of the portal `name`."""
    return message(0x43, b"P" + name + b"\0")


def bind_renamed(
    data: bytes, start: i64, end: i64, name_start: i64, name_end: i64, name: bytes, length: i64 = 0
) -> bytes:
    """Return the Bind at data[start:end] with its statement name, at data[name_start:name_end], made `name`.

    `end` may lie behind the bytes at hand: then what is there is returned, under a header that counts the whole. With
    the `length` from its header, what stands between the Bind and `end` follows as it is.
    """
    length = (length if length > 0 else end - start - 1) - (name_end - name_start) + len(name)
    w = BytesWriter()
    w.append(0x42)
    write_i32_be(w, i32(length))
    if name_start == start + HEADER + 1:
        w.append(0)
    else:
        w.write(data[start + HEADER : name_start])
    w.write(name)
    w.write(data[name_end:end])
    return w.getvalue()


def describe_renamed(kind: i64, name: bytes) -> bytes:
    """Return a Describe (or Close, by `kind`) of the statement `name`."""
    return message(kind, b"S" + name + b"\0")


def parameter_status(name: bytes, value: bytes) -> bytes:
    """Return a ParameterStatus message."""
    return message(0x53, name + b"\0" + value + b"\0")


def backend_key_data(pid: int, secret: bytes) -> bytes:
    """Return a BackendKeyData message."""
    return message(0x4B, pid.to_bytes(4, "big") + secret)


def sasl_continue(text: str) -> bytes:
    """Return AuthenticationSASLContinue."""
    return message(0x52, b"\0\0\0\x0b" + text.encode())


def sasl_final(text: str) -> bytes:
    """Return AuthenticationSASLFinal."""
    return message(0x52, b"\0\0\0\x0c" + text.encode())


def command_complete(tag: bytes) -> bytes:
    """Return a CommandComplete with `tag`."""
    return message(0x43, tag + b"\0")


def ready(status: int) -> bytes:
    """Return a ReadyForQuery with transaction status `status`."""
    return b"Z\x00\x00\x00\x05" + bytes([status])


def error_response(error: ClientError, fatal: bool = False) -> bytes:
    """Return the ErrorResponse for `error` (manual, "Error and Notice Message Fields")."""
    severity = b"FATAL" if fatal else b"ERROR"
    fields = [b"S" + severity, b"V" + severity, b"C" + error.sqlstate.encode(), b"M" + _field(error.message)]
    if error.detail:
        fields.append(b"D" + _field(error.detail))
    if error.hint:
        fields.append(b"H" + _field(error.hint))
    return message(0x45, b"\0".join(fields) + b"\0\0")


def _field(text: str) -> bytes:
    return text.encode("utf-8", "replace").replace(b"\0", b"?")


def cstring_end(data: bytes, start: i64, end: i64) -> i64:
    """Return the position of the NUL that ends the string at `start`.

    Raises ProtocolViolation where there is none before `end`.
    """
    # Names are short: comparing bytes costs less than a call of find with its arguments.
    at: i64 = start
    stop: i64 = end
    near: i64 = at + _NEAR if at + _NEAR < stop else stop
    while at < near:
        if data[at] == 0:
            return at
        at += 1
    at = data.find(b"\0", at, stop)
    if at < 0:
        raise ProtocolViolation("invalid string in message")
    return at


def error_fields(data: bytes, start: i64, end: i64) -> dict[str, str]:
    """Return the fields of the Error- or NoticeResponse at data[start:end] by their one-letter codes.

    Fields that are cut off or hold invalid UTF-8 are returned as far as they go: a server's error is for
    people to read, and a hostile one must not break us.
    """
    fields: dict[str, str] = {}
    for field in data[start + HEADER : min(end, start + MAX_HELD)].split(b"\0"):
        if len(field) > 1:
            fields.setdefault(chr(field[0]), field[1:].decode("utf-8", "replace"))
    return fields


def sqlstate(data: bytes, start: i64, end: i64) -> bytes:
    """Return the five bytes of SQLSTATE in the ErrorResponse at data[start:end], b"" where there is none."""
    pos: i64 = start + HEADER
    stop: i64 = end
    while pos < stop and data[pos] != 0:
        next_field: i64 = data.find(b"\0", pos, stop)
        if next_field < 0:
            return b""
        if data[pos] == 0x43:  # C
            return data[pos + 1 : next_field] if next_field - pos == 6 else b""
        pos = next_field + 1
    return b""


def affected_rows(data: bytes, start: i64, end: i64) -> i64:
    """Return the count at the end of the CommandComplete tag at data[start:end], 0 where it has none."""
    pos: i64 = end - 2
    rows: i64 = 0
    scale: i64 = 1
    first: i64 = start + HEADER
    while pos >= first and scale < 1_000_000_000_000_000_000:
        digit: i64 = data[pos] - 48
        if digit < 0 or digit > 9:
            break
        rows += digit * scale
        scale *= 10
        pos -= 1
    return rows


def parameters_of(data: bytes, start: i64, end: i64) -> tuple[bytes, bytes]:
    """Return name and value of the ParameterStatus at data[start:end]; raises ProtocolViolation if malformed."""
    name_end = cstring_end(data, start + HEADER, end)
    value_end = cstring_end(data, name_end + 1, end)
    return data[start + HEADER : name_end], data[name_end + 1 : value_end]


def first_columns(data: bytes, start: i64, end: i64) -> list[bytes | None]:
    """Return the columns of the DataRow at data[start:end]; raises ProtocolViolation if lengths disagree."""
    columns: list[bytes | None] = []
    pos: i64 = start + HEADER + 2
    if pos > end:
        raise ProtocolViolation("invalid DataRow")
    count: i64 = i64(read_i16_be(data, start + HEADER)) & 0xFFFF
    while count > 0:
        count -= 1
        if pos + 4 > end:
            raise ProtocolViolation("invalid DataRow")
        length: i64 = i64(read_i32_be(data, pos))
        pos += 4
        if length == -1:
            columns.append(None)
            continue
        if length < 0 or pos + length > end:
            raise ProtocolViolation("invalid DataRow")
        columns.append(data[pos : pos + length])
        pos += length
    return columns
