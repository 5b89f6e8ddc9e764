"""Keys behind a cache, wherever they come from: the table sluice.api_keys, or a file.

The cache is what keeps a proxy going: a key is read once in `ttl` however many clients log in with it, and
known keys go on for ten times as long while the control database is away. A NOTIFY says that a key may have
changed; any role may send one, so it only leads to the key being read again, one key at a time and each at
most once in REREAD_GAP. What reads keys is handed in, so nothing here knows of databases.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Iterable
from pathlib import Path

from proxy.auth.key import Key, is_key_id
from proxy.auth.keyfile import read_keys
from proxy.errors import SluiceError, UpstreamUnavailable
from proxy.tasks import spawn, stop

log = logging.getLogger(__name__)

# How much longer than `ttl` a known key goes on while it can't be read again.
GRACE = 10
# Seconds between two readings of the same key on NOTIFY. A revocation takes effect within a second.
REREAD_GAP = 0.5
# Seconds before the next attempt where a key that is known couldn't be read.
RETRY = 1.0
# Seconds for which an id that doesn't exist is not asked for again, and how many of them are kept.
UNKNOWN_TTL = 5.0
# Seconds for which a file of keys is not looked at again.
FILE_TTL = 1.0
MOST_UNKNOWN = 10_000
MOST_KEYS = 100_000

Fetch = Callable[[str], Awaitable[Key | None]]
OnChange = Callable[[str, Key | None], None]


class KeyStore:
    """Keys by id, cached; `fetch` reads one and raises UpstreamUnavailable where it can't.

    `clock` is monotonic, in seconds. `on_change(id, key or None)` is called after each reading that a change
    or a recheck led to. A login that takes long has to `get` its key again at its end: what changed in
    between was told when it was no session yet.
    """

    def __init__(
        self,
        fetch: Fetch,
        ttl: float,
        clock: Callable[[], float],
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        self.on_change: OnChange = _nobody
        # Keys asked for: those that were at hand, or known not to be; those that had to be read.
        self.hits = 0
        self.misses = 0
        self._fetch = fetch
        self._ttl = ttl
        self._clock = clock
        self._sleep = sleep
        self._known: dict[str, tuple[Key, float]] = {}  # with the time of its reading; the oldest first
        self._unknown: dict[str, float] = {}
        self._readings: dict[str, asyncio.Task[Key | UpstreamUnavailable | None]] = {}
        self._changed: dict[
            str, float
        ] = {}  # ids to read again, and not before when; first come, first served
        self._rereader: asyncio.Task[None] | None = None
        self._failed_at: float | None = None  # the last reading, if it failed

    def read_each(self, ttl: float) -> None:
        """Read a key again after so many seconds, from now on."""
        self._ttl = ttl

    async def get(self, key_id: str) -> Key | None:
        """Return the key, also where it is revoked or expired, or None where there is none of that id.

        Raises UpstreamUnavailable where it can't be read and was not known within ten times `ttl`.
        """
        if not is_key_id(key_id):
            return None
        now = self._clock()
        known = self._known.get(key_id)
        if known is not None:
            age = now - known[1]
            # Where reading takes its time to fail, not every login has to wait for that.
            failing = self._failed_at is not None and now - self._failed_at < RETRY
            if age < self._ttl or (failing and age < self._ttl * GRACE):
                self.hits += 1
                return known[0]
        if now - self._unknown.get(key_id, now - UNKNOWN_TTL) < UNKNOWN_TTL:
            self.hits += 1
            return None
        self.misses += 1
        try:
            return await self._read(key_id)
        except UpstreamUnavailable:
            known = self._known.get(key_id)
            if known is not None and self._clock() - known[1] < self._ttl * GRACE:
                return known[0]
            raise

    def known(self) -> list[Key]:
        """Return the keys that are kept, as they were last read."""
        return [key for key, _ in self._known.values()]

    def knows(self, key_id: str) -> bool:
        """Tell whether the key was read before, and is kept."""
        return key_id in self._known

    def changed(self, key_id: str) -> None:
        """Take note that the key may have changed; it is read again soon if anybody knows it here."""
        self._unknown.pop(key_id, None)
        if key_id in self._readings:
            last = self._clock()
        elif key_id in self._known:
            last = self._known[key_id][1]
        else:
            return
        self._changed.setdefault(key_id, last + REREAD_GAP)
        if self._rereader is None or self._rereader.done():
            self._rereader = spawn(self._reread(), "read changed keys")

    def changed_all(self) -> None:
        """Take note that any key may have changed: notifications were missed."""
        self._unknown.clear()
        for key_id in {**self._known, **self._readings}:
            self.changed(key_id)

    def recheck(self, in_use: Iterable[str]) -> None:
        """Read those keys again whose last reading is older than `ttl`, for sessions that outlive it."""
        now = self._clock()
        for key_id in in_use:
            known = self._known.get(key_id)
            if known is not None and now - known[1] >= self._ttl:
                self.changed(key_id)

    def entries(self) -> int:
        """Return how many keys are at hand."""
        return len(self._known)

    async def close(self) -> None:
        """Stop reading."""
        await stop(self._rereader, *self._readings.values())

    async def _read(self, key_id: str) -> Key | None:
        """Read the key, once for all who ask at the same time."""
        reading = self._readings.get(key_id)
        if reading is None:
            reading = spawn(self._read_and_keep(key_id), f"read key {key_id}")
            self._readings[key_id] = reading
        # Shielded: a client that goes away must not end the reading for the others.
        outcome = await asyncio.shield(reading)
        if isinstance(outcome, UpstreamUnavailable):
            raise outcome
        return outcome

    async def _read_and_keep(self, key_id: str) -> Key | UpstreamUnavailable | None:
        reading = asyncio.current_task()
        try:
            key = await self._fetch(key_id)
        except UpstreamUnavailable as error:
            self._failed_at = self._clock()
            return error
        except ValueError as error:
            log.error("%s: it can't be used", error)
            key = None
        finally:
            # A reading that _reread has replaced may be from before the change: it is not kept.
            is_latest = self._readings.get(key_id) is reading
            if is_latest:
                del self._readings[key_id]
        self._failed_at = None
        if is_latest:
            self._keep(key_id, key)
        return key

    def _keep(self, key_id: str, key: Key | None) -> None:
        self._known.pop(key_id, None)
        self._unknown.pop(key_id, None)
        if key is not None:
            self._known[key_id] = (key, self._clock())
            if len(self._known) > MOST_KEYS:
                del self._known[next(iter(self._known))]
        else:
            self._unknown[key_id] = self._clock()
            if len(self._unknown) > MOST_UNKNOWN:
                del self._unknown[next(iter(self._unknown))]

    async def _reread(self) -> None:
        """Read changed keys again, one at a time, until there are none."""
        while self._changed:
            now = self._clock()
            key_id = next((key_id for key_id, at in self._changed.items() if at <= now), None)
            if key_id is None:
                await self._sleep(min(self._changed.values()) - now)
                continue
            del self._changed[key_id]
            self._readings.pop(key_id, None)
            try:
                key = await self._read(key_id)
            except UpstreamUnavailable:
                self._changed.setdefault(key_id, now)
                await self._sleep(RETRY)
                continue
            self.on_change(key_id, key)


class FileKeyStore(KeyStore):
    """The keys in the file at `path`; a change of the file takes effect within seconds.

    Raises SluiceError where it can't be read. Where a later version can't, the last good one goes on.
    """

    def __init__(self, path: Path, clock: Callable[[], float] = time.monotonic) -> None:
        super().__init__(self._find, FILE_TTL, clock)
        self._path = path
        self._version: tuple[int, int, int] | None = None
        self._keys: dict[str, Key] = {}
        try:
            self._read_file()
        except (OSError, ValueError) as error:
            raise SluiceError(f"cannot use the keys in {path}: {error}") from None

    def read_each(self, ttl: float) -> None:
        """Go on looking at the file as often as before: `ttl` is for keys that cost a question to a server."""

    async def _find(self, key_id: str) -> Key | None:
        try:
            self._read_file()
        except (OSError, ValueError) as error:
            log.error("going on with the keys as they were; cannot use those in %s: %s", self._path, error)
        return self._keys.get(key_id)

    def _read_file(self) -> None:
        """Read the file if it is not the one that was read last; a bad one is complained of once."""
        found = self._path.stat()
        version = (found.st_mtime_ns, found.st_size, found.st_ino)
        if version != self._version:
            self._version = version
            self._keys = read_keys(self._path.read_text(encoding="utf-8"))


def _nobody(key_id: str, key: Key | None) -> None:
    """Stand in for on_change until somebody listens."""
