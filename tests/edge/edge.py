"""A double of Cloudflare's edge with a cloudflared behind it, as strict as they are, and able to misbehave."""

from __future__ import annotations

import asyncio
import base64
import binascii
import contextlib
import random
import socket
import ssl
import struct
from collections import Counter
from dataclasses import dataclass, field

from tests.certificates import Pair
from tests.edge.answers import ANSWERS, Answer
from tests.edge.frames import (
    BINARY,
    CLOSE,
    CONTINUATION,
    PING,
    PONG,
    TEXT,
    Violation,
    accept,
    header,
    read_frame,
)

LARGEST = 16_384
"""Bytes of a message that cloudflared passes on, and of its own."""

_LONGEST_HEAD = 16_384
_BAD_REQUEST = Answer(400, "Bad Request")


@dataclass
class Seen:
    """What came in: how often by kind, the headers of each upgrade, and what no client may do."""

    counts: Counter[str] = field(default_factory=Counter)
    requests: list[dict[str, str]] = field(default_factory=list)
    violations: list[str] = field(default_factory=list)
    largest_message: int = 0


class Edge:
    """Answers upgrades of `hostname`, and relays each to PostgreSQL on the port `target` of this machine.

    With a `token`, (id, secret), who comes without is answered 401, and who has another 403. `ping_every` is
    cloudflared's period in seconds, 0.0 for none; with `reset_within` each connection is reset at random within so many
    seconds of its begin.
    """

    def __init__(
        self,
        target: int,
        certificate: Pair,
        *,
        hostname: str = "localhost",
        token: tuple[str, str] | None = None,
        ping_every: float = 54.0,
        reset_within: float = 0.0,
    ) -> None:
        self.target = target
        self.hostname = hostname
        self.token = token
        self.ping_every = ping_every
        self.reset_within = reset_within
        self.seen = Seen()
        # What each upgrade is answered instead, by its name in ANSWERS.
        self.answer = ""
        self._context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self._context.load_cert_chain(certificate.cert, certificate.key)
        self._context.set_alpn_protocols(["h2", "http/1.1"])
        self._server: asyncio.Server | None = None
        self._tunnels: set[_Tunnel] = set()
        self._serving: set[asyncio.Task[None]] = set()
        self._passes = asyncio.Event()
        self._passes.set()

    async def listen(self, port: int = 0) -> int:
        """Begin; returns the port."""
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", port, ssl=self._context)
        return int(self._server.sockets[0].getsockname()[1])

    async def close(self) -> None:
        """End everything."""
        if self._server is not None:
            self._server.close()
        self.heal()
        self.reset()
        for task in list(self._serving):
            task.cancel()
        await asyncio.gather(*self._serving, return_exceptions=True)

    @property
    def tunnels(self) -> int:
        """Return how many are open."""
        return len(self._tunnels)

    def reset(self) -> None:
        """Reset every connection, as the edge does at its releases."""
        for tunnel in list(self._tunnels):
            tunnel.reset()

    def silence(self) -> None:
        """Pass nothing on any more, answer nothing, and send no pings."""
        self._passes.clear()

    def heal(self) -> None:
        """Go on."""
        self._passes.set()

    def say(self, text: str, opcode: int = TEXT, times: int = 1) -> None:
        """Send a message that PostgreSQL didn't on every connection."""
        for tunnel in self._tunnels:
            tunnel.send(opcode, text.encode() * times)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._serving.add(task)
        try:
            await self._passes.wait()
            answered = await self._upgrade(reader)
            if isinstance(answered, Answer):
                self.seen.counts[f"answered {answered.status}"] += 1
                writer.write(answered.encoded())
                await writer.drain()
                writer.close()
                return
            key, back, there = answered
            self.seen.counts["upgrades"] += 1
            tunnel = _Tunnel(self, reader, writer, back, there)
            self._tunnels.add(tunnel)
            try:
                await tunnel.run(accept(key))
            finally:
                self._tunnels.discard(tunnel)
        except (OSError, asyncio.IncompleteReadError, asyncio.LimitOverrunError, asyncio.CancelledError):
            pass
        finally:
            self._serving.discard(task)
            writer.transport.abort()

    async def _upgrade(
        self, reader: asyncio.StreamReader
    ) -> Answer | tuple[str, asyncio.StreamReader, asyncio.StreamWriter]:
        head = (await reader.readuntil(b"\r\n\r\n")).decode("ascii")
        if len(head) > _LONGEST_HEAD:
            return _BAD_REQUEST
        request, *lines = head[:-4].split("\r\n")
        headers: dict[str, str] = {}
        for line in lines:
            name, colon, value = line.partition(":")
            if not colon or name != name.strip() or name.lower() in headers:
                return self._bad(f"the header {name} is malformed, or there twice")
            headers[name.lower()] = value.strip()
        self.seen.requests.append(headers)
        if problem := self._problem(request, headers):
            return self._bad(problem)
        if headers.get("user-agent", "").startswith(("Python", "python")):
            return ANSWERS["blocked"]
        if self.answer:
            return ANSWERS[self.answer]
        given = headers.get("cf-access-client-id"), headers.get("cf-access-client-secret")
        if self.token is not None and given != self.token:
            return ANSWERS["unauthorized" if given == (None, None) else "forbidden"]
        try:
            back, there = await asyncio.open_connection("127.0.0.1", self.target)
        except OSError:
            return ANSWERS["no-postgres"]
        return headers["sec-websocket-key"], back, there

    def _bad(self, problem: str) -> Answer:
        self.seen.violations.append(problem)
        return _BAD_REQUEST

    def _problem(self, request: str, headers: dict[str, str]) -> str:
        if request != "GET / HTTP/1.1":
            return f"the request is {request}"
        if headers.get("host", "").partition(":")[0] != self.hostname:
            return f"Host is {headers.get('host')}"
        if headers.get("upgrade", "").lower() != "websocket":
            return "no Upgrade: websocket"
        if "upgrade" not in headers.get("connection", "").lower():
            return "no Connection: Upgrade"
        if headers.get("sec-websocket-version") != "13":
            return "not version 13"
        try:
            if len(base64.b64decode(headers.get("sec-websocket-key", ""), validate=True)) != 16:
                return "the key is not of 16 bytes"
        except binascii.Error:
            return "the key is not in base64"
        for name in ("origin", "sec-websocket-protocol", "sec-websocket-extensions", "cookie"):
            if name in headers:
                return f"there is a header {name}"
        return "" if headers.get("user-agent") else "no User-Agent"


