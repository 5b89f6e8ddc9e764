r"""Access records on disk, until the table has taken them.

Each batch is written to a segment before it is delivered, so that a process that is killed loses only what it had not
flushed yet. A segment is removed once all of it is delivered; what a process leaves that ends is delivered by another.
Whatever was delivered already and is found again does no harm: who delivers it says that it may be known
(`Batch.again`).

    spool_dir/0/lock                  held by the process whose slot this is
    spool_dir/0/0000001732800000-0001.log
        PGSLUICE-SPOOL-1\n            then frames, each a batch:
        length, rows, CRC-32          32 bits each, big-endian; the sum is that of all the rest
        the rows, as binary COPY has them

A frame that was cut off by a crash ends its segment: the batch before it was the last that was written.
"""

from __future__ import annotations

import contextlib
import fcntl
import logging
import os
import struct
import time
import zlib
from collections import deque
from pathlib import Path
from typing import Final

from proxy.errors import reason
from proxy.observe.batches import Batch

log = logging.getLogger(__name__)

MAX_SPOOL: Final = 1024 * 1024 * 1024
"""Bytes on disk: some four million records, or an hour of a busy proxy's. What finds no room is dropped, and said."""

MAX_IN_MEMORY: Final = 16 * 1024 * 1024
"""Bytes of batches that are held beside their copy on disk; older ones are read again when their turn comes."""

MAX_UNWRITTEN: Final = 64 * 1024 * 1024
"""Bytes that wait in memory alone where the disk takes nothing."""

SEGMENT_BYTES: Final = 16 * 1024 * 1024
"""Where a segment ends: the least that is removed at once."""

MAX_FRAME: Final = 64 * 1024 * 1024
"""A longer frame is none: what stands there was not written by this program."""

_MAGIC: Final = b"PGSLUICE-SPOOL-1\n"
_LENGTHS: Final = struct.Struct(">II")
_FRAME: Final = struct.Struct(">III")
_MAX_SLOTS: Final = 64


class SpoolError(Exception):
    """The directory can't be used; the message says why."""


class _Segment:
    """One file, and how many of its frames are not delivered."""

    def __init__(self, path: Path, descriptor: int, end: int) -> None:
        self.path = path
        self.descriptor = descriptor
        self.end = end
        self.left = 0


class _Frame:
    """One batch: where it is on disk (nowhere, if that took nothing), and itself, if it is in memory."""

    def __init__(
        self, segment: _Segment | None, at: int, size: int, number: int, batch: Batch | None
    ) -> None:
        self.segment = segment
        self.at = at
        self.size = size
        self.number = number
        self.batch = batch


