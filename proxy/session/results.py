"""Results of reads that are kept and given again: the store, what drops from it, and who waits for what is under way.

Pure: bytes in and out, given the time. A result is *as of* a moment of the monotonic clock: everything that was
committed before it was in sight. That is when its query was sent to the primary, or what the replica that answered
had replayed by then. From this one number follows all that keeps results safe:

    its age is counted from there                                a result is never older than its time to live
    a session takes it if it is later than its own last write    never older than what the session has written
    it is kept if it is later than the last write that is known
    of each relation that it was read from                       never older than a write through this proxy

A write counts from when its transaction's end was answered; until then nobody was told that it has happened.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final, final

from librt.strings import read_i32_be
from mypy_extensions import i64

from proxy.query.facts import CACHE_ON, NO_HINT
from proxy.upstream.pool import WaitQueue
from proxy.wire.codes import (
    BE_BIND_COMPLETE,
    BE_COMMAND_COMPLETE,
    BE_DATA_ROW,
    BE_NO_DATA,
    BE_PARSE_COMPLETE,
    BE_PORTAL_SUSPENDED,
    BE_READY,
    BE_ROW_DESCRIPTION,
    HEADER,
    IDLE,
)
from proxy.wire.reply import Reply

EVERYTHING: Final = "*"
"""Stands for all relations: no relation that a text names can be called so without being quoted, and then it costs
a little more than it has to."""

READONLY_POOL: Final = "readonly"
"""The pool whose login can't write: what answers there has only read, whatever views and operators hide."""

MAX_KEY: Final = 16_384
"""Bytes of a key, bind values and text among them: longer ones are data, and never come twice."""

OVERHEAD: Final = 700
"""Bytes that an entry takes beside key and messages, roughly: its object, its place in three dicts."""

MEMORY: Final = 60.0
"""Seconds for which it is remembered that a relation was written. What took longer to read, or comes from a replica
further behind, isn't kept."""

MAX_WRITTEN: Final = 10_000
"""Relations of which that is remembered at a time; with more everything counts as written, once."""

MAX_REFUSED: Final = 1_000
"""Keys that are remembered for not being worth a wait."""

PATIENCE: Final = 30.0
"""Seconds that askers wait for somebody else's answer, as long as they wait for a server connection by default. Whose
client doesn't read, or goes, lets go of them at once."""

AFTER_FAILURE: Final = 1.0
"""Seconds for which everybody asks by himself what couldn't be kept: an error, most likely, which comes again."""

AFTER_WRITE: Final = 0.02
"""Seconds for which that holds of what a write has overtaken: who waited asks at once, and not one behind the other."""

AFTER_EXCESS: Final = 60.0
"""Seconds for which that holds of what was too large."""


@final
class Entry:
    """One result: the messages from BindComplete, or RowDescription, to ReadyForQuery."""

    def __init__(
        self, key: bytes, body: bytes, as_of: float, relations: tuple[str, ...], family: i64
    ) -> None:
        self.key = key
        self.body = body
        self.as_of = as_of
        self.relations = relations
        # Of the server connection that it came from, see Server.family.
        self.family: i64 = family
        # What its access records say.
        self.rows: i64 = 0
        self.bytes_out: i64 = 0
        self.size: i64 = len(key) + len(body) + OVERHEAD
        # Its neighbours in the order of use.
        self.newer: Entry | None = None
        self.older: Entry | None = None


@final
class Flight:
    """A question that is under way, whose answer is to be kept; and who waits for it."""

    def __init__(self, key: bytes, relations: tuple[str, ...], reply: Reply, began_at: float) -> None:
        self.key = key
        self.relations = relations
        self.reply = reply
        self.began_at = began_at
        # 0.0 until it is sent.
        self.as_of: float = 0.0
        self.chunks: list[bytes] = []
        self.size: i64 = 0
        self.waiters = WaitQueue()
        # Nobody waits for it any more, and its answer isn't kept.
        self.over = False

    def sent(self, as_of: float) -> None:
        """Note that the question is being sent, perhaps once more: what comes from now on is its answer."""
        self.as_of = as_of
        self.chunks = []
        self.size = 0

    def take(self, data: bytes) -> i64:
        """Take a piece of the answer; returns the bytes so far."""
        if self.as_of > 0.0:
            self.chunks.append(data)
            self.size += len(data)
        return self.size

    def may_serve(self, after: float) -> bool:
        """Tell whether the answer may be later than `after`."""
        return not self.over and (self.as_of == 0.0 or self.as_of > after)


