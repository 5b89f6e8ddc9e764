"""Messages of a client, and what came back, in brief."""

from __future__ import annotations

import struct


def message(kind: bytes, body: bytes = b"") -> bytes:
    return kind + struct.pack("!i", len(body) + 4) + body


def query(sql: str) -> bytes:
    return message(b"Q", sql.encode() + b"\0")


def parse(name: str, sql: str) -> bytes:
    return message(b"P", name.encode() + b"\0" + sql.encode() + b"\0\0\0")


def bind(name: str = "", portal: str = "", values: tuple[bytes, ...] = ()) -> bytes:
    body = portal.encode() + b"\0" + name.encode() + b"\0\0\0" + struct.pack("!H", len(values))
    for value in values:
        body += struct.pack("!i", len(value)) + value
    return message(b"B", body + b"\0\0")


def describe(name: str = "", kind: bytes = b"S") -> bytes:
    return message(b"D", kind + name.encode() + b"\0")


def execute(portal: str = "") -> bytes:
    return message(b"E", portal.encode() + b"\0" + struct.pack("!i", 0))


def close(name: str = "", kind: bytes = b"S") -> bytes:
    return message(b"C", kind + name.encode() + b"\0")


SYNC = message(b"S")
FLUSH = message(b"H")
TERMINATE = message(b"X")
COPY_DONE = message(b"c")
COPY_FAIL = message(b"f", b"no\0")


def copy_data(data: bytes) -> bytes:
    return message(b"d", data)


def function_call() -> bytes:
    return message(b"F", b"\0\0\0\1\0\0\0\0\0\0")


def run(sql: str) -> bytes:
    """Return the extended protocol's way to run one statement without a name."""
    return parse("", sql) + bind() + execute() + SYNC


def use(name: str) -> bytes:
    """Return what runs a prepared statement."""
    return bind(name) + execute() + SYNC


def split(data: bytes) -> list[bytes]:
    """Return the whole messages in `data`."""
    messages = []
    at = 0
    while at < len(data):
        end = at + 1 + int.from_bytes(data[at + 1 : at + 5], "big")
        assert len(data) >= end, "a message is cut off"
        messages.append(data[at:end])
        at = end
    return messages


def fields(data: bytes) -> dict[str, str]:
    """Return the fields of an ErrorResponse."""
    return {part[:1].decode(): part[1:].decode() for part in data[5:].split(b"\0") if part}


def kinds(data: bytes) -> str:
    """Return what came, in brief: "T D C ZI", "E:42501 ZE", "FATAL:08006", "S:TimeZone=UTC"."""
    return " ".join(_kind(each) for each in split(data))


def _kind(each: bytes) -> str:
    kind = each[:1].decode()
    if kind == "Z":
        return "Z" + each[5:].decode()
    if kind == "S":
        name, value, _ = each[5:].split(b"\0")
        return f"S:{name.decode()}={value.decode()}"
    if kind == "E":
        told = fields(each)
        return ("FATAL:" if told["S"] == "FATAL" else "E:") + told["C"]
    return kind


def rows(data: bytes) -> list[str]:
    """Return the first column of each DataRow."""
    return [each[11:].decode() for each in split(data) if each[:1] == b"D"]


def tags(data: bytes) -> list[str]:
    """Return the tag of each CommandComplete."""
    return [each[5:-1].decode() for each in split(data) if each[:1] == b"C" and len(each) > 5]


def error(data: bytes) -> dict[str, str]:
    """Return the fields of the only ErrorResponse in `data`."""
    (told,) = [fields(each) for each in split(data) if each[:1] == b"E"]
    return told
