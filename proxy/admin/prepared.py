"""The extended protocol on the console: prepared commands and portals, as drivers use them without knowing why.

Commands have no parameters; an Execute answers all rows whatever its limit (manual, "Extended Query").
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

from proxy.admin.answers import row_description
from proxy.admin.columns import Column
from proxy.admin.commands import Command, parse
from proxy.errors import ConsoleError, FeatureNotSupported, ProtocolViolation
from proxy.wire.messages import BIND_COMPLETE, CLOSE_COMPLETE, NO_DATA, NO_PARAMETERS, PARSE_COMPLETE

MOST: Final = 200
"""Named statements and portals of one client; each may hold a text of 64 KiB."""

ColumnsOf = Callable[[Command], Sequence[Column] | None]


class UndefinedName(ConsoleError):
    """A name that was not prepared or bound."""

    sqlstate = "26000"


class DuplicateName(ConsoleError):
    """A name that is taken."""

    sqlstate = "42P05"


@dataclass(frozen=True, slots=True)
class Portal:
    """A command that was bound, None for an empty text, and the formats of its columns."""

    command: Command | None
    formats: tuple[int, ...]


class Prepared:
    """A client's prepared commands and portals; each method returns the answer, and raises ClientError."""

    def __init__(self) -> None:
        self._statements: dict[bytes, Command | None] = {}
        self._portals: dict[bytes, Portal] = {}

    def parse(self, body: bytes) -> bytes:
        """Take the body of a Parse."""
        name, rest = _string(body)
        text, rest = _string(rest)
        if len(rest) < 2 or (len(rest) - 2) % 4 != 0:
            raise ProtocolViolation("invalid Parse message")
        commands = parse(text.decode("utf-8", "replace"))
        if len(commands) > 1:
            raise FeatureNotSupported("a prepared command is one command")
        if name and name in self._statements:
            raise DuplicateName(f'prepared statement "{name.decode("utf-8", "replace")}" already exists')
        if len(self._statements) >= MOST and name not in self._statements:
            raise FeatureNotSupported(f"{MOST} prepared commands are the most that there may be")
        self._statements[name] = commands[0] if commands else None
        return PARSE_COMPLETE

    def bind(self, body: bytes) -> bytes:
        """Take the body of a Bind."""
        name, rest = _string(body)
        statement, rest = _string(rest)
        try:
            _, rest = _codes(rest)
            (parameters,) = struct.unpack_from("!h", rest)
            if parameters != 0:
                raise FeatureNotSupported("commands of the admin console have no parameters")
            formats, rest = _codes(rest[2:])
        except struct.error:
            raise ProtocolViolation("invalid Bind message") from None
        if rest or not set(formats) <= {0, 1}:
            raise ProtocolViolation("invalid Bind message")
        if len(self._portals) >= MOST:
            raise FeatureNotSupported(f"{MOST} portals are the most that there may be")
        self._portals[name] = Portal(self._statement(statement), formats)
        return BIND_COMPLETE

    def describe(self, body: bytes, columns_of: ColumnsOf) -> bytes:
        """Take the body of a Describe."""
        kind, (name, _) = body[:1], _string(body[1:])
        formats: tuple[int, ...] = ()
        if kind == b"S":
            command, head = self._statement(name), NO_PARAMETERS
        elif kind == b"P":
            portal = self._portal(name)
            command, head, formats = portal.command, b"", portal.formats
        else:
            raise ProtocolViolation("invalid subtype of a Describe message")
        columns = columns_of(command) if command is not None else None
        return head + (NO_DATA if columns is None else row_description(columns, formats))

    def portal(self, body: bytes) -> Portal:
        """Return the portal that the body of an Execute names."""
        name, rest = _string(body)
        if len(rest) != 4:
            raise ProtocolViolation("invalid Execute message")
        return self._portal(name)

    def close(self, body: bytes) -> bytes:
        """Take the body of a Close."""
        kind, (name, _) = body[:1], _string(body[1:])
        if kind == b"S":
            self._statements.pop(name, None)
        elif kind == b"P":
            self._portals.pop(name, None)
        else:
            raise ProtocolViolation("invalid subtype of a Close message")
        return CLOSE_COMPLETE

    def end_portals(self) -> None:
        """Forget the portals: a Sync ends their transaction."""
        self._portals = {}

    def _statement(self, name: bytes) -> Command | None:
        if name not in self._statements:
            raise UndefinedName(f'prepared statement "{name.decode("utf-8", "replace")}" does not exist')
        return self._statements[name]

    def _portal(self, name: bytes) -> Portal:
        portal = self._portals.get(name)
        if portal is None:
            raise UndefinedName(f'portal "{name.decode("utf-8", "replace")}" does not exist')
        return portal


def _string(data: bytes) -> tuple[bytes, bytes]:
    """Return the string at the start of `data`, and what follows it."""
    text, nul, rest = data.partition(b"\0")
    if not nul:
        raise ProtocolViolation("invalid string in message")
    return text, rest


def _codes(data: bytes) -> tuple[tuple[int, ...], bytes]:
    """Return a counted list of format codes, and what follows it; raises struct.error where it is cut off."""
    (count,) = struct.unpack_from("!h", data)
    if count < 0:
        raise ProtocolViolation("invalid Bind message")
    return struct.unpack_from(f"!{count}h", data, 2), data[2 + 2 * count :]
