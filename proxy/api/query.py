"""POST /api/database/query: a statement of an administrator's own, its rows streamed and bounded.

As JSON:    {"columns": […], "rows": [[…], …], "row_count": 2, "truncated": false, "command": "SELECT 2", "error": null}
As NDJSON:  a line with columns, a line for each row, and a line with the rest (Accept: application/x-ndjson)

What fails before the first row gets a status of its own; behind that `error` says what went wrong.
"""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import AsyncIterator, Callable
from typing import Any, Final

from starlette.requests import Request
from starlette.responses import StreamingResponse
from starlette.types import Receive, Scope, Send

from proxy.api import values
from proxy.api.entrance import PATIENCE, Caller, Entrance, Talk, columns_of, completed, fields_of, watched
from proxy.api.models import Statement
from proxy.api.problems import ApiError, from_own_sql
from proxy.query.intent import READ
from proxy.wire.codes import BE_DATA_ROW, BE_ERROR, BE_PORTAL_SUSPENDED, BE_READY, BE_ROW_DESCRIPTION

log = logging.getLogger(__name__)

MOST_ROWS: Final = 10_000
"""Rows of an answer: what somebody looks at. Whoever wants all of a table asks by a driver, or by COPY."""

MOST_BYTES: Final = 8 * 1024 * 1024
"""Bytes of the rows of an answer."""

CHUNK: Final = 16_384
"""Bytes that are gathered before they are sent."""

NDJSON: Final = "application/x-ndjson"


class Answer:
    """The answer to one statement while it comes in."""

    def __init__(self, talk: Talk, statement: Statement, lines: bool) -> None:
        self._talk = talk
        self._statement = statement
        self._lines = lines
        self._columns: list[dict[str, Any]] = []
        self._types: list[int] = []
        self._rows = 0
        self._bytes = 0
        self._truncated = False
        self._command = ""
        self._first: list[bytes | None] | None = None
        self._problem: ApiError | None = None
        self._cancelled = False

    async def begin(self) -> None:
        """Wait for the first row, or for the end. Raises ApiError where there is an error instead."""
        parameters = [values.parameter(each) for each in self._statement.params]
        # One more than is shown tells whether there are more.
        self._talk.client.send(self._statement.sql, parameters, MOST_ROWS + 1)
        self._first = await self._row()
        if self._problem is not None:
            raise self._problem

    async def stream(self) -> AsyncIterator[bytes]:
        """Give the answer in pieces of some kilobytes."""
        head = json.dumps(self._columns, ensure_ascii=False, separators=(",", ":")).encode()
        waiting = bytearray(b'{"columns":' + head + (b"}\n" if self._lines else b',"rows":['))
        between = b"" if self._lines else b","
        row = self._first
        while row is not None:
            shown = values.row(row, self._types)
            if self._rows == MOST_ROWS or self._bytes + len(shown) > MOST_BYTES:
                self._cut()
            if not self._truncated:
                waiting += (between if self._rows else b"") + shown + (b"\n" if self._lines else b"")
                self._rows += 1
                self._bytes += len(shown)
                if len(waiting) > CHUNK:
                    yield bytes(waiting)
                    waiting.clear()
            row = await self._next()
        yield bytes(waiting) + self._end()

    async def _next(self) -> list[bytes | None] | None:
        try:
            return await self._row()
        except ApiError as problem:
            # The session is gone in the middle.
            self._problem = problem
            return None

    async def _row(self) -> list[bytes | None] | None:
        """Return the next row; None behind the last one, or an error."""
        while True:
            kind, body = await self._talk.next()
            if kind == BE_DATA_ROW:
                return columns_of(body)
            if kind == BE_ROW_DESCRIPTION:
                self._columns = values.columns(body)
                self._types = [column["oid"] for column in self._columns]
            elif kind == BE_PORTAL_SUSPENDED:
                self._truncated = True
            elif kind == BE_ERROR:
                self._problem = self._talk.told(from_own_sql(fields_of(body)))
            elif kind == BE_READY:
                return None
            self._command = completed(kind, body) or self._command

    def _cut(self) -> None:
        """Show no more; what only reads needn't go on either."""
        if self._truncated:
            return
        self._truncated = True
        if self._reads():
            self._cancelled = True
            self._talk.cancel()

    def _reads(self) -> bool:
        session = self._talk.client.session
        return session.database.intents.lookup(self._statement.sql.encode()).kind == READ

    def _end(self) -> bytes:
        problem = self._problem
        if self._cancelled and problem is not None and problem.status == 504:
            # That was the cancel of our own.
            problem = None
        rest = {
            "row_count": self._rows,
            "truncated": self._truncated,
            "command": self._command,
            "error": problem.body()["error"] if problem is not None else None,
        }
        told = json.dumps(rest, ensure_ascii=False, separators=(",", ":")).encode()
        return told + b"\n" if self._lines else b"]," + told[1:]


async def answer(
    entrance: Entrance, caller: Caller, request: Request, statement: Statement
) -> StreamingResponse:
    """Return the answer to `statement`; raises ApiError where it fails before its first row."""
    lines = NDJSON in request.headers.get("accept", "")
    seconds = statement.timeout_ms / 1000
    talk = await entrance.open(caller, statement.pool or "")
    try:
        told = Answer(talk, statement, lines)
        talk.start_clock(seconds)
        async with watched(request, talk):
            await told.begin()
    except BaseException:
        entrance.close(talk, caller)
        raise
    media_type = NDJSON if lines else "application/json"
    return _Streamed(told.stream(), media_type, seconds, lambda: entrance.close(talk, caller))


class _Streamed(StreamingResponse):
    """The rows behind the first; whatever ends the sending ends the session."""

    def __init__(
        self, pieces: AsyncIterator[bytes], media_type: str, seconds: float, ended: Callable[[], None]
    ) -> None:
        super().__init__(pieces, media_type=media_type)
        self._seconds = seconds
        self._ended = ended

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send the answer, for the statement's time and as long again for a client that reads slowly."""
        try:
            async with asyncio.timeout(2 * self._seconds + PATIENCE):
                await super().__call__(scope, receive, send)
        except TimeoutError:
            log.info("an HTTP client didn't read its answer in time")
        finally:
            self._ended()
