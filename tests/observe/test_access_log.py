from __future__ import annotations

import asyncio
import json
import logging
import os
from collections.abc import Awaitable, Callable, Iterable
from pathlib import Path

import pytest

from proxy.observe.access_log import AccessLog, Sink
from proxy.observe.batches import Batch, MemoryBacklog
from proxy.observe.lines import LineWriter
from proxy.observe.record import AccessBuffer, session_part
from proxy.observe.rows import copy_payload
from proxy.observe.spool import Spool
from tests.observe.decoder import decode

SESSION = session_part("key", "", "", "", "")


class DatabaseError(Exception):
    def __init__(self, sqlstate: str) -> None:
        self.sqlstate = sqlstate
        super().__init__(f"error {sqlstate}")


class Table:
    """Takes rows as a database does: all of a batch or none, by what `answers` say, in turn.

    Of one that may be there, what isn't.
    """

    def __init__(self, *answers: BaseException | str | None) -> None:
        self.answers = list(answers)
        self.attempts: list[list[str]] = []
        self.stored: list[str] = []
        self.refuses: Callable[[str], bool] = lambda reason: False

    async def deliver(self, batch: Batch) -> None:
        await self.take(batch.rows, batch.again)

    async def copy(self, payload: Iterable[memoryview], again: bool) -> None:
        await self.take(b"".join(payload)[19:-2], again)

    async def take(self, rows: bytes, again: bool) -> None:
        reasons = [row["reason"] for row in decode(rows)]
        self.attempts.append(reasons)
        answer = self.answers.pop(0) if self.answers else None
        if any(self.refuses(reason) for reason in reasons):
            raise DatabaseError("22P05")
        if answer == "hangs":
            await asyncio.Event().wait()
        if answer == "stored, but the answer is lost":
            self.stored += reasons
            raise ConnectionResetError
        if isinstance(answer, BaseException):
            raise answer
        if again:
            reasons = [reason for reason in reasons if reason not in self.stored]
        elif set(reasons) & set(self.stored):
            raise DatabaseError("23505")
        self.stored += reasons


def rows_of(*reasons: str) -> bytes:
    buffer = AccessBuffer(os.urandom(10))
    for reason in reasons:
        buffer.event("admin", 1.0, SESSION, reason)
    return buffer.take()


def sink_of(
    deliver: Callable[[Batch], Awaitable[None]], timeout: float | None = None, room: int = 10**6
) -> Sink:
    return Sink("table", deliver, MemoryBacklog(room), timeout, retry_delay=0.0)


async def delivered(sink: Sink, *batches: bytes) -> None:
    """Deliver `batches` through `sink`, and wait for the end."""
    sink.start()
    for rows in batches:
        sink.put(rows, len(decode(rows)))
    await sink.close(10)


class TestMemoryBacklog:
    def test_is_first_in_first_out(self) -> None:
        backlog = MemoryBacklog(1000)
        batches = [Batch(b"a", 1), Batch(b"bb", 2)]
        assert all(backlog.add(batch) for batch in batches)
        assert (backlog.rows, backlog.bytes) == (3, 3)
        assert backlog.first() is batches[0]
        backlog.replace_first()
        assert backlog.first() is batches[1]
        backlog.replace_first()
        assert backlog.first() is None
        assert (backlog.rows, backlog.bytes) == (0, 0)

    def test_keeps_the_order_of_what_replaces_the_first(self) -> None:
        backlog = MemoryBacklog(1000)
        for body in (b"ab", b"c"):
            backlog.add(Batch(body, len(body)))
        backlog.replace_first(Batch(b"a", 1), Batch(b"b", 1))
        found = []
        while (batch := backlog.first()) is not None:
            found.append(batch.rows)
            backlog.replace_first()
        assert found == [b"a", b"b", b"c"]

    def test_is_bounded(self) -> None:
        backlog = MemoryBacklog(10)
        assert backlog.add(Batch(b"x" * 6, 1))
        assert not backlog.add(Batch(b"x" * 5, 1))
        assert backlog.add(Batch(b"x" * 4, 1))
        assert backlog.bytes == 10

    def test_takes_one_batch_of_any_size(self) -> None:
        backlog = MemoryBacklog(10)
        assert backlog.add(Batch(b"x" * 100, 1))
        assert not backlog.add(Batch(b"x", 1))