@final
class Results:
    """What is kept for one database, the least recently used going first; and by which rules.

    `max_bytes` bounds all of it, `max_entry` the messages of one result. Times are in seconds.
    """

    def __init__(self, max_bytes: i64, max_entry: i64) -> None:
        self.max_bytes: i64 = max_bytes
        self.max_entry: i64 = max_entry
        self.ttl: float = 30.0
        # How much longer a result may be given while it is being asked for anew.
        self.stale: float = 0.0
        # The most that a comment may ask for.
        self.max_ttl: float = 300.0
        # Whether it is on for whatever doesn't ask, and what pools say.
        self.on = False
        self.pools: dict[str, bool] = {}
        self.entries: dict[bytes, Entry] = {}
        self.flights: dict[bytes, Flight] = {}
        self.bytes: i64 = 0
        # What server connections report, by their families.
        self.families: dict[int, dict[bytes, bytes]] = {}
        self._newest: Entry | None = None
        self._oldest: Entry | None = None
        self._by_relation: dict[str, dict[bytes, Entry]] = {}
        self._written: dict[str, float] = {}
        self._flushed_at: float = 0.0
        self._refused: dict[int, float] = {}
        # Counters: answers given, those of them past their time to live, and what had to be asked for; those who
        # waited for another's answer; results kept, not kept, and dropped for want of room or because of writes.
        self.hits: i64 = 0
        self.stale_hits: i64 = 0
        self.misses: i64 = 0
        self.waits: i64 = 0
        self.stores: i64 = 0
        self.refusals: i64 = 0
        self.evictions: i64 = 0
        self.invalidations: i64 = 0

    # -- the rules

    def time_to_live(self, hint: float, key_says: i64, pool: str) -> float:
        """Return for how long the answer to a statement may be kept, 0.0 for not at all.

        `hint` is what its comment asks for, `key_says` 1 or 0 where the API key does, else -1. A pool that isn't
        allowed to keep results keeps none whoever asks; then the comment decides, then the key, the pool, the
        database.
        """
        allowed = self.pools.get(pool)
        if allowed is None:
            if pool != READONLY_POOL:
                return 0.0
        elif not allowed:
            return 0.0
        if hint != NO_HINT:
            if hint == CACHE_ON:
                return self.ttl
            return hint if hint < self.max_ttl else self.max_ttl
        if key_says >= 0:
            return self.ttl if key_says == 1 else 0.0
        return self.ttl if self.on or allowed is not None else 0.0

    # -- asking

    def find(self, key: bytes, now: float, ttl: float, after: float) -> Entry | None:
        """Return the result under `key` that is later than `after` and no older than `ttl` and the time of grace."""
        entry = self.entries.get(key)
        if entry is None or entry.as_of <= after or now - entry.as_of > ttl + self.stale:
            return None
        if entry is not self._newest:
            self._unlink(entry)
            self._link(entry)
        return entry

    def refuses(self, key: bytes, now: float) -> bool:
        """Tell whether `key` is not worth a wait: its answer was too large, or couldn't be kept just now."""
        if not self._refused:
            return False
        until = self._refused.get(hash(key))
        return until is not None and now < until

    def begin(self, key: bytes, relations: tuple[str, ...], reply: Reply, now: float) -> Flight:
        """Begin to wait for the answer to `key`, that of `reply`."""
        flight = Flight(key, relations, reply, now)
        self.flights[key] = flight
        return flight

    def land(self, flight: Flight, family: i64, now: float) -> Entry | None:
        """Keep the answer that has come, and let everybody go on who waits; None where it can't be kept."""
        data = b"".join(flight.chunks)
        start = kept_from(data)
        if flight.over or start < 0:
            self.fail(flight, now)
            return None
        if not self._holds(flight, now):
            self.fail(flight, now, AFTER_WRITE)
            return None
        entry = Entry(flight.key, data[start:], flight.as_of, flight.relations, family)
        entry.rows = flight.reply.rows
        entry.bytes_out = flight.reply.bytes_out
        self._end(flight)
        self._put(entry)
        self._release(flight, now)
        return entry

    def fail(self, flight: Flight, now: float, seconds: float = AFTER_FAILURE) -> None:
        """Let everybody go on by himself who waits: there will be no answer to keep, nor for the next `seconds`."""
        if flight.over:
            return
        self._end(flight)
        self.refusals += 1
        if len(self._refused) >= MAX_REFUSED:
            self._refused.clear()
        self._refused[hash(flight.key)] = now + seconds
        self._release(flight, now)

    def _holds(self, flight: Flight, now: float) -> bool:
        """Tell whether an answer is later than all that is known to have been written since."""
        as_of = flight.as_of
        if as_of <= self._flushed_at or as_of <= now - MEMORY:
            return False
        for name in flight.relations:
            written = self._written.get(name)
            if written is not None and as_of <= written:
                return False
        return True

    def _end(self, flight: Flight) -> None:
        flight.over = True
        flight.chunks = []
        if self.flights.get(flight.key) is flight:
            del self.flights[flight.key]

    def _release(self, flight: Flight, now: float) -> None:
        waiters = flight.waiters
        while (waiter := waiters.pop()) is not None:
            waiter.reroute(now)

    # -- writes

    def wrote(self, relations: Iterable[str], at: float) -> None:
        """Drop what was read from `relations`, and keep nothing that was read before the time `at`."""
        for name in relations:
            if name == EVERYTHING:
                self.flush(at)
                continue
            known = self._written.get(name)
            if known is None and len(self._written) >= MAX_WRITTEN:
                self.flush(at)
            if known is None or known < at:
                self._written[name] = at
            found = self._by_relation.get(name)
            if found is not None:
                for entry in list(found.values()):
                    self.invalidations += 1
                    self._drop(entry)

    def flush(self, at: float) -> None:
        """Drop everything, and keep nothing that was read before the time `at`."""
        if at > self._flushed_at:
            self._flushed_at = at
        self.invalidations += len(self.entries)
        self.entries.clear()
        self._by_relation.clear()
        self._newest = None
        self._oldest = None
        self.bytes = 0
        for name, written in list(self._written.items()):
            # A write whose outcome isn't known lies in the future.
            if written <= self._flushed_at:
                del self._written[name]
        self.families.clear()

    # -- upkeep

    def tick(self, now: float) -> None:
        """Forget what has run out, and let go of those who have waited too long; to be called each second or so."""
        for name, at in list(self._written.items()):
            if at <= now - MEMORY:
                del self._written[name]
        for mark, until in list(self._refused.items()):
            if until <= now:
                del self._refused[mark]
        for flight in list(self.flights.values()):
            if now - flight.began_at > PATIENCE:
                self.fail(flight, now)
        longest = (self.ttl if self.ttl > self.max_ttl else self.max_ttl) + self.stale
        oldest = self._oldest
        while oldest is not None and now - oldest.as_of > longest:
            self._drop(oldest)
            oldest = self._oldest

    def resize(self, max_bytes: i64, max_entry: i64) -> None:
        """Keep to other bounds from now on."""
        self.max_bytes = max_bytes
        self.max_entry = max_entry
        self._make_room()

    def let_go(self, now: float) -> None:
        """Drop everything, and let everybody go on by himself who waits: nothing is kept any more."""
        self.flush(now)
        for flight in list(self.flights.values()):
            self.fail(flight, now)

    def _put(self, entry: Entry) -> None:
        before = self.entries.get(entry.key)
        if before is not None:
            self._drop(before)
        self.entries[entry.key] = entry
        self.bytes += entry.size
        self._link(entry)
        for name in entry.relations:
            found = self._by_relation.get(name)
            if found is None:
                self._by_relation[name] = {entry.key: entry}
            else:
                found[entry.key] = entry
        self.stores += 1
        self._make_room()

    def _make_room(self) -> None:
        oldest = self._oldest
        while oldest is not None and self.bytes > self.max_bytes:
            self.evictions += 1
            self._drop(oldest)
            oldest = self._oldest

    def _drop(self, entry: Entry) -> None:
        del self.entries[entry.key]
        self.bytes -= entry.size
        self._unlink(entry)
        for name in entry.relations:
            found = self._by_relation.get(name)
            if found is not None:
                found.pop(entry.key, None)
                if not found:
                    del self._by_relation[name]

    def _link(self, entry: Entry) -> None:
        newest = self._newest
        entry.older = newest
        if newest is None:
            self._oldest = entry
        else:
            newest.newer = entry
        self._newest = entry

    def _unlink(self, entry: Entry) -> None:
        newer = entry.newer
        older = entry.older
        if newer is None:
            self._newest = older
        else:
            newer.older = older
        if older is None:
            self._oldest = newer
        else:
            older.newer = newer
        entry.newer = None
        entry.older = None


def kept_from(data: bytes) -> i64:
    """Return where that part of a read's whole answer begins which is kept, -1 where nothing of it is.

    A ParseComplete is left out: whether there is one depends on who asks. Whatever else there is but rows, an error, a
    notice or a parameter's new value, was meant for who asked alone.
    """
    n: i64 = len(data)
    pos: i64 = 0
    start: i64 = 0
    completed = False
    while n - pos >= HEADER:
        kind: i64 = data[pos]
        end: i64 = pos + 1 + i64(read_i32_be(data, pos + 1))
        if end > n or end < pos + HEADER:
            return -1
        if kind == BE_READY:
            return start if end == n and completed and data[n - 1] == IDLE else -1
        if kind == BE_COMMAND_COMPLETE or kind == BE_PORTAL_SUSPENDED:
            # Of a portal that has more rows than were asked for nothing is left behind the Sync.
            if completed:
                return -1
            completed = True
        elif kind == BE_PARSE_COMPLETE:
            if pos > 0:
                return -1
            start = end
        elif not (
            kind == BE_DATA_ROW
            or kind == BE_BIND_COMPLETE
            or kind == BE_ROW_DESCRIPTION
            or kind == BE_NO_DATA
        ):
            return -1
        pos = end
    return -1
