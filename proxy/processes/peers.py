"""Messages between the processes of one proxy, over a Unix socket of each, in a directory that no other user can enter.

    request:   length of the JSON, length of the data, 32 bits each   {"what": …, …}   data
    answer:    the same                                               {"told": …} or {"error": …}

A connection carries one question. Whoever asks and goes away takes the question back.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import struct
from collections.abc import Awaitable, Callable, Mapping
from types import MappingProxyType
from typing import Any, Final

from proxy import errors
from proxy.errors import ClientError, SluiceError, reason
from proxy.processes.runtime import Runtime
from proxy.tasks import spawn, stop

log = logging.getLogger(__name__)

Handler = Callable[[dict[str, Any], bytes], Awaitable[object]]

_LENGTHS: Final = struct.Struct(">II")

MOST: Final = 64 * 1024 * 1024
"""Bytes of a message's parts: the facts of 5,000 clients are some 3 MB, a batch of the access log is smaller."""

PATIENCE: Final = 5.0
"""Seconds for an answer that takes no work."""

_MODE: Final = 0o600


class PeerError(SluiceError):
    """Another process gave no answer; the message says why."""


class Peers:
    """Where other processes reach this one, and how it asks them."""

    def __init__(self, runtime: Runtime, number: int) -> None:
        self.number = number
        self._runtime = runtime
        self._server: asyncio.Server | None = None
        self._answering: set[asyncio.Task[None]] = set()
        self._handlers: Mapping[str, Handler] = {}

    async def listen(self, handlers: Mapping[str, Handler]) -> None:
        """Answer what `handlers` know; raises SluiceError."""
        self._handlers = handlers
        path = self._runtime.socket_of(self.number)
        path.unlink(missing_ok=True)
        try:
            self._server = await asyncio.start_unix_server(self._accepted, path)
            path.chmod(_MODE)
        except OSError as error:
            raise SluiceError(f"{path}: {reason(error)}") from None

    async def close(self) -> None:
        """Answer no more."""
        if self._server is not None:
            self._server.close()
            self._runtime.socket_of(self.number).unlink(missing_ok=True)
        await stop(*self._answering)

    async def ask(
        self,
        number: int,
        what: str,
        about: Mapping[str, object] = MappingProxyType({}),
        data: bytes = b"",
        patience: float | None = PATIENCE,
    ) -> Any:
        """Return what the process `number` answers; `patience` is in seconds, None without an end.

        Raises PeerError where there is no answer, and the ClientError that is the answer.
        """
        try:
            async with asyncio.timeout(patience):
                reader, writer = await asyncio.open_unix_connection(self._runtime.socket_of(number))
                try:
                    _write(writer, {"what": what, **about}, data)
                    answer, _ = await _read(reader)
                finally:
                    writer.close()
        except (OSError, TimeoutError, asyncio.IncompleteReadError, ValueError) as error:
            why = reason(error) if isinstance(error, OSError) and error.errno else "no answer"
            raise PeerError(f"process {number}: {why}") from None
        if "error" in answer:
            raise _client_error(answer["error"])
        return answer.get("told")

    async def _accepted(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._answering.add(task)
        try:
            async with asyncio.timeout(PATIENCE):
                question, data = await _read(reader)
            answer = await self._answer(question, data, reader)
            _write(writer, answer, b"")
            await writer.drain()
        except (OSError, TimeoutError, asyncio.IncompleteReadError, ValueError) as error:
            log.warning("a question of another process was cut off: %s", error or type(error).__name__)
        finally:
            self._answering.discard(task)
            writer.close()

    async def _answer(
        self, question: dict[str, Any], data: bytes, reader: asyncio.StreamReader
    ) -> dict[str, object]:
        handler = self._handlers.get(question.pop("what", ""))
        if handler is None:
            return {"error": {"class": "FeatureNotSupported", "message": "another version doesn't know this"}}
        work = spawn(_told(handler, question, data), "answer another process")
        gone = spawn(_gone(reader), "watch who asked")
        try:
            await asyncio.wait({work, gone}, return_when=asyncio.FIRST_COMPLETED)
            if not work.done():
                raise ConnectionError("who asked has gone")
            answer: dict[str, object] = work.result()
            return answer
        finally:
            await stop(work, gone)


async def _told(handler: Handler, question: dict[str, Any], data: bytes) -> dict[str, object]:
    try:
        return {"told": await handler(question, data)}
    except ClientError as error:
        told = {"message": error.message, "extra": error.extra, "hint": error.hint}
        return {"error": {"class": type(error).__name__, **told}}


async def _gone(reader: asyncio.StreamReader) -> None:
    with contextlib.suppress(OSError):
        await reader.read(1)


def _client_error(told: dict[str, str]) -> ClientError:
    kind = getattr(errors, told.get("class", ""), ClientError)
    if not (isinstance(kind, type) and issubclass(kind, ClientError)):
        kind = ClientError
    error = ClientError.__new__(kind)
    ClientError.__init__(
        error, told.get("message", ""), extra=told.get("extra", ""), hint=told.get("hint", "")
    )
    return error


def _write(writer: asyncio.StreamWriter, message: dict[str, object], data: bytes) -> None:
    text = json.dumps(message, separators=(",", ":")).encode()
    writer.writelines([_LENGTHS.pack(len(text), len(data)), text, data])


async def _read(reader: asyncio.StreamReader) -> tuple[dict[str, Any], bytes]:
    """Return a message; raises ValueError where it is none."""
    text, data = _LENGTHS.unpack(await reader.readexactly(_LENGTHS.size))
    if text > MOST or data > MOST:
        raise ValueError("a message is too long")
    message = json.loads(await reader.readexactly(text))
    if not isinstance(message, dict):
        raise ValueError("a message is no object")
    return message, await reader.readexactly(data)
