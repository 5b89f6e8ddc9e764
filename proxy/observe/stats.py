"""Counters and histograms: plain numbers that the path of a query adds to and a scrape reads.

Nothing here knows Prometheus (proxy.observe.metrics does), a clock or a label from outside. What grows with a
client's or a server's words is held in a Tally, which keeps a bounded number of names.
"""

from __future__ import annotations

from typing import Final, final

from librt.vecs import vec
from mypy_extensions import i64

# Intent.kind: each pool has a histogram for each of these.
KINDS: Final = ["read", "write", "ddl", "transaction", "session", "unknown"]

# Upper bounds of the buckets in µs, 100 µs to 1 minute: a pooled read on a local network falls into the
# first ones, and 1 s, the threshold of "slow", is one of them.
BOUNDS_US: Final = [
    100,
    250,
    500,
    1_000,
    2_500,
    5_000,
    10_000,
    25_000,
    50_000,
    100_000,
    250_000,
    500_000,
    1_000_000,
    2_500_000,
    5_000_000,
    10_000_000,
    30_000_000,
    60_000_000,
]

# Classes of SQLSTATE (manual, appendix "PostgreSQL Error Codes"). A function may RAISE any other:
# those are counted together, because each class is a label.
# fmt: off
SQLSTATE_CLASSES: Final = frozenset((
    "01", "02", "03", "08", "09", "0A", "0B", "0F", "0L", "0P", "0Z", "10", "20", "21", "22", "23",
    "24", "25", "26", "27", "28", "2B", "2D", "2F", "34", "38", "39", "3B", "3D", "3F", "40", "42",
    "44", "53", "54", "55", "57", "58", "72", "F0", "HV", "P0", "XX",
))
# fmt: on
OTHER: Final = "other"
_MAX_NAMES: Final = 64


@final
class Histogram:
    """How many durations fell into each bucket, and their sum; the last count is that above all bounds."""

    def __init__(self) -> None:
        self.counts: vec[i64] = vec[i64]([0] * (len(BOUNDS_US) + 1))
        self.sum_us: i64 = 0

    def observe(self, us: i64) -> None:
        """Count one duration in µs; a negative one, from a clock that was set back, counts as none."""
        if us < 0:
            us = 0
        self.counts[_bucket(us)] += 1
        self.sum_us += us

    def total(self) -> int:
        """Return the number of durations."""
        return sum(self.counts)

    def add(self, other: Histogram) -> None:
        """Count what `other` has counted too."""
        for index in range(len(BOUNDS_US) + 1):
            self.counts[index] += other.counts[index]
        self.sum_us += other.sum_us


def _bucket(us: i64) -> i64:
    """Return the index in BOUNDS_US, of the first bound that isn't below `us`.

    Spelled out, because machine comparisons touch no object where a loop over the list touches them all.
    """
    if us <= 5_000:
        if us <= 500:
            return 0 if us <= 100 else 1 if us <= 250 else 2
        return 3 if us <= 1_000 else 4 if us <= 2_500 else 5
    if us <= 500_000:
        if us <= 50_000:
            return 6 if us <= 10_000 else 7 if us <= 25_000 else 8
        return 9 if us <= 100_000 else 10 if us <= 250_000 else 11
    if us <= 5_000_000:
        return 12 if us <= 1_000_000 else 13 if us <= 2_500_000 else 14
    return 15 if us <= 10_000_000 else 16 if us <= 30_000_000 else 17 if us <= 60_000_000 else 18


@final
class Tally:
    """Counts by name, for at most 64 names: any further one is counted as `other`."""

    def __init__(self) -> None:
        self.counts: Final[dict[str, int]] = {}

    def add(self, name: str) -> None:
        """Count `name` once more."""
        known = self.counts.get(name)
        if known is not None:
            self.counts[name] = known + 1
        elif len(self.counts) < _MAX_NAMES:
            self.counts[name] = 1
        else:
            self.counts[OTHER] = self.counts.get(OTHER, 0) + 1


