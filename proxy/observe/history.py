"""The last quarter of an hour, a sample each two seconds: what the pools did, how fast, and who waited.

Samples are differences of the counters that the metrics are made of, so they cost the path of a query nothing. Of
each pool's hosts they are summed up; what a host does by itself, only the last sample tells.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Final

from proxy.observe.snapshot import PoolSnapshot, Snapshot
from proxy.observe.stats import BOUNDS_US

INTERVAL: Final = 2.0
SAMPLES: Final = 450
# What `Activity` of all pools of a database is kept under.
ALL: Final = ""


@dataclass(slots=True)
class Activity:
    """What happened between two samples; what there was at the second. Rates are per second, times in ms.

    Percentiles are read from a histogram: exact to its buckets only. They are None where nothing was asked.
    """

    statements: float = 0.0
    errors: float = 0.0
    bytes_in: float = 0.0
    bytes_out: float = 0.0
    p50: float | None = None
    p95: float | None = None
    p99: float | None = None
    active: int = 0
    waiting: int = 0


@dataclass(frozen=True, slots=True)
class Sample:
    """One moment of one database; `clients` are those of all. `pools` is by name; ALL is all of them."""

    number: int
    at: float
    clients: int
    pools: dict[str, Activity]


@dataclass(slots=True)
class _Counters:
    """What has been counted since the start, by one pool on one host, or by several."""

    times: list[int] = field(default_factory=lambda: [0] * (len(BOUNDS_US) + 1))
    errors: int = 0
    bytes_in: int = 0
    bytes_out: int = 0
    active: int = 0
    waiting: int = 0

    def add(self, other: _Counters) -> None:
        self.times = [mine + theirs for mine, theirs in zip(self.times, other.times, strict=True)]
        self.errors += other.errors
        self.bytes_in += other.bytes_in
        self.bytes_out += other.bytes_out
        self.active += other.active
        self.waiting += other.waiting

    def activity(self, before: _Counters, seconds: float) -> Activity:
        """Return what came since `before`, so many seconds ago."""
        times = [now - then for now, then in zip(self.times, before.times, strict=True)]
        return Activity(
            sum(times) / seconds,
            (self.errors - before.errors) / seconds,
            (self.bytes_in - before.bytes_in) / seconds,
            (self.bytes_out - before.bytes_out) / seconds,
            percentile(times, 0.50),
            percentile(times, 0.95),
            percentile(times, 0.99),
            self.active,
            self.waiting,
        )


class History:
    """Samples of each database, the oldest first; and of each pool on each host what it did last."""

    def __init__(self, samples: int = SAMPLES) -> None:
        self._samples: dict[str, deque[Sample]] = {}
        self._most = samples
        self._before: dict[tuple[str, str, str], _Counters] = {}
        self._sampled_at: float | None = None
        self._number = 0
        # By database, pool and host.
        self.last: dict[tuple[str, str, str], Activity] = {}

    def add(self, snapshot: Snapshot, now: float, at: float) -> None:
        """Sample: `now` is a monotonic clock's, `at` the Unix time to show. The first one only begins to count."""
        counters = {(pool.database, pool.pool, pool.host): _counted(pool) for pool in snapshot.pools}
        before, self._before = self._before, counters
        since, self._sampled_at = self._sampled_at, now
        if since is None or now <= since:
            return
        self._number += 1
        self.last = {
            place: counted.activity(before.get(place, _Counters()), now - since)
            for place, counted in counters.items()
        }
        for database in {place[0] for place in counters}:
            samples = self._samples.setdefault(database, deque(maxlen=self._most))
            pools = {
                name: _sum(counters, database, name).activity(_sum(before, database, name), now - since)
                for name in {ALL, *(pool for of, pool, _ in counters if of == database)}
            }
            samples.append(Sample(self._number, at, snapshot.clients, pools))

    def since(self, database: str, number: int = 0) -> Sequence[Sample]:
        """Return the samples of a database behind the one with this number."""
        return [sample for sample in self._samples.get(database, ()) if sample.number > number]

    def number(self, database: str) -> int:
        """Return the newest sample's number; 0 where there is none yet."""
        samples = self._samples.get(database)
        return samples[-1].number if samples else 0


def percentile(counts: Sequence[int], share: float) -> float | None:
    """Return the time in ms below which this share of the durations lies; None where there are none.

    `counts` is of a Histogram. Within a bucket durations count as spread evenly; those above all bounds as the last.
    """
    wanted = sum(counts) * share
    if not wanted:
        return None
    lower = 0
    for bound, count in zip(BOUNDS_US, counts, strict=False):
        if count and wanted <= count:
            return round((lower + (bound - lower) * wanted / count) / 1000, 3)
        wanted -= count
        lower = bound
    return BOUNDS_US[-1] / 1000


def _counted(pool: PoolSnapshot) -> _Counters:
    stats = pool.stats
    times = [0] * (len(BOUNDS_US) + 1)
    for histogram in stats.query_time.values():
        times = [sum_ + count for sum_, count in zip(times, histogram.counts, strict=True)]
    errors = sum(stats.errors.counts.values())
    return _Counters(times, errors, int(stats.bytes_in), int(stats.bytes_out), pool.active, pool.waiting)


def _sum(counters: dict[tuple[str, str, str], _Counters], database: str, pool: str) -> _Counters:
    together = _Counters()
    found: Iterable[_Counters] = (
        each for (of, name, _), each in counters.items() if of == database and pool in (ALL, name)
    )
    for each in found:
        together.add(each)
    return together
