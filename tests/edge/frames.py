"""WebSocket frames as the edge sees them (RFC 6455, section 5): strict about what comes in, and no I/O."""

from __future__ import annotations

import asyncio
import base64
import hashlib
from dataclasses import dataclass

from websockets.utils import apply_mask

CONTINUATION, TEXT, BINARY, CLOSE, PING, PONG = 0x0, 0x1, 0x2, 0x8, 0x9, 0xA
_KNOWN = {CONTINUATION, TEXT, BINARY, CLOSE, PING, PONG}
_GUID = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11"
_LARGEST = 64 * 1024 * 1024


class Violation(Exception):
    """Something that a client must not send."""


@dataclass(frozen=True)
class Frame:
    opcode: int
    final: bool
    payload: bytes


async def read_frame(reader: asyncio.StreamReader) -> Frame:
    """Return the next frame; raises Violation, or IncompleteReadError at the end."""
    first, second = await reader.readexactly(2)
    opcode, length = first & 0x0F, second & 0x7F
    if first & 0x70:
        raise Violation("a reserved bit is set: no extension was agreed on")
    if opcode not in _KNOWN:
        raise Violation(f"opcode {opcode}")
    if not second & 0x80:
        raise Violation("a frame without a mask")
    if opcode >= CLOSE and (length > 125 or not first & 0x80):
        raise Violation("a control frame that is long or in pieces")
    if length == 126:
        length = int.from_bytes(await reader.readexactly(2), "big")
        if length < 126:
            raise Violation("a length that isn't the shortest form")
    elif length == 127:
        length = int.from_bytes(await reader.readexactly(8), "big")
        if length < 65_536 or length > _LARGEST:
            raise Violation("a length that isn't the shortest form, or absurd")
    mask = await reader.readexactly(4)
    payload = await reader.readexactly(length)
    return Frame(opcode, bool(first & 0x80), apply_mask(payload, mask))


def header(opcode: int, length: int) -> bytes:
    """Return the head of a final frame of a server's, which has no mask."""
    if length < 126:
        return bytes((0x80 | opcode, length))
    if length < 65_536:
        return bytes((0x80 | opcode, 126)) + length.to_bytes(2, "big")
    return bytes((0x80 | opcode, 127)) + length.to_bytes(8, "big")


def accept(key: str) -> str:
    """Return Sec-WebSocket-Accept for a client's key."""
    return base64.b64encode(hashlib.sha1(key.encode() + _GUID).digest()).decode()
