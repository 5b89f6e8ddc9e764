"""A client of raw messages: logs in, writes what a script says, and knows which replies it has to wait for."""

from __future__ import annotations

import asyncio
import ssl
import struct
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Final

from scramp import ScramClient

from tests.differential.script import Line, Step
from tests.differential.transcript import Transcript
from tests.integration.support import Login
from tests.session.frontend import TERMINATE, message, query

PATIENCE: Final = 4.0
"""Seconds without a byte after which a reply counts as missing."""

V3_0: Final = 3 << 16
V3_2: Final = 3 << 16 | 2

_MECHANISM: Final = "SCRAM-SHA-256"
_SSL_REQUEST: Final = struct.pack("!ii", 8, 80877103)
# What answers each message of the extended protocol, where it goes well.
_ANSWERS: Final = {
    "Parse": ("1",),
    "Bind": ("2",),
    "Describe": ("T", "n"),
    "Close": ("3",),
    "Execute": ("C", "I", "s", "G"),
}


@dataclass(frozen=True)
class Manner:
    """How a client speaks: the protocol's version, and TLS where it has a context."""

    protocol: int = V3_0
    tls: ssl.SSLContext | None = None


PLAINLY: Final = Manner()


class Client:
    """One connection; `status` is the last ReadyForQuery's, "" once the connection is closed."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.transcript = Transcript()
        self.status = ""
        self.patience = PATIENCE
        self._reader = reader
        self._writer = writer
        self._ready_owed = 0
        self._answers_owed: list[tuple[str, ...]] = []
        self._copies_begun = 0
        self._copies_ended = 0
        self._skipping = False  # after an error, until Sync

    @classmethod
    async def connect(
        cls,
        login: Login,
        startup: Mapping[str, str] | None = None,
        patience: float = PATIENCE,
        manner: Manner = PLAINLY,
    ) -> Client:
        """Log in; the transcript starts at AuthenticationOk. A refused login shows there too."""
        client = cls(*await asyncio.open_connection(login.host, login.port, limit=1 << 20))
        client.patience = patience
        if manner.tls is not None:
            await client._encrypt(manner.tls, login.host)
        await client._log_in(login, startup or {}, manner.protocol)
        return client

    async def perform(self, step: Step) -> None:
        """Write a step's messages at once, then read all that they owe us."""
        if self._writer.is_closing():
            self.transcript.note("closed")
            return
        self._writer.write(b"".join(line.data for line in step.lines))
        for line in step.lines:
            self._owe(line)
        last = step.lines[-1]
        if last.word == "Await":
            await self._read_until(lambda kind: kind == last.awaited)
        elif last.word == "Flush":
            await self._read_until(lambda _: not self._answers_owed and not self._ready_owed, ask_first=True)
        elif last.word in ("Terminate", "Bytes", "FunctionCall"):
            await self._read_until(lambda _: last.word == "FunctionCall" and not self._ready_owed)
        else:
            await self._read_until(lambda _: not self._ready_owed, ask_first=True)

    async def run(self, sql: str) -> list[str]:
        """Run one Query and return its lines."""
        self._writer.write(query(sql))
        self._ready_owed += 1
        await self._read_until(lambda _: not self._ready_owed)
        return self.transcript.take()

    async def close(self) -> None:
        """Say Terminate and read what still comes: nothing should."""
        if not self._writer.is_closing():
            if self.status:
                self._writer.write(TERMINATE)
                await self._read_until(lambda _: False)
            self._writer.close()

    def _owe(self, line: Line) -> None:
        if line.word in ("Query", "FunctionCall") or (line.word == "Sync" and line.awaited != "ignored"):
            self._ready_owed += 1
            self._answers_owed = []
        elif line.word in _ANSWERS and not self._skipping:
            self._answers_owed.append(_ANSWERS[line.word])
        elif line.word in ("CopyDone", "CopyFail"):
            self._copies_ended += 1

    async def _read_until(self, enough: Callable[[str], bool], ask_first: bool = False) -> None:
        """Read until `enough` of a message's type says so, or a COPY waits for our data, or the end."""
        if ask_first and enough(""):
            return
        while True:
            try:
                kind, body = await asyncio.wait_for(self._message(), self.patience)
            except TimeoutError:
                self.transcript.note("nothing more comes")
                return
            except (asyncio.IncompleteReadError, ConnectionError):
                self.transcript.note("closed")
                self.status = ""
                self._writer.close()
                return
            self._note(kind, body)
            if enough(kind) or (kind == "G" and self._copies_ended < self._copies_begun):
                return

    async def _message(self) -> tuple[str, bytes]:
        header = await self._reader.readexactly(5)
        body = await self._reader.readexactly(int.from_bytes(header[1:], "big") - 4)
        return chr(header[0]), body

    def _note(self, kind: str, body: bytes) -> None:
        self.transcript.add(kind.encode("latin-1"), body)
        if kind == "Z":
            self._ready_owed -= 1
            self.status = body.decode()
            self._skipping = False
        elif kind == "G":
            self._copies_begun += 1
        if kind == "E":
            self._answers_owed = []
            self._skipping = True
        elif self._answers_owed and kind in self._answers_owed[0]:
            del self._answers_owed[0]

    async def _encrypt(self, context: ssl.SSLContext, host: str) -> None:
        self._writer.write(_SSL_REQUEST)
        answer = await self._reader.readexactly(1)
        assert answer == b"S", answer
        await self._writer.start_tls(context, server_hostname=host)

    async def _log_in(self, login: Login, startup: Mapping[str, str], protocol: int) -> None:
        parameters = {"user": login.user, "database": login.database, **startup}
        body = struct.pack("!i", protocol)
        body += b"".join(name.encode() + b"\0" + value.encode() + b"\0" for name, value in parameters.items())
        self._writer.write(struct.pack("!i", len(body) + 5) + body + b"\0")
        # c_nonce is made by scramp; PostgreSQL takes the user's name from the startup message.
        scram = ScramClient([_MECHANISM], login.user, login.password)
        while True:
            kind, data = await asyncio.wait_for(self._message(), self.patience)
            request = int.from_bytes(data[:4], "big") if kind == "R" else -1
            if request == 10:
                first = scram.get_client_first().encode()
                head = _MECHANISM.encode() + b"\0" + struct.pack("!i", len(first))
                self._writer.write(message(b"p", head + first))
            elif request == 11:
                scram.set_server_first(data[4:].decode())
                self._writer.write(message(b"p", scram.get_client_final().encode()))
            elif request == 12:
                scram.set_server_final(data[4:].decode())
            else:
                self._note(kind, data)
                break
        self._ready_owed = 1
        if kind == "R":
            await self._read_until(lambda _: not self._ready_owed)
        else:
            await self._read_until(lambda _: False)
