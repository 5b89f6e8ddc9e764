"""Rate limits that hold for several processes together: token buckets in a file that each of them has mapped.

    slot: mark of the key and its limit (16 bytes), tokens and the time of the last fill (two doubles)

A bucket is looked up among a few slots by its mark. Where all of them are others', the one that was used longest ago
makes room: a bucket is full again after a minute, so nothing is lost but by more keys at once than there are slots. The
clock is monotonic, and the same in all processes of a machine.
"""

from __future__ import annotations

import fcntl
import hashlib
import mmap
import os
import struct
from pathlib import Path
from typing import Final, final

from proxy.auth.ratelimit import TokenBucket

SLOTS: Final = 16384
"""Half a megabyte: keys with a limit that are in use within a minute."""

_PROBES: Final = 8
_MARK: Final = 16
_NUMBERS: Final = struct.Struct("<dd")
_SLOT: Final = 32


@final
class SharedLimits:
    """The file; raises OSError where it can't be mapped."""

    def __init__(self, path: Path) -> None:
        self._descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        os.ftruncate(self._descriptor, SLOTS * _SLOT)
        self._slots = mmap.mmap(self._descriptor, SLOTS * _SLOT)

    def bucket(self, key_id: str, per_minute: int, now: float) -> TokenBucket:
        """Return the bucket of a key with this limit."""
        return SharedBucket(self, _mark(key_id, per_minute), per_minute, now)

    def lock(self) -> None:
        """Keep the other processes out: for a few microseconds, and a process that is killed lets go."""
        fcntl.lockf(self._descriptor, fcntl.LOCK_EX)

    def unlock(self) -> None:
        """Let them in again."""
        fcntl.lockf(self._descriptor, fcntl.LOCK_UN)

    def find(self, mark: bytes) -> int:
        """Return where the slot of `mark` is; -1 - where for one that has to be taken from another."""
        first = int.from_bytes(mark[:8], "little") % SLOTS
        oldest = -1
        oldest_at = 0.0
        for probe in range(_PROBES):
            at = (first + probe) % SLOTS * _SLOT
            if self._slots[at : at + _MARK] == mark:
                return at
            _, filled = self.read(at)
            if oldest < 0 or filled < oldest_at:
                oldest, oldest_at = at, filled
        return -1 - oldest

    def read(self, at: int) -> tuple[float, float]:
        """Return the tokens of a slot, and when it was filled."""
        tokens, filled = _NUMBERS.unpack(self._slots[at + _MARK : at + _SLOT])
        return float(tokens), float(filled)

    def write(self, at: int, mark: bytes, tokens: float, filled: float) -> None:
        """Write a slot."""
        self._slots[at : at + _SLOT] = mark + _NUMBERS.pack(tokens, filled)


@final
class SharedBucket(TokenBucket):
    """A bucket whose tokens are in the file."""

    def __init__(self, limits: SharedLimits, mark: bytes, per_minute: int, now: float) -> None:
        super().__init__(per_minute, now)
        self._limits = limits
        self._mark = mark

    def take(self, now: float, count: int = 1) -> float:
        """Take `count` tokens, as TokenBucket does, of those that all processes have left."""
        limits = self._limits
        limits.lock()
        try:
            at = limits.find(self._mark)
            if at >= 0:
                self._tokens, self._filled = limits.read(at)
            else:
                at = -1 - at
                self._tokens, self._filled = float(self.per_minute), now
            wait = super().take(now, count)
            limits.write(at, self._mark, self._tokens, self._filled)
        finally:
            limits.unlock()
        return wait


def _mark(key_id: str, per_minute: int) -> bytes:
    return hashlib.blake2b(f"{per_minute} {key_id}".encode("utf-8", "replace"), digest_size=_MARK).digest()
