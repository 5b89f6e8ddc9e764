"""Access records in a file of JSON lines: what the proxy writes on standard output."""

from __future__ import annotations

import json
import os
import sys
from collections import deque
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any, Final

from proxy.errors import SluiceError
from proxy.logreader.wanted import Wanted

STANDARD_INPUT: Final = Path("-")

_MAX_PARTIAL: Final = 1 << 20
"""Bytes of a line without an end that are kept: a record has some 10 KiB at most."""


class LogFile:
    """The file at `path`, `-` for standard input; lines that are no records are passed over.

    Raises SluiceError where it can't be opened.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._partial = b""
        self._file = self._open()

    def newest(self, wanted: Wanted, limit: int) -> list[dict[str, Any]]:
        """Return the last `limit` records that are wanted, of all that the file holds now."""
        return list(deque(self.more(wanted), maxlen=limit))

    def more(self, wanted: Wanted) -> Iterator[dict[str, Any]]:
        """Yield the wanted records that were written since the last call; of a file that was exchanged too."""
        yield from self._rest(wanted)
        if self._was_exchanged():
            # What was written before it went is read by now.
            self._file.close()
            self._file = self._open()
            self._partial = b""
            yield from self._rest(wanted)

    def close(self) -> None:
        """Close the file."""
        if self._path != STANDARD_INPUT:
            self._file.close()

    @property
    def ends(self) -> bool:
        """Tell that nothing will follow: a pipe is read to its end."""
        return self._path == STANDARD_INPUT

    def _open(self) -> IO[bytes]:
        if self._path == STANDARD_INPUT:
            return sys.stdin.buffer
        try:
            return self._path.open("rb")
        except OSError as error:
            raise SluiceError(f"cannot read {self._path}: {error.strerror}") from None

    def _rest(self, wanted: Wanted) -> Iterator[dict[str, Any]]:
        while line := self._file.readline(_MAX_PARTIAL):
            line = self._partial + line
            self._partial = b""
            if not line.endswith(b"\n") and len(line) < _MAX_PARTIAL:
                # Its end is still to be written.
                self._partial = line
                continue
            record = _record(line)
            if record is not None and wanted.covers(record):
                yield record

    def _was_exchanged(self) -> bool:
        """Tell whether the name means another file now, or a shorter one, as after logrotate."""
        if self._path == STANDARD_INPUT:
            return False
        try:
            there = self._path.stat()
        except OSError:
            return False
        here = os.fstat(self._file.fileno())
        return (there.st_ino, there.st_dev) != (here.st_ino, here.st_dev) or there.st_size < self._file.tell()


def _record(line: bytes) -> dict[str, Any] | None:
    """Return the record of a line; None where it is none, as a line of another program is."""
    if not line.startswith(b"{"):
        return None
    try:
        record = json.loads(line)
    except ValueError:
        return None
    has_place = isinstance(record.get("id"), str) and isinstance(record.get("at"), str)
    return record if has_place and isinstance(record.get("event"), str) else None
