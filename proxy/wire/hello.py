"""What a TLS ClientHello says of the protocol that is to be spoken (RFC 8446, section 4.1.2; RFC 7301)."""

from __future__ import annotations

from typing import Final

RECORD_HEADER: Final = 5
"""Bytes of a record's header: type, version, length of what follows."""

MAX_RECORD: Final = 16_384
"""Bytes that a record holds at most (RFC 8446, section 5.1)."""

NO_APPLICATION_PROTOCOL: Final = b"\x15\x03\x03\x00\x02\x02\x78"
"""A fatal alert, as a record: no protocol in common (RFC 7301, section 3.2)."""

_HANDSHAKE: Final = 0x16
_CLIENT_HELLO: Final = 1
_VERSION_AND_RANDOM: Final = 34
_ALPN: Final = 16


def record_size(data: bytes) -> int:
    """Return the bytes of the handshake record that `data` begins with; 0 where it is none."""
    if len(data) < RECORD_HEADER or data[0] != _HANDSHAKE:
        return 0
    length = int.from_bytes(data[3:5], "big")
    return RECORD_HEADER + length if 0 < length <= MAX_RECORD else 0


def protocols(record: bytes) -> list[bytes] | None:
    """Return the protocols that the ClientHello in `record` offers by ALPN; [] for a ClientHello without.

    None where it isn't one, or not the whole of one: the handshake then decides.
    """
    at = RECORD_HEADER
    if len(record) < at + 4 or record[at] != _CLIENT_HELLO:
        return None
    end = at + 4 + int.from_bytes(record[at + 1 : at + 4], "big")
    if end > len(record):
        return None
    at += 4 + _VERSION_AND_RANDOM
    # Session id, cipher suites, compression methods: each behind its length.
    for width in (1, 2, 1):
        if at + width > end:
            return None
        at += width + int.from_bytes(record[at : at + width], "big")
    at += 2
    while at + 4 <= end:
        kind = int.from_bytes(record[at : at + 2], "big")
        length = int.from_bytes(record[at + 2 : at + 4], "big")
        at += 4
        if kind == _ALPN:
            # A slice is taken within the record only: compiled, one that begins behind its end is an error.
            return _names(record[at + 2 : at + length]) if 2 <= length <= end - at else None
        at += length
    return []


def _names(data: bytes) -> list[bytes]:
    names: list[bytes] = []
    at = 0
    while at < len(data):
        length = data[at]
        names.append(data[at + 1 : at + 1 + length])
        at += 1 + length
    return names