class TestSink:
    async def test_delivers_in_order(self) -> None:
        table = Table()
        sink = sink_of(table.deliver)
        await delivered(sink, rows_of("a", "b"), rows_of("c"))
        assert table.stored == ["a", "b", "c"]
        assert (sink.written, sink.dropped, sink.refused, sink.failures) == (3, 0, 0, 0)

    async def test_tries_again_what_failed(self, caplog: pytest.LogCaptureFixture) -> None:
        table = Table(ConnectionRefusedError("down"), DatabaseError("23514"), None)
        sink = sink_of(table.deliver)
        await delivered(sink, rows_of("a"), rows_of("b"))
        assert table.attempts == [["a"], ["a"], ["a"], ["b"]]
        assert table.stored == ["a", "b"]
        assert (sink.written, sink.failures, sink.last_error) == (2, 2, "")
        messages = [record.message for record in caplog.records]
        assert messages == [
            "access log: table takes no records, they wait in memory (ConnectionRefusedError: down)",
            "access log: table takes records again, 1 wait; 0 are lost since the start",
        ]

    async def test_a_batch_whose_answer_was_lost_is_stored_once(self) -> None:
        table = Table("stored, but the answer is lost")
        sink = sink_of(table.deliver)
        await delivered(sink, rows_of("a", "b"), rows_of("c"))
        assert table.attempts == [["a", "b"], ["a", "b"], ["c"]]
        assert table.stored == ["a", "b", "c"]
        assert (sink.written, sink.refused) == (3, 0)

    async def test_never_adds_to_a_batch_that_was_tried(self) -> None:
        table = Table(ConnectionResetError(), ConnectionResetError())
        sink = sink_of(table.deliver)
        sink.start()
        sink.put(rows_of("a"), 1)
        await asyncio.sleep(0)
        sink.put(rows_of("b"), 1)
        await sink.close(10)
        assert table.attempts == [["a"], ["a"], ["a"], ["b"]]

    async def test_a_delivery_that_hangs_is_given_up_and_tried_again(self) -> None:
        table = Table("hangs")
        sink = sink_of(table.deliver, timeout=0.01)
        await delivered(sink, rows_of("a"))
        assert table.stored == ["a"]
        assert sink.failures == 1

    async def test_a_row_that_is_refused_does_not_hold_up_the_others(
        self, caplog: pytest.LogCaptureFixture
    ) -> None:
        table = Table()
        table.refuses = lambda reason: reason == "bad"
        sink = sink_of(table.deliver)
        await delivered(sink, rows_of("a", "b", "bad", "c", "d"), rows_of("e"))
        assert table.stored == ["a", "b", "c", "d", "e"]
        assert (sink.written, sink.refused) == (5, 1)
        assert [record.levelname for record in caplog.records] == ["ERROR"]

    async def test_a_row_with_letters_that_the_database_lacks_is_kept_as_ascii(self) -> None:
        table = Table()
        table.refuses = lambda reason: not reason.isascii()
        sink = sink_of(table.deliver)
        await delivered(sink, rows_of("a", "☃", "b"))
        assert table.stored == ["a", "\\u2603", "b"]
        assert (sink.written, sink.refused) == (3, 0)

    async def test_a_row_that_is_there_at_the_first_attempt_stays_as_it_is(self) -> None:
        table = Table()
        table.stored = ["b"]
        sink = sink_of(table.deliver)
        await delivered(sink, rows_of("a", "b", "c"))
        assert table.stored == ["b", "a", "c"]
        assert (sink.written, sink.refused, sink.failures) == (3, 0, 0)

    async def test_a_row_without_a_partition_is_tried_again_at_once(self) -> None:
        table = Table(DatabaseError("23514"))
        sink = sink_of(table.deliver)
        await delivered(sink, rows_of("a"))
        assert table.attempts == [["a"], ["a"]] and (sink.written, sink.failures) == (1, 0)

    async def test_what_is_left_in_a_lasting_backlog_is_not_lost(
        self, caplog: pytest.LogCaptureFixture, tmp_path: Path
    ) -> None:
        table = Table("hangs")
        sink = Sink("table", table.deliver, Spool(tmp_path), retry_delay=0.0)
        sink.start()
        sink.put(rows_of("a", "b"), 2)
        await sink.close(0.01)
        assert (sink.written, sink.dropped) == (0, 0)
        assert "2 records for table wait in the spool for the next start" in caplog.text
        table.stored = ["a"]
        again = Sink("table", table.deliver, Spool(tmp_path), retry_delay=0.0)
        await delivered(again, rows_of("c"))
        assert table.stored == ["a", "b", "c"], "what may be there is looked for"

    async def test_what_finds_no_room_is_dropped_and_said(self, caplog: pytest.LogCaptureFixture) -> None:
        rows = rows_of("a")
        table = Table(*[ConnectionRefusedError("down")] * 3)
        sink = sink_of(table.deliver, room=2 * len(rows))
        await delivered(sink, rows, rows_of("b"), rows_of("c"), rows_of("d", "e"))
        assert table.stored == ["a", "b"]
        assert (sink.written, sink.dropped) == (2, 3)
        complaints = [record.message for record in caplog.records if record.levelno == logging.ERROR]
        # The second loss follows within ten seconds.
        waiting = 2 * len(rows)
        assert complaints == [
            "access log: 1 records for table are lost so far: "
            f"{waiting} bytes wait for it already (it is slow)"
        ]

    async def test_what_is_left_at_the_end_is_said(self, caplog: pytest.LogCaptureFixture) -> None:
        table = Table("hangs")
        sink = sink_of(table.deliver)
        sink.start()
        sink.put(rows_of("a", "b"), 2)
        await sink.close(0.01)
        assert (sink.written, sink.dropped) == (0, 2)
        assert (
            caplog.records[-1].message
            == "access log: 2 records for table are lost at the end (no time was left)"
        )

    async def test_of_an_error_the_first_line_is_told_and_escaped(
        self, caplog: pytest.LogCaptureFixture
    ) -> None:
        table = Table(RuntimeError("a\x1bb\nDETAIL:  Failing row contains (secret)."))
        await delivered(sink_of(table.deliver), rows_of("a"))
        assert caplog.records[0].message.endswith("(RuntimeError: a\\x1bb)")

    async def test_ends_without_having_started(self) -> None:
        sink = sink_of(Table().deliver)
        await sink.close(1)
        assert sink.dropped == 0


