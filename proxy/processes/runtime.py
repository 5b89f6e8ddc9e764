"""The private directory in which the processes of one proxy meet: a Unix socket for each, by its number.

    pgsluice-ab12cd34/            mode 700; made by the first process, and removed by the last
        3.lock                    held by the process whose number this is
        3.sock                    where it answers
        limits, stdout.lines      what its workers share, and what they hold while they write lines

A number is part of the process id that a client is told for its cancel requests, so it stays with a process for life,
and no two that live have the same.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import stat
import tempfile
from pathlib import Path
from typing import Final

from proxy.errors import SluiceError, reason

NUMBERS: Final = 256
"""How many processes can live at once: as many as a process id has room for."""


class Runtime:
    """One process's part of the directory: the numbers that it holds."""

    def __init__(self, directory: Path) -> None:
        """Take part in `directory`, which has to be ours alone; raises SluiceError."""
        self.directory = directory
        self._locks: dict[int, int] = {}
        try:
            found = directory.lstat()
        except OSError as error:
            raise SluiceError(f"{directory}: {reason(error)}") from None
        if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.geteuid() or found.st_mode & 0o077:
            raise SluiceError(f"{directory} is not a directory for this user alone")

    @classmethod
    def make(cls) -> Runtime:
        """Make a directory: below RUNTIME_DIRECTORY, where systemd gives one, else where temporary files are."""
        given = os.environ.get("RUNTIME_DIRECTORY", "").partition(":")[0]
        try:
            return cls(Path(tempfile.mkdtemp(prefix="pgsluice-", dir=given or None)))
        except OSError as error:
            raise SluiceError(
                f"no directory for the processes' sockets can be made: {reason(error)}"
            ) from None

    def take(self, count: int) -> list[int]:
        """Hold `count` numbers that nobody has; raises SluiceError."""
        taken: list[int] = []
        for number in range(NUMBERS):
            if len(taken) == count:
                break
            if number not in self._locks and self._lock(number):
                taken.append(number)
        if len(taken) < count:
            raise SluiceError(f"{NUMBERS} processes at the most, and those that are still draining count")
        return taken

    def socket_of(self, number: int) -> Path:
        """Return where the process `number` answers."""
        return self.directory / f"{number}.sock"

    @property
    def limits(self) -> Path:
        """Return the file of what workers share."""
        return self.directory / "limits"

    def close(self) -> None:
        """Let go of the numbers, and remove what nobody uses any more."""
        for number in range(NUMBERS):
            if number in self._locks or ((self.directory / f"{number}.lock").exists() and self._lock(number)):
                self.socket_of(number).unlink(missing_ok=True)
                (self.directory / f"{number}.lock").unlink(missing_ok=True)
        while self._locks:
            os.close(self._locks.popitem()[1])
        with contextlib.suppress(OSError):
            if not list(self.directory.glob("*.lock")):
                shutil.rmtree(self.directory)

    def _lock(self, number: int) -> bool:
        path = self.directory / f"{number}.lock"
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            # Whoever held it may have removed the file meanwhile.
            if os.fstat(descriptor).st_ino == path.stat().st_ino:
                self._locks[number] = descriptor
                return True
        except OSError:
            pass
        os.close(descriptor)
        return False