class _Tunnel:
    """One WebSocket, and cloudflared's connection to PostgreSQL."""

    def __init__(
        self,
        edge: Edge,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        back: asyncio.StreamReader,
        there: asyncio.StreamWriter,
    ) -> None:
        self._edge = edge
        self._reader, self._writer = reader, writer
        self._back, self._there = back, there
        # Between a frame's header and its payload nothing else may stand: control frames wait here.
        self._within_a_frame = False
        self._control = bytearray()

    async def run(self, accepted: str) -> None:
        loop = asyncio.get_running_loop()
        self._writer.write(
            "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
            f"Sec-WebSocket-Accept: {accepted}\r\nServer: cloudflare\r\n\r\n".encode()
        )
        work = [self._from_client(), self._from_postgres(), self._ping()]
        if self._edge.reset_within:
            work.append(self._reset_later(random.uniform(0.0, self._edge.reset_within)))
        tasks = [loop.create_task(each) for each in work]
        try:
            await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            self._there.transport.abort()
            # No Close frame: that is how tunnels end.
            self._writer.close()
            with contextlib.suppress(OSError, TimeoutError):
                async with asyncio.timeout(2.0):
                    await self._writer.wait_closed()

    def reset(self) -> None:
        sock = self._writer.get_extra_info("socket")
        with contextlib.suppress(OSError):
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self._writer.transport.abort()
        self._there.transport.abort()

    def send(self, opcode: int, payload: bytes) -> None:
        frame = header(opcode, len(payload)) + payload
        if self._within_a_frame:
            self._control += frame
        else:
            self._writer.write(frame)

    async def _from_client(self) -> None:
        counts = self._edge.seen.counts
        message, kind = b"", CONTINUATION
        try:
            while True:
                frame = await read_frame(self._reader)
                await self._edge._passes.wait()
                if frame.opcode == CLOSE:
                    counts["closes"] += 1
                    self.send(CLOSE, frame.payload[:2])
                    return
                if frame.opcode in (PING, PONG):
                    counts["pings" if frame.opcode == PING else "pongs"] += 1
                    if frame.opcode == PING:
                        self.send(PONG, frame.payload)
                    continue
                if (frame.opcode == CONTINUATION) == (kind == CONTINUATION):
                    raise Violation("a continuation of nothing, or a message within another")
                message += frame.payload
                kind = frame.opcode or kind
                if frame.final:
                    await self._deliver(kind, message)
                    message, kind = b"", CONTINUATION
        except Violation as error:
            self._edge.seen.violations.append(str(error))
        except (OSError, asyncio.IncompleteReadError):
            pass

    async def _deliver(self, kind: int, message: bytes) -> None:
        """Pass a message on as cloudflared does: text not at all, and no more of it than its buffer takes."""
        seen = self._edge.seen
        if kind != BINARY:
            seen.counts["texts"] += 1
            return
        seen.counts["messages"] += 1
        seen.largest_message = max(seen.largest_message, len(message))
        if len(message) > LARGEST:
            seen.counts["truncated"] += 1
        self._there.write(message[:LARGEST])
        await self._there.drain()

    async def _from_postgres(self) -> None:
        try:
            while data := await self._back.read(LARGEST):
                await self._edge._passes.wait()
                self._within_a_frame = True
                self._writer.write(header(BINARY, len(data)))
                # A segment, and a TLS record, of its own.
                await asyncio.sleep(0)
                self._writer.write(data + self._control)
                self._within_a_frame = False
                self._control.clear()
                await self._writer.drain()
        except OSError:
            pass

    async def _ping(self) -> None:
        while self._edge.ping_every:
            await asyncio.sleep(self._edge.ping_every)
            await self._edge._passes.wait()
            self.send(PING, b"cloudflared")
        await asyncio.Event().wait()

    async def _reset_later(self, seconds: float) -> None:
        await asyncio.sleep(seconds)
        self.reset()
