"""Bring access records from the buffer, where compiled code puts them, to where they are kept.

    AccessBuffer ── every flush_interval, ──► Sink "table"  ── spool ── COPY ──► sluice.api_access_logs
                    or when it is large   ├─► Sink "stdout" ── JSON lines
                                          └─► Sink "file"   ── JSON lines

Each sink has a backlog of its own and one task that delivers it in order, so that a slow one holds up neither
the others nor the event loop. A batch is delivered whole, and exactly once: one that may have been delivered is marked
as such, and the table takes it only where it isn't there.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
from collections.abc import Awaitable, Callable, Iterable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Final

from proxy import tasks
from proxy.errors import reason
from proxy.observe.batches import Backlog, Batch, MemoryBacklog
from proxy.observe.lines import LineWriter
from proxy.observe.record import SEED, AccessBuffer
from proxy.observe.rows import copy_payload, count, cut, to_ascii
from proxy.observe.spool import Spool
from proxy.observe.text import escape

log = logging.getLogger(__name__)

# A batch of this size goes out without waiting for flush_interval.
_BATCH_BYTES: Final = 2 * 1024 * 1024
_MAX_BACKLOG: Final = 64 * 1024 * 1024
# Whoever reads standard output is near: what it hasn't read by then it won't.
_MAX_LINES_BACKLOG: Final = 16 * 1024 * 1024
_COPY_TIMEOUT: Final = 30.0
# Seconds between two complaints about dropped records.
_COMPLAIN_EVERY: Final = 10.0
# Seconds between two looks for what ended processes have left.
_ADOPT_EVERY: Final = 30.0


OnBatch = Callable[[bytes, int, list[int]], None]


def unseen(rows: bytes, number: int, events: list[int]) -> None:
    """Stand in for on_batch while nobody looks."""


class Sink:
    """One destination: delivers batches in order, tries again what failed, counts what was lost.

    `deliver` takes a batch and returns when its rows are safe; it has `timeout` seconds for that. An error with an
    `sqlstate` of class 22 says that the destination never takes these rows: they are narrowed down to the one that
    is refused. Anything else is tried again, as what may be there already, after `retry_delay` seconds and then twice
    as long each time, up to 5 s; a row that is there (23505) or has no partition (23514) at once.
    """

    def __init__(
        self,
        name: str,
        deliver: Callable[[Batch], Awaitable[None]],
        backlog: Backlog,
        timeout: float | None = None,
        retry_delay: float = 0.25,
    ) -> None:
        self.name = name
        self.backlog = backlog
        # Rows that were delivered; that found the backlog full or were left at the end; that were refused.
        self.written = 0
        self.dropped = 0
        self.refused = 0
        # Deliveries that failed, and the last reason, empty while all is well.
        self.failures = 0
        self.last_error = ""
        self._deliver = deliver
        self._timeout = timeout
        self._retry_delay = retry_delay
        self._complained_at = float("-inf")
        self._arrived = asyncio.Event()
        self._closing = asyncio.Event()
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Start the task that delivers."""
        self._task = tasks.spawn(self._run(), f"access log: {self.name}")

    def put(self, rows: bytes, number: int) -> None:
        """Queue `number` rows; where there is no room they are dropped, counted and complained about."""
        if self.backlog.add(Batch(rows, number)):
            self._arrived.set()
            return
        self.dropped += number
        now = asyncio.get_running_loop().time()
        if now - self._complained_at >= _COMPLAIN_EVERY:
            self._complained_at = now
            log.error(
                "access log: %d records for %s are lost so far: %d bytes wait for it already (%s)",
                self.dropped,
                self.name,
                self.backlog.bytes,
                self.last_error or "it is slow",
            )

    def look_again(self) -> None:
        """Learn that there may be more in the backlog."""
        self._arrived.set()

    async def close(self, timeout: float) -> None:
        """Deliver what waits, for at most `timeout` seconds; what is left then is lost, and said."""
        self._closing.set()
        self._arrived.set()
        if self._task is not None:
            await asyncio.wait({self._task}, timeout=timeout)
            await tasks.stop(self._task)
        if self.backlog.rows and self.backlog.lasting:
            log.warning(
                "access log: %d records for %s wait in the spool for the next start (%s)",
                self.backlog.rows,
                self.name,
                self.last_error or "no time was left",
            )
        elif self.backlog.rows:
            self.dropped += self.backlog.rows
            log.error(
                "access log: %d records for %s are lost at the end (%s)",
                self.backlog.rows,
                self.name,
                self.last_error or "no time was left",
            )
        self.backlog.close()

    async def _run(self) -> None:
        delay = self._retry_delay
        while True:
            batch = self.backlog.first()
            if batch is None:
                if self._closing.is_set():
                    return
                self._arrived.clear()
                await self._arrived.wait()
            elif await self._try(batch):
                delay = self._retry_delay
            else:
                await self._pause(delay)
                delay = min(delay * 2, 5.0)

    async def _try(self, batch: Batch) -> bool:
        """Deliver the oldest batch once; tell whether it is settled, in one way or another."""
        try:
            async with asyncio.timeout(self._timeout):
                await self._deliver(batch)
        except Exception as failure:
            sqlstate = str(getattr(failure, "sqlstate", None) or "")
            was_tried, batch.again = batch.again, True
            if sqlstate in ("23505", "23514") and not was_tried:
                return True
            if sqlstate.startswith("22"):
                self._narrow(batch, failure)
                return True
            self._failed(failure)
            return False
        self._delivered(batch)
        return True

    def _delivered(self, batch: Batch) -> None:
        self.backlog.replace_first()
        self.written += batch.number
        if self.last_error:
            self.last_error = ""
            log.warning(
                "access log: %s takes records again, %d wait; %d are lost since the start",
                self.name,
                self.backlog.rows,
                self.dropped,
            )

    def _failed(self, failure: Exception) -> None:
        self.failures += 1
        # The first line alone: a server's DETAIL may hold what a row holds.
        message = str(failure).partition("\n")[0]
        why = escape(f"{type(failure).__name__}: {message}", 300)
        if not self.last_error:
            where = "the spool" if self.backlog.lasting else "memory"
            log.warning("access log: %s takes no records, they wait in %s (%s)", self.name, where, why)
        self.last_error = why

    def _narrow(self, batch: Batch, failure: Exception) -> None:
        """Part a batch that was refused for what it holds; give a single row one more chance as plain ASCII.

        A database whose encoding isn't UTF8 lacks most characters (22P05).
        """
        self.failures += 1
        if batch.number > 1:
            middle = cut(batch.rows, 0, len(batch.rows) // 2)
            halves = [batch.rows[:middle], batch.rows[middle:]]
            self.backlog.replace_first(*(_part(half) for half in halves))
        elif not batch.ascii:
            plain = _part(to_ascii(batch.rows))
            plain.ascii = True
            self.backlog.replace_first(plain)
        else:
            self.backlog.replace_first()
            self.refused += 1
            log.error("access log: %s refuses a record (%s)", self.name, type(failure).__name__)

    async def _pause(self, delay: float) -> None:
        """Wait so long, but when the end comes less: the deadline is near."""
        if self._closing.is_set():
            await asyncio.sleep(min(delay, 0.1))
        else:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(delay):
                    await self._closing.wait()


def _part(rows: bytes) -> Batch:
    """Return a part of a batch that was tried: it may be there, if the whole is found in the spool again."""
    part = Batch(rows, count(rows))
    part.again = True
    return part


class AccessLog:
    """Owns the buffer that sessions record into, and empties it into the sinks.

    `copy` gets the pieces of a whole binary COPY into sluice.api_access_logs, and whether its rows may be there
    already; it returns when it is committed. The partitions are its matter. `spool` is where batches for it wait,
    memory where there is none. `lines` are where JSON lines go, by their names. Without any destination the buffer
    records nothing. `flush_interval` is in seconds.
    """

    def __init__(
        self,
        copy: Callable[[Iterable[memoryview], bool], Awaitable[None]] | None,
        lines: Mapping[str, LineWriter] = MappingProxyType({}),
        statements: str = "normalized",
        flush_interval: float = 0.5,
        spool: Spool | None = None,
        max_backlog: int = _MAX_BACKLOG,
        retry_delay: float = 0.25,
    ) -> None:
        self.sinks: list[Sink] = []
        # Is shown each batch: its rows, their number, and where those begin that aren't statements.
        self.on_batch: OnBatch = unseen
        self.spool = spool
        self._lines = lines
        if copy is not None:
            self._copy = copy
            backlog = spool or MemoryBacklog(max_backlog)
            self.sinks.append(Sink("table", self._copy_rows, backlog, _COPY_TIMEOUT, retry_delay))
        for name, writer in lines.items():
            room = MemoryBacklog(min(max_backlog, _MAX_LINES_BACKLOG))
            self.sinks.append(Sink(name, writer.deliver, room, None, retry_delay))
        self.buffer = AccessBuffer(os.urandom(SEED), statements, _BATCH_BYTES, self._hurry, bool(self.sinks))
        # Seconds between two flushes; another interval holds from the next one on.
        self.flush_interval = flush_interval
        self._timer: asyncio.TimerHandle | None = None
        self._syncing: asyncio.Future[None] | None = None
        self._adopted_at = 0.0

    def start(self) -> None:
        """Start flushing, in the running event loop."""
        for sink in self.sinks:
            sink.start()
        self._tick()

    def flush(self) -> None:
        """Hand what was recorded to the sinks now, without waiting for them."""
        if number := self.buffer.rows:
            events = self.buffer.events
            rows = self.buffer.take(os.urandom(SEED))
            for sink in self.sinks:
                sink.put(rows, number)
            self.on_batch(rows, number, events)

    def reopen(self) -> None:
        """Write to new files of the same names: logrotate has moved the old ones."""
        for name, writer in self._lines.items():
            try:
                writer.reopen()
            except OSError as error:
                log.error(
                    "access log: %s can't be opened again, the old file goes on: %s", name, reason(error)
                )

    def share_lines(self, directory: Path) -> None:
        """Mix no line with one of another process; all of them have this directory. Raises OSError."""
        for name, writer in self._lines.items():
            writer.share(directory / f"{name}.lines")

    async def close(self, timeout: float = 5.0) -> None:
        """Flush for the last time and wait for the sinks, at most `timeout` seconds."""
        if self._timer is not None:
            self._timer.cancel()
        self.flush()
        await asyncio.gather(*(sink.close(timeout) for sink in self.sinks))
        for writer in self._lines.values():
            writer.close()

    def _tick(self) -> None:
        self.flush()
        self._sync()
        self._adopt()
        self._timer = asyncio.get_running_loop().call_later(self.flush_interval, self._tick)

    def _sync(self) -> None:
        """Have the disk keep what waits for the table; what is delivered at once isn't worth it."""
        spool = self.spool
        waits = any(sink.last_error and sink.backlog is spool for sink in self.sinks)
        if spool is None or not waits or not spool.unsynced:
            return
        if self._syncing is None or self._syncing.done():
            self._syncing = asyncio.get_running_loop().run_in_executor(None, spool.sync)

    def _adopt(self) -> None:
        """Deliver what the process that handed over to this one has left, or a worker that died."""
        now = asyncio.get_running_loop().time()
        if self.spool is None or now - self._adopted_at < _ADOPT_EVERY:
            return
        self._adopted_at = now
        try:
            records = self.spool.adopt()
        except OSError as error:
            log.warning("access log: the spool can't be looked through: %s", reason(error))
            return
        if records:
            log.info("access log: %d records of a process that has ended are taken over", records)
            for sink in self.sinks:
                sink.look_again()

    def _hurry(self) -> None:
        # Called while a row is appended: the flush must come after it.
        asyncio.get_running_loop().call_soon(self.flush)

    async def _copy_rows(self, batch: Batch) -> None:
        await self._copy(copy_payload(batch.rows), batch.again)