def sqlstate_class(sqlstate: str) -> str:
    """Return the class of an SQLSTATE, its first two characters; `other` for what PostgreSQL doesn't have."""
    kind = sqlstate[:2]
    return kind if kind in SQLSTATE_CLASSES else OTHER


@final
class PoolStats:
    """What one pool has done since the start."""

    def __init__(self) -> None:
        # By intent, from the first byte sent to the last byte received.
        self.query_time: Final[dict[str, Histogram]] = {kind: Histogram() for kind in KINDS}
        # The one that was used last: most statements are of one kind.
        self._kind: str = "unknown"
        self._histogram: Histogram = self.query_time["unknown"]
        # By intent, waiting for a server connection.
        self.queue_times: Final[dict[str, Histogram]] = {kind: Histogram() for kind in KINDS}
        self._queue: Histogram = self.queue_times["unknown"]
        # From the first packet to the first ReadyForQuery of a new server connection.
        self.connect_time: Final = Histogram()
        self.connect_failures: i64 = 0
        # Bytes from and to clients.
        self.bytes_in: i64 = 0
        self.bytes_out: i64 = 0
        # By class of SQLSTATE.
        self.errors: Final = Tally()
        # Sessions that were pinned, by reason.
        self.pins: Final = Tally()
        # Reads that were sent a second time: by the SQLSTATE with which they were refused here, or "lost".
        self.retries: Final = Tally()
        # Cancel requests that went to a server.
        self.cancels: i64 = 0
        # Connections that were cleaned for another session.
        self.resets: i64 = 0
        # Requests that gave up after acquire_timeout.
        self.acquire_timeouts: i64 = 0
        # Times that a connection was lent to a session.
        self.assignments: i64 = 0
        # Transactions, those of one statement too, and the µs from their first byte sent to their last received.
        self.transactions: i64 = 0
        self.transaction_us: i64 = 0
        # Statements that were prepared on connections that are closed by now.
        self.server_parses: i64 = 0
        # Named statements that such connections held when a session prepared them.
        self.server_spared: i64 = 0
        # Units that had identity or settings set in front of them, and how many of these had an identity.
        self.preludes: i64 = 0
        self.claims: i64 = 0

    @property
    def queue_time(self) -> Histogram:
        """Return how long statements of any intent waited for a server connection."""
        whole = Histogram()
        for each in self.queue_times.values():
            whole.add(each)
        return whole

    def statement(
        self, kind: str, queued_us: i64, duration_us: i64, bytes_in: i64, bytes_out: i64, sqlstate: bytes
    ) -> None:
        """Count one statement that a server has answered; `sqlstate` is empty where it went well."""
        if kind is not self._kind:
            self._kind = kind
            self._histogram = self.query_time.get(kind, self.query_time["unknown"])
            self._queue = self.queue_times.get(kind, self.queue_times["unknown"])
        self._histogram.observe(duration_us)
        self._queue.observe(queued_us)
        self.bytes_in += bytes_in
        self.bytes_out += bytes_out
        if len(sqlstate) > 0:
            self.errors.add(sqlstate_class(sqlstate.decode("ascii", "replace")))


@final
class ProxyStats:
    """What the proxy's clients have done since the start, whatever the pool."""

    def __init__(self) -> None:
        # Client connections that were accepted, before any login.
        self.connections: i64 = 0
        # Those turned away because of max_clients, or the caps before a login.
        self.connections_refused: i64 = 0
        self.logins: i64 = 0
        # By reason, which the client isn't told: unknown, wrong, expired, revoked, address, …
        self.logins_refused: Final = Tally()
        # Statements that the proxy itself refused, by code.
        self.denials: Final = Tally()
        # Sessions that were closed because their key was revoked or ran out.
        self.revocations: i64 = 0
        # Cancel requests that came, and those with a wrong key.
        self.cancels: i64 = 0
        self.cancels_refused: i64 = 0
        # How late the event loop woke a timer.
        self.loop_delay: Final = Histogram()
