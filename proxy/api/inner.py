"""A client within this process: it speaks the wire protocol with a Session, and no socket is between them.

So a statement that comes over HTTP has the same permissions, limits, route, identity, timeouts and access record as
any other. Backpressure is the same, too: while nobody takes its answers, the session's server isn't read.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Final

from proxy.errors import UpstreamUnavailable
from proxy.session.session import Session
from proxy.wire.codes import HEADER
from proxy.wire.messages import SYNC, execute, message, parse

HIGH: Final = 65_536
"""Bytes that wait to be taken before the session's server is read no further; as a socket's of a client."""

MOST: Final = 16 * 1024 * 1024
"""Bytes of one message, a row for example, that are taken into memory."""

_DESCRIBE: Final = message(0x44, b"P\0")


class MessageTooLong(Exception):
    """A row, or another message, has more than MOST bytes."""


class InnerClient:
    """The client's end of a session, and at the same time the transport that the session writes to.

    `address` is that of whom it speaks for. `attach` comes before anything else.
    """

    def __init__(self, address: str, port: int) -> None:
        self._peer = (address, port)
        self._session: Session | None = None
        self._buffer = bytearray()
        self._more: asyncio.Future[None] | None = None
        self._paused = False
        self._closed = False

    def attach(self, session: Session) -> None:
        """Speak with `session`, whose transport this is."""
        self._session = session

    @property
    def session(self) -> Session:
        """Return the session that it speaks with."""
        assert self._session is not None
        return self._session

    # -- what a session asks of its transport

    def write(self, data: bytes) -> None:
        """Take bytes from the session."""
        if self._closed:
            return
        self._buffer += data
        self._wake()
        if len(self._buffer) > HIGH and not self._paused:
            self._paused = True
            self.session.pause_writing()

    def close(self) -> None:
        """Learn that the session has ended; what it wrote before is taken yet."""
        self._closed = True
        self._wake()

    abort = close

    def pause_reading(self) -> None:
        """Send no more for now: all of a unit is sent at once, and the next one when it was answered."""

    resume_reading = pause_reading

    def get_extra_info(self, name: str, default: object = None) -> object:
        """Return the address of whom it speaks for, as `peername`."""
        return self._peer if name == "peername" else default

    # -- what its user asks of it

    def send(self, sql: str, parameters: Sequence[str | None] = (), most_rows: int = 0) -> None:
        """Ask one statement with `parameters` as text; of its rows the first `most_rows` come, 0 for all.

        The answers are those to Parse, Bind, Describe, Execute and Sync.
        """
        run = execute(b"") if most_rows == 0 else message(0x45, b"\0" + most_rows.to_bytes(4, "big"))
        asked = [parse(b"", sql.encode()), _bind(parameters), _DESCRIBE, run, SYNC]
        self.session.data_received(b"".join(asked))

    async def take(self) -> tuple[int, bytes]:
        """Return the type and the body of the next message.

        Raises MessageTooLong, and UpstreamUnavailable where the session has ended without another one.
        """
        buffer = self._buffer
        while True:
            if len(buffer) >= HEADER:
                length = int.from_bytes(buffer[1:HEADER], "big")
                if length > MOST:
                    raise MessageTooLong
                if len(buffer) > length:
                    kind, body = buffer[0], bytes(buffer[HEADER : length + 1])
                    del buffer[: length + 1]
                    return kind, body
            if self._closed:
                raise UpstreamUnavailable()
            # Also where a part of a long message waits: without the rest it is never whole.
            self._go_on()
            if len(buffer) < HEADER or len(buffer) <= int.from_bytes(buffer[1:HEADER], "big"):
                await self._wait()

    def leave(self) -> None:
        """End the session, as a client does that closes its connection: what still runs is cancelled."""
        self.session.connection_lost(None)

    def _go_on(self) -> None:
        if self._paused:
            self._paused = False
            self.session.resume_writing()

    async def _wait(self) -> None:
        if self._closed:
            return
        self._more = asyncio.get_running_loop().create_future()
        await self._more

    def _wake(self) -> None:
        if self._more is not None and not self._more.done():
            self._more.set_result(None)


def _bind(parameters: Sequence[str | None]) -> bytes:
    """Return a Bind of the unnamed statement, with text in and text out; raises ValueError for too many parameters."""
    if len(parameters) > 0xFFFF:
        raise ValueError("too many parameters")
    parts = [b"\0\0\0\0", len(parameters).to_bytes(2, "big")]
    for value in parameters:
        if value is None:
            parts.append(b"\xff\xff\xff\xff")
        else:
            encoded = value.encode()
            parts += [len(encoded).to_bytes(4, "big"), encoded]
    parts.append(b"\0\0")
    return message(0x42, b"".join(parts))
