from __future__ import annotations

import pytest

from proxy.observe.history import ALL, History, percentile
from proxy.observe.snapshot import PoolSnapshot, Snapshot
from proxy.observe.stats import BOUNDS_US, Histogram, PoolStats, ProxyStats


class Pools:
    """Two pools, one of them on two hosts, whose counters a test moves."""

    def __init__(self) -> None:
        self.stats = {
            ("primary", "main"): PoolStats(),
            ("readonly", "main"): PoolStats(),
            ("readonly", "copy"): PoolStats(),
        }

    def work(self, pool: str, host: str, number: int = 1, us: int = 100, sqlstate: bytes = b"") -> None:
        for _ in range(number):
            self.stats[pool, host].statement("read", 0, us, 10, 20, sqlstate)

    def snapshot(self) -> Snapshot:
        pools = [
            PoolSnapshot("app", pool, host, 1, 5, 1, 1, 2, stats)
            for (pool, host), stats in self.stats.items()
        ]
        return Snapshot("1", False, True, False, 7, 100, ProxyStats(), pools)


def test_the_first_sample_only_begins_to_count() -> None:
    pools, history = Pools(), History()
    pools.work("primary", "main", 1000)
    history.add(pools.snapshot(), 10.0, 1000.0)
    assert history.since("app") == []
    assert history.number("app") == 0


def test_rates_are_of_the_time_between() -> None:
    pools, history = Pools(), History()
    pools.work("primary", "main", 1000)
    history.add(pools.snapshot(), 10.0, 1000.0)
    pools.work("primary", "main", 6)
    pools.work("readonly", "main", 2)
    pools.work("readonly", "copy", 3, sqlstate=b"22012")
    history.add(pools.snapshot(), 12.0, 1002.0)
    (sample,) = history.since("app")
    assert (sample.number, sample.at, sample.clients) == (1, 1002.0, 7)
    assert {name: each.statements for name, each in sample.pools.items()} == {
        ALL: 5.5,
        "primary": 3.0,
        "readonly": 2.5,
    }
    assert (sample.pools["readonly"].errors, sample.pools["primary"].errors) == (1.5, 0.0)
    assert (sample.pools[ALL].bytes_in, sample.pools[ALL].bytes_out) == (55.0, 110.0)
    assert (sample.pools[ALL].active, sample.pools["readonly"].waiting) == (3, 4)
    assert history.last["app", "readonly", "copy"].statements == 1.5


def test_only_newer_samples_are_told() -> None:
    pools, history = Pools(), History()
    for second in range(5):
        history.add(pools.snapshot(), float(second), float(second))
    assert [sample.number for sample in history.since("app", 2)] == [3, 4]
    assert history.since("app", 4) == []
    assert history.number("app") == 4
    assert history.since("unknown") == []


def test_the_oldest_samples_go() -> None:
    pools, history = Pools(), History(samples=3)
    for second in range(10):
        history.add(pools.snapshot(), float(second), float(second))
    assert [sample.number for sample in history.since("app")] == [7, 8, 9]


def test_a_pool_that_is_new_is_counted_from_its_start() -> None:
    pools, history = Pools(), History()
    history.add(pools.snapshot(), 0.0, 0.0)
    pools.stats["background", "main"] = PoolStats()
    pools.work("background", "main", 4)
    history.add(pools.snapshot(), 2.0, 2.0)
    assert history.since("app")[0].pools["background"].statements == 2.0


def test_percentiles_are_of_the_time_between_alone() -> None:
    pools, history = Pools(), History()
    pools.work("primary", "main", 1000, us=5_000_000)
    history.add(pools.snapshot(), 0.0, 0.0)
    pools.work("primary", "main", 10, us=80)
    history.add(pools.snapshot(), 2.0, 2.0)
    history.add(pools.snapshot(), 4.0, 4.0)
    first, second = history.since("app")
    assert first.pools["primary"].p50 == 0.05
    assert (first.pools["primary"].p99 or 9.0) <= 0.1
    assert second.pools["primary"].p50 is None


@pytest.mark.parametrize(
    ("us", "share", "least", "most"),
    [
        ([100] * 10, 0.5, 0.0, 0.1),
        ([200] * 99 + [900_000], 0.5, 0.1, 0.25),
        ([200] * 99 + [900_000], 0.995, 500.0, 1000.0),
        ([10**9] * 3, 0.5, BOUNDS_US[-1] / 1000, BOUNDS_US[-1] / 1000),
    ],
)
def test_a_percentile_lies_in_its_bucket(us: list[int], share: float, least: float, most: float) -> None:
    histogram = Histogram()
    for each in us:
        histogram.observe(each)
    found = percentile(list(histogram.counts), share)
    assert found is not None
    assert least <= found <= most


def test_nothing_has_no_percentile() -> None:
    assert percentile([0] * (len(BOUNDS_US) + 1), 0.5) is None
