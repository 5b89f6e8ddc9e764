"""Write access records to a file descriptor as JSON lines, from a thread of its own.

Standard output may be a pipe that nobody reads, and a file's disk may be slow: neither must stop the event loop.
"""

from __future__ import annotations

import asyncio
import fcntl
import os
import threading
from pathlib import Path
from queue import SimpleQueue
from typing import Final

from proxy.observe.batches import Batch
from proxy.observe.rows import cut, json_lines

# Readable for the proxy's user and group: the records tell who did what.
_MODE: Final = 0o640
# What is rendered at a time: the thread lets the event loop go on between two of these.
_SLICE: Final = 64 * 1024


class LineWriter:
    """Delivers batches of rows to the descriptor `fd`, which stays open; or to the file at `path`.

    A batch that failed goes on where it stopped when it is delivered again. The thread is a daemon, so that
    a reader that has stopped reading doesn't keep the process from ending.
    """

    def __init__(self, fd: int, path: Path | None = None) -> None:
        self._fd = fd
        self._path = path
        # What takes the place of the file's descriptor between two lines.
        self._next_fd = -1
        # Held while lines are written, where other processes write there too.
        self._lock = -1
        self._rows = b""
        self._at = 0
        self._pending = b""
        self._work: SimpleQueue[tuple[bytes, asyncio.Future[None]] | None] = SimpleQueue()
        self._thread: threading.Thread | None = None

    @classmethod
    def at(cls, path: Path) -> LineWriter:
        """Return a writer that appends to the file at `path`; raises OSError."""
        return cls(_open(path), path)

    def reopen(self) -> None:
        """Go on in a new file of the same name, once the line at hand is whole: logrotate has moved the old one.

        Raises OSError where that can't be opened; the old one is written to as before.
        """
        if self._path is not None:
            before, self._next_fd = self._next_fd, _open(self._path)
            if before >= 0:
                os.close(before)

    def share(self, lock: Path) -> None:
        """Write no line into another process's: all of them hold the file `lock` while they write. Raises OSError.

        A pipe takes no more than 4 KiB in one piece (pipe(7), PIPE_BUF).
        """
        if self._lock < 0:
            self._lock = os.open(lock, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)

    async def deliver(self, batch: Batch) -> None:
        """Write the rows of `batch`, and return when the descriptor has taken all. Raises OSError if it refuses.

        One call at a time.
        """
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, name="access log lines", daemon=True)
            self._thread.start()
        done = asyncio.get_running_loop().create_future()
        self._work.put((batch.rows, done))
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
            if not self._pending and self._next_fd >= 0:
                before = self._fd
                self._fd, self._next_fd = self._next_fd, -1
                os.close(before)
            self._flush()
            if self._at >= len(rows):
                break
            end = cut(rows, self._at, _SLICE)
            self._pending = json_lines(rows, self._at, end)
            self._at = end
        self._rows = b""

    def _flush(self) -> None:
        """Write what is pending: whole lines, but where an earlier try has failed in the middle of one."""
        if self._lock >= 0 and self._pending:
            fcntl.flock(self._lock, fcntl.LOCK_EX)
        try:
            while self._pending:
                self._pending = self._pending[os.write(self._fd, self._pending) :]
        finally:
            if self._lock >= 0:
                fcntl.flock(self._lock, fcntl.LOCK_UN)


def _open(path: Path) -> int:
    return os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, _MODE)


def _settle(done: asyncio.Future[None], failure: OSError | None) -> None:
    if done.done():
        return
    if failure is None:
        done.set_result(None)
    else:
        done.set_exception(failure)