class TestAccessLog:
    async def test_copies_whole_payloads(self) -> None:
        payloads: list[bytes] = []
        arrived = asyncio.Event()

        async def copy(payload: Iterable[memoryview], again: bool) -> None:
            payloads.append(b"".join(payload))
            arrived.set()

        access_log = AccessLog(copy, flush_interval=0.001)
        access_log.start()
        access_log.buffer.event("login", 1.0, SESSION, "first")
        await asyncio.wait_for(arrived.wait(), 10)
        access_log.buffer.event("login", 2.0, SESSION, "second")
        await access_log.close()
        bodies = [payload[19:-2] for payload in payloads]
        assert payloads == [b"".join(copy_payload(body)) for body in bodies]
        assert [row["reason"] for row in decode(b"".join(bodies))] == ["first", "second"]
        assert [sink.written for sink in access_log.sinks] == [2]

    async def test_flushes_early_when_much_waits(self) -> None:
        table = Table()
        arrived = asyncio.Event()

        async def copy(payload: Iterable[memoryview], again: bool) -> None:
            await table.copy(payload, again)
            arrived.set()

        access_log = AccessLog(copy, flush_interval=3600.0)
        access_log.start()
        for _ in range(5000):
            access_log.buffer.event("admin", 1.0, SESSION, "x" * 500)
        await asyncio.wait_for(arrived.wait(), 10)
        assert access_log.buffer.rows == 0
        await access_log.close()

    async def test_feeds_both_sinks(self) -> None:
        reader, writer = os.pipe()
        table = Table()
        access_log = AccessLog(table.copy, {"stdout": LineWriter(writer)}, flush_interval=3600.0)
        access_log.start()
        access_log.buffer.event("login", 1.0, SESSION, "hello")
        await access_log.close()
        assert table.stored == ["hello"]
        assert json.loads(os.read(reader, 65536))["reason"] == "hello"
        assert {sink.name: sink.written for sink in access_log.sinks} == {"table": 1, "stdout": 1}
        for descriptor in (reader, writer):
            os.close(descriptor)

    async def test_without_sinks_records_nothing(self) -> None:
        access_log = AccessLog(None)
        access_log.start()
        access_log.buffer.event("login", 1.0, SESSION, "hello")
        assert access_log.buffer.rows == 0
        await access_log.close()

    async def test_new_ids_follow_each_flush(self) -> None:
        table: list[bytes] = []

        async def copy(payload: Iterable[memoryview], again: bool) -> None:
            table.append(b"".join(payload)[19:-2])

        access_log = AccessLog(copy, flush_interval=3600.0)
        access_log.start()
        for _ in range(3):
            access_log.buffer.event("login", 1.0, SESSION)
            access_log.flush()
        await access_log.close()
        ids = [decode(rows)[0]["id"] for rows in table]
        assert len({identifier.bytes[10:] for identifier in ids}) == 3
        assert ids == sorted(ids)

    async def test_the_event_loop_goes_on_while_the_database_is_away(self) -> None:
        table = Table(*[ConnectionRefusedError()] * 5)
        access_log = AccessLog(table.copy, flush_interval=0.001, retry_delay=0.0)
        access_log.start()
        for number in range(5):
            access_log.buffer.event("login", 1.0, SESSION, str(number))
            await asyncio.sleep(0)
        await access_log.close()
        assert table.stored == ["0", "1", "2", "3", "4"]
        assert access_log.sinks[0].failures == 5