class Spool:
    """A backlog of batches, oldest first, that outlives the process."""

    lasting = True

    def __init__(
        self, directory: Path, max_bytes: int = MAX_SPOOL, segment_bytes: int = SEGMENT_BYTES
    ) -> None:
        """Take a slot of `directory`, and what ended processes have left there; raises SpoolError."""
        self.rows = 0
        self.bytes = 0
        # Rows whose bytes on disk were not those that had been written.
        self.unreadable = 0
        self._max_bytes = max_bytes
        self._segment_bytes = segment_bytes
        self._frames: deque[_Frame] = deque()
        self._segments: deque[_Segment] = deque()
        self._in_memory = 0
        self._unwritten = 0
        self._complained = False
        self._unsynced: set[_Segment] = set()
        self._made = 0
        self._locks: list[int] = []
        try:
            directory.mkdir(parents=True, exist_ok=True, mode=0o700)
            self.directory = self._take_slot(directory)
            for path in sorted([*self.directory.glob("*.log"), *self._left_behind()], key=_age):
                self._read_segment(path)
        except OSError as error:
            self.close()
            raise SpoolError(f"{error.filename or directory}: {reason(error)}") from error

    def adopt(self) -> int:
        """Take over what processes have left that have ended since, as after a handover; returns the number of records.

        Raises OSError.
        """
        before = self.rows
        for path in sorted(self._left_behind(), key=_age):
            self._read_segment(path)
        return self.rows - before

    @property
    def segments(self) -> int:
        """Return the number of files."""
        return len(self._segments)

    def add(self, batch: Batch) -> bool:
        """Take `batch` as the newest; False if there is no room for it."""
        size = len(batch.rows)
        if self._frames and self.bytes + size > self._max_bytes:
            return False
        frame = self._write(batch, size)
        if frame is None:
            if self._frames and self._unwritten + size > MAX_UNWRITTEN:
                return False
            frame = _Frame(None, 0, size, batch.number, batch)
        elif self._in_memory + size <= MAX_IN_MEMORY:
            frame.batch = batch
        self._weigh(frame, 1)
        self._frames.append(frame)
        self._count(frame, 1)
        return True

    def first(self) -> Batch | None:
        """Return the oldest, which stays. One that can't be read any more is dropped, and said."""
        while self._frames:
            frame = self._frames[0]
            if frame.batch is None:
                frame.batch = self._read(frame)
                self._weigh(frame, 1)
            if frame.batch is not None:
                return frame.batch
            log.error("access log: %d records of the spool can't be read any more", frame.number)
            self.unreadable += frame.number
            self._drop_first()
        return None

    def replace_first(self, *batches: Batch) -> None:
        """Put `batches`, or nothing, in the place of the oldest; on disk that stays until they are delivered."""
        frame = self._frames[0]
        if not batches:
            self._drop_first()
            return
        self._frames.popleft()
        self._count(frame, -1)
        self._weigh(frame, -1)
        parts = [_Frame(None, 0, len(each.rows), each.number, each) for each in batches]
        # The last of its parts takes it along.
        parts[-1].segment = frame.segment
        for part in parts:
            self._weigh(part, 1)
            self._count(part, 1)
        self._frames.extendleft(reversed(parts))

    @property
    def unsynced(self) -> bool:
        """Tell whether `sync` has something to do."""
        return bool(self._unsynced)

    def sync(self) -> None:
        """Have the disk keep what was written, so that a crash of the machine loses none of it.

        It may take a while, and may be called in another thread.
        """
        for segment in list(self._unsynced):
            self._unsynced.discard(segment)
            # It may be closed by now: then nothing of it is needed.
            with contextlib.suppress(OSError):
                os.fdatasync(segment.descriptor)

    def close(self) -> None:
        """Keep on disk what is left, and let go of the slot."""
        if self.rows:
            self.sync()
        for segment in self._segments:
            os.close(segment.descriptor)
            if not segment.left:
                segment.path.unlink(missing_ok=True)
        self._segments.clear()
        while self._locks:
            os.close(self._locks.pop())

    # -- files

    def _take_slot(self, directory: Path) -> Path:
        """Lock the first slot that no living process has."""
        for number in range(_MAX_SLOTS):
            slot = directory / str(number)
            slot.mkdir(mode=0o700, exist_ok=True)
            if self._lock(slot):
                return slot
        raise SpoolError(f"{directory}: all of its {_MAX_SLOTS} slots are in use")

    def _lock(self, slot: Path) -> bool:
        descriptor = os.open(slot / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(descriptor)
            return False
        self._locks.append(descriptor)
        return True

    def _left_behind(self) -> list[Path]:
        """Return the segments of slots whose processes have ended.

        Their locks are kept: a process that starts meanwhile takes a slot of its own, and nobody else takes these.
        """
        found: list[Path] = []
        for slot in self.directory.parent.iterdir():
            if (
                slot != self.directory
                and slot.name.isdecimal()
                and list(slot.glob("*.log"))
                and self._lock(slot)
            ):
                found += slot.glob("*.log")
        return found

    def _read_segment(self, path: Path) -> None:
        """Note the batches in a segment that an earlier process left."""
        descriptor = os.open(path, os.O_RDWR | os.O_CLOEXEC)
        segment = _Segment(path, descriptor, len(_MAGIC))
        size = os.fstat(descriptor).st_size
        if os.pread(descriptor, len(_MAGIC), 0) == _MAGIC:
            while header := os.pread(descriptor, _FRAME.size, segment.end):
                if len(header) < _FRAME.size:
                    break
                length, number, _ = _FRAME.unpack(header)
                end = segment.end + _FRAME.size + length
                if not 0 < length <= MAX_FRAME or not number or end > size:
                    break
                frame = _Frame(segment, segment.end, length, number, None)
                self._frames.append(frame)
                self._count(frame, 1)
                segment.left += 1
                segment.end = end
        if segment.end < size:
            log.warning("access log: %d bytes at the end of %s are no whole batch", size - segment.end, path)
        if segment.left:
            self._segments.append(segment)
        else:
            os.close(descriptor)
            path.unlink()

    def _write(self, batch: Batch, size: int) -> _Frame | None:
        """Append `batch` to the last segment; None where the disk doesn't take it."""
        header = _FRAME.pack(size, batch.number, _checksum(size, batch.number, batch.rows))
        try:
            segment = self._open_segment()
            at = segment.end
            written = os.pwritev(segment.descriptor, [header, batch.rows], at)
            if written != len(header) + size:
                raise OSError(28, "No space left on device")
        except OSError as error:
            if not self._complained:
                self._complained = True
                log.error("access log: the spool takes no records, they wait in memory (%s)", reason(error))
            return None
        if self._complained:
            self._complained = False
            log.warning("access log: the spool takes records again")
        segment.end = at + written
        segment.left += 1
        self._unsynced.add(segment)
        return _Frame(segment, at, size, batch.number, None)

    def _open_segment(self) -> _Segment:
        """Return the segment that takes the next batch."""
        if self._segments:
            last = self._segments[-1]
            if last.path.parent == self.directory and last.end < self._segment_bytes:
                return last
        self._made += 1
        path = self.directory / f"{int(time.time() * 1000):016d}-{self._made:04d}.log"
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        try:
            os.write(descriptor, _MAGIC)
        except OSError:
            os.close(descriptor)
            path.unlink()
            raise
        segment = _Segment(path, descriptor, len(_MAGIC))
        self._segments.append(segment)
        return segment

    def _read(self, frame: _Frame) -> Batch | None:
        segment = frame.segment
        if segment is None:
            return None
        try:
            whole = os.pread(segment.descriptor, _FRAME.size + frame.size, frame.at)
        except OSError:
            return None
        rows = whole[_FRAME.size :]
        if len(rows) != frame.size:
            return None
        length, number, checksum = _FRAME.unpack(whole[: _FRAME.size])
        if checksum != _checksum(length, number, rows):
            return None
        batch = Batch(rows, frame.number)
        batch.again = True
        return batch

    def _drop_first(self) -> None:
        frame = self._frames.popleft()
        self._count(frame, -1)
        self._weigh(frame, -1)
        segment = frame.segment
        if segment is None:
            return
        segment.left -= 1
        if segment.left:
            return
        if segment is self._segments[-1] and segment.path.parent == self.directory:
            # It goes on being written to; nothing in it is needed any more.
            os.ftruncate(segment.descriptor, len(_MAGIC))
            segment.end = len(_MAGIC)
        else:
            self._segments.remove(segment)
            os.close(segment.descriptor)
            segment.path.unlink(missing_ok=True)

    def _weigh(self, frame: _Frame, sign: int) -> None:
        """Add to, or take from, what is held in memory: beside its copy on disk, or alone."""
        if frame.batch is None:
            return
        if frame.segment is None:
            self._unwritten += sign * frame.size
        else:
            self._in_memory += sign * frame.size

    def _count(self, frame: _Frame, sign: int) -> None:
        self.rows += sign * frame.number
        self.bytes += sign * frame.size


def _age(path: Path) -> tuple[str, str]:
    """Return what segments are sorted by, the oldest first."""
    return path.name, path.parent.name


def _checksum(size: int, number: int, rows: bytes) -> int:
    return zlib.crc32(rows, zlib.crc32(_LENGTHS.pack(size, number)))
