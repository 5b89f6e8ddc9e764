"""Batches of access records, and where they wait until they are delivered."""

from __future__ import annotations

from collections import deque
from typing import Protocol


class Batch:
    """Rows that are delivered together, or not at all. Their bytes never change once they were tried."""

    def __init__(self, rows: bytes, number: int) -> None:
        self.rows = rows
        self.number = number
        # It may have been delivered already: an attempt had no answer, or an earlier process made it.
        self.again = False
        self.ascii = False


class Backlog(Protocol):
    """Where a sink's batches wait, oldest first."""

    rows: int
    bytes: int
    # What is left in it outlives the process.
    lasting: bool

    def add(self, batch: Batch) -> bool:
        """Take `batch` as the newest; False if there is no room for it."""

    def first(self) -> Batch | None:
        """Return the oldest, which stays."""

    def replace_first(self, *batches: Batch) -> None:
        """Put `batches`, or nothing, in the place of the oldest."""

    def close(self) -> None:
        """Let go of what it holds of the system."""


class MemoryBacklog:
    """Batches in memory, up to `max_bytes` of rows, but at least one."""

    lasting = False

    def __init__(self, max_bytes: int) -> None:
        self.rows = 0
        self.bytes = 0
        self._max_bytes = max_bytes
        self._batches: deque[Batch] = deque()

    def add(self, batch: Batch) -> bool:
        """Take `batch` as the newest; False if there is no room for it."""
        if self._batches and self.bytes + len(batch.rows) > self._max_bytes:
            return False
        self._batches.append(batch)
        self._count(batch, 1)
        return True

    def first(self) -> Batch | None:
        """Return the oldest, which stays."""
        return self._batches[0] if self._batches else None

    def replace_first(self, *batches: Batch) -> None:
        """Put `batches`, or nothing, in the place of the oldest."""
        self._count(self._batches.popleft(), -1)
        for batch in reversed(batches):
            self._batches.appendleft(batch)
            self._count(batch, 1)

    def close(self) -> None:
        """Do nothing: what is left is gone with the process."""

    def _count(self, batch: Batch, sign: int) -> None:
        self.rows += sign * batch.number
        self.bytes += sign * len(batch.rows)
