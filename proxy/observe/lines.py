"""Write access records to a file descriptor as JSON lines, from a thread of its own.

Standard output may be a pipe that nobody reads: writing to it must not stop the event loop.
"""

from __future__ import annotations

import asyncio
import os
import threading
from queue import SimpleQueue
from typing import Final

from proxy.observe.rows import cut, json_lines

# What is rendered at a time: the thread lets the event loop go on between two of these.
_SLICE: Final = 64 * 1024


class LineWriter:
    """Delivers batches of rows to the descriptor `fd`, which stays open.

    A batch that failed goes on where it stopped when it is delivered again. The thread is a daemon, so that
    a reader that has stopped reading doesn't keep the process from ending.
    """

    def __init__(self, fd: int) -> None:
        self._fd = fd
        self._rows = b""
        self._at = 0
        self._pending = b""
        self._work: SimpleQueue[tuple[bytes, asyncio.Future[None]] | None] = SimpleQueue()
        self._thread: threading.Thread | None = None

    async def deliver(self, rows: bytes) -> None:
        """Write `rows`, and return when the descriptor has taken all. Raises OSError if it refuses.

        One call at a time.
        """
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, name="access log lines", daemon=True)
            self._thread.start()
        done = asyncio.get_running_loop().create_future()
        self._work.put((rows, done))
        await done

    def close(self) -> None:
        """Let the thread end after what it is writing."""
        self._work.put(None)

    def _run(self) -> None:
        while (work := self._work.get()) is not None:
            rows, done = work
            failure = None
            try:
                self._write(rows)
            except OSError as error:
                failure = error
            loop = done.get_loop()
            try:
                loop.call_soon_threadsafe(_settle, done, failure)
            except RuntimeError:
                # The loop is closed: nobody waits any more.
                return

    def _write(self, rows: bytes) -> None:
        if rows is not self._rows:
            self._rows, self._at = rows, 0
        while True:
            while self._pending:
                self._pending = self._pending[os.write(self._fd, self._pending) :]
            if self._at >= len(rows):
                break
            end = cut(rows, self._at, _SLICE)
            self._pending = json_lines(rows, self._at, end)
            self._at = end
        self._rows = b""


def _settle(done: asyncio.Future[None], failure: OSError | None) -> None:
    if done.done():
        return
    if failure is None:
        done.set_result(None)
    else:
        done.set_exception(failure)
