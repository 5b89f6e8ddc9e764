from __future__ import annotations

import asyncio
import json
import os
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from proxy.observe.batches import Batch
from proxy.observe.lines import LineWriter
from proxy.observe.record import AccessBuffer, session_part


@pytest.fixture
def pipe() -> Iterator[tuple[int, int]]:
    reader, writer = os.pipe()
    yield reader, writer
    for descriptor in (reader, writer):
        try:
            os.close(descriptor)
        except OSError as error:
            # The test has closed it.
            assert error.errno == 9


def rows_of(number: int, text: str = "") -> Batch:
    buffer = AccessBuffer(b"0123456789")
    part = session_part("key", "", "", "", "")
    for index in range(number):
        buffer.event("admin", float(index), part, str(index), "", "", None, text)
    return Batch(buffer.take(), number)


def reasons(lines: bytes) -> list[str]:
    return [json.loads(line)["reason"] for line in lines.splitlines()]


async def test_rows_become_lines(pipe: tuple[int, int]) -> None:
    reader, descriptor = pipe
    writer = LineWriter(descriptor)
    await writer.deliver(rows_of(3))
    await writer.deliver(rows_of(2))
    writer.close()
    assert reasons(os.read(reader, 65536)) == ["0", "1", "2", "0", "1"]


async def test_a_reader_that_stops_does_not_stop_the_event_loop(pipe: tuple[int, int]) -> None:
    reader, descriptor = pipe
    writer = LineWriter(descriptor)
    # Far more than a pipe holds.
    delivery = asyncio.ensure_future(writer.deliver(rows_of(300, "x" * 4000)))
    await asyncio.sleep(0)
    assert not delivery.done()

    def read_all() -> bytes:
        read = b""
        while read.count(b"\n") < 300:
            read += os.read(reader, 65536)
        return read

    lines = await asyncio.to_thread(read_all)
    await delivery
    writer.close()
    assert reasons(lines) == [str(index) for index in range(300)]


async def test_what_was_interrupted_goes_on_where_it_stopped(pipe: tuple[int, int]) -> None:
    reader, descriptor = pipe
    os.set_blocking(descriptor, False)
    writer = LineWriter(descriptor)
    rows = rows_of(100, "x" * 4000)
    read = b""
    attempts = 0
    while True:
        attempts += 1
        try:
            await writer.deliver(rows)
            break
        except BlockingIOError:
            read += os.read(reader, 50_000)
    writer.close()
    os.close(descriptor)
    while more := os.read(reader, 65536):
        read += more
    assert attempts > 2
    assert reasons(read) == [str(index) for index in range(100)]


async def test_a_reader_that_is_gone_is_an_error(pipe: tuple[int, int]) -> None:
    reader, descriptor = pipe
    os.close(reader)
    writer = LineWriter(descriptor)
    with pytest.raises(BrokenPipeError):
        await writer.deliver(rows_of(1))
    writer.close()


async def test_the_thread_ends_at_close(pipe: tuple[int, int]) -> None:
    _, descriptor = pipe
    # Threads of other tests' writers may still be on their way out.
    before = set(threading.enumerate())
    writer = LineWriter(descriptor)
    await writer.deliver(rows_of(1))
    (thread,) = [
        thread
        for thread in threading.enumerate()
        if thread.name == "access log lines" and thread not in before
    ]
    assert thread.daemon
    writer.close()
    thread.join(10)
    assert not thread.is_alive()


async def test_a_file_that_was_moved_away_is_opened_again(tmp_path: Path) -> None:
    path = tmp_path / "access.log"
    writer = LineWriter.at(path)
    await writer.deliver(rows_of(2))
    path.rename(tmp_path / "access.log.1")
    await writer.deliver(rows_of(1))
    writer.reopen()
    await writer.deliver(rows_of(3))
    writer.close()
    assert reasons((tmp_path / "access.log.1").read_bytes()) == ["0", "1", "0"]
    assert reasons(path.read_bytes()) == ["0", "1", "2"]
    assert path.stat().st_mode & 0o007 == 0


async def test_a_file_that_cannot_be_opened_again_is_written_on(tmp_path: Path) -> None:
    directory = tmp_path / "logs"
    directory.mkdir()
    writer = LineWriter.at(directory / "access.log")
    directory.rename(tmp_path / "moved")
    with pytest.raises(FileNotFoundError):
        writer.reopen()
    await writer.deliver(rows_of(2))
    writer.close()
    assert reasons((tmp_path / "moved" / "access.log").read_bytes()) == ["0", "1"]


async def test_lines_of_several_processes_stay_whole(pipe: tuple[int, int], tmp_path: Path) -> None:
    reader, descriptor = pipe
    writers = [LineWriter(descriptor), LineWriter(descriptor)]
    for writer in writers:
        writer.share(tmp_path / "lock")
    read = bytearray()

    def take() -> None:
        while chunk := os.read(reader, 3000):
            read.extend(chunk)

    thread = threading.Thread(target=take)
    thread.start()
    batch = rows_of(200, "x" * 7000)
    await asyncio.gather(*(writer.deliver(batch) for writer in writers))
    for writer in writers:
        writer.close()
    os.close(descriptor)
    await asyncio.to_thread(thread.join)
    assert sorted(reasons(bytes(read))) == sorted([str(number) for number in range(200)] * 2)
