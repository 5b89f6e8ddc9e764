"""The packets that open a connection: they have no type byte (manual, "Message Flow", "Start-up").

A connection may send one SSLRequest and one GSSENCRequest, then exactly one StartupMessage or CancelRequest.
"""

from __future__ import annotations

from typing import Final, final

from librt.strings import read_i32_be
from mypy_extensions import i64

from proxy.errors import ProtocolViolation
from proxy.wire.codes import CANCEL_REQUEST, GSSENC_REQUEST, MAX_STARTUP, SSL_REQUEST
from proxy.wire.messages import message

NEWEST_MINOR: Final = 2
"""The newest version is 3.2, of PostgreSQL 18: cancel keys may be longer than 4 bytes."""

_PROTOCOL_3: Final = 3
_TLS_CLIENT_HELLO: Final = 0x16


@final
class StartupPacket:
    """One packet before authentication.

    `code` is the request code or the protocol version; `parameters` are those of a StartupMessage; `cancel_pid`
    and `cancel_secret` those of a CancelRequest; `size` is how many bytes it took.
    """

    def __init__(self, code: int, size: int) -> None:
        self.code = code
        self.size = size
        self.parameters: dict[str, str] = {}
        self.cancel_pid = 0
        self.cancel_secret = b""

    @property
    def is_startup(self) -> bool:
        """Tell whether this is a StartupMessage of protocol 3."""
        return self.code >> 16 == _PROTOCOL_3

    @property
    def minor(self) -> int:
        """Return the minor version that the client asks for."""
        return self.code & 0xFFFF

    @property
    def spoken(self) -> int:
        """Return the minor version that is spoken with the client: what it asks for, 2 at most."""
        return min(self.minor, NEWEST_MINOR)


def read_startup(data: bytes) -> StartupPacket | None:
    """Return the packet at the start of `data`, or None while it is incomplete.

    Raises ProtocolViolation as soon as the bytes cannot become a packet that PostgreSQL would take; nothing
    is allocated for a length before it is checked.
    """
    n: i64 = len(data)
    if n >= 1 and data[0] == _TLS_CLIENT_HELLO:
        raise ProtocolViolation("TLS is not enabled on this port; connect with sslmode=disable or prefer")
    if n < 4:
        return None
    length: i64 = i64(read_i32_be(data, 0))
    if length < 8 or length > MAX_STARTUP:
        raise ProtocolViolation("invalid length of startup packet")
    if n < 8:
        return None
    code: i64 = i64(read_i32_be(data, 4))
    if n < length:
        return None
    packet = StartupPacket(code, length)
    if code == SSL_REQUEST or code == GSSENC_REQUEST:
        if length != 8:
            raise ProtocolViolation("invalid length of encryption request")
    elif code == CANCEL_REQUEST:
        # 4 bytes of secret in protocol 3.0, up to 256 in 3.2 (manual, "CancelRequest").
        if length < 16 or length > 268:
            raise ProtocolViolation("invalid length of cancel request")
        packet.cancel_pid = i64(read_i32_be(data, 8)) & 0xFFFFFFFF
        packet.cancel_secret = data[12:length]
    elif packet.is_startup:
        packet.parameters = _parameters(data[8:length])
    else:
        raise ProtocolViolation(
            f"unsupported frontend protocol {code >> 16}.{code & 0xFFFF}: this server supports 3.0 to 3.2"
        )
    return packet


def negotiate_version(minor: int, options: list[str]) -> bytes:
    """Return NegotiateProtocolVersion: the newest version known, and the `_pq_.` options that are not.

    The manual calls the field a minor version; PostgreSQL sends the whole one, and libpq 18 insists on it.
    """
    body = (_PROTOCOL_3 << 16 | minor).to_bytes(4, "big") + len(options).to_bytes(4, "big")
    return message(0x76, body + b"".join([option.encode() + b"\0" for option in options]))


def parse_options(text: str) -> dict[str, str]:
    """Return the settings in an `options` startup parameter: `-c name=value` and `--name=value`.

    A backslash takes the next character literally (manual, "Connecting to the database", options). Raises
    ProtocolViolation for anything else: an option that is not understood must not be lost in silence.
    """
    settings: dict[str, str] = {}
    words = _words(text)
    at = 0
    while at < len(words):
        word = words[at]
        at += 1
        if word == "-c" and at < len(words):
            assignment = words[at]
            at += 1
        elif (word.startswith("-c") and len(word) > 2) or (word.startswith("--") and len(word) > 2):
            assignment = word[2:]
        else:
            raise ProtocolViolation(f'invalid command-line argument for server process: "{word}"')
        name, equals, value = assignment.partition("=")
        if not equals or not name:
            raise ProtocolViolation(f"-c {assignment} requires a value")
        settings[name.replace("-", "_").lower()] = value
    return settings


def _words(text: str) -> list[str]:
    words: list[str] = []
    word = ""
    started = False
    at = 0
    while at < len(text):
        character = text[at]
        at += 1
        if character == "\\" and at < len(text):
            word += text[at]
            at += 1
            started = True
        elif character in " \t\n\r\v\f":
            if started:
                words.append(word)
            word = ""
            started = False
        else:
            word += character
            started = True
    if started:
        words.append(word)
    return words


def _parameters(body: bytes) -> dict[str, str]:
    """Return the name/value pairs of a StartupMessage; a doubled name is refused, for which one would count?"""
    if not body.endswith(b"\0"):
        raise ProtocolViolation("invalid startup packet layout: expected terminator as last byte")
    fields = body[:-1].split(b"\0")
    # Pairs, each ended by a NUL, and the packet's own NUL: the split leaves one empty string behind the last.
    if fields[-1] != b"" or len(fields) % 2 == 0:
        raise ProtocolViolation("invalid startup packet layout: expected name and value pairs")
    parameters: dict[str, str] = {}
    for at in range(0, len(fields) - 1, 2):
        try:
            name = fields[at].decode()
            value = fields[at + 1].decode()
        except UnicodeDecodeError:
            raise ProtocolViolation("startup parameters must be UTF-8") from None
        if not name:
            raise ProtocolViolation("invalid startup packet layout: a parameter without a name")
        if name in parameters:
            raise ProtocolViolation("a startup parameter was given twice")
        parameters[name] = value
    return parameters
