from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.observe.stats import BOUNDS_US, KINDS, OTHER, Histogram, PoolStats, Tally, sqlstate_class


@pytest.mark.parametrize(
    ("us", "bucket"),
    [(0, 0), (1, 0), (100, 0), (101, 1), (250, 1), (1_000_000, 12), (1_000_001, 13), (60_000_000, 17)],
)
def test_a_duration_falls_into_the_first_bucket_that_holds_it(us: int, bucket: int) -> None:
    histogram = Histogram()
    histogram.observe(us)
    assert [index for index, number in enumerate(histogram.counts) if number] == [bucket]
    assert histogram.sum_us == us


def test_a_duration_above_all_bounds_is_the_last() -> None:
    histogram = Histogram()
    histogram.observe(BOUNDS_US[-1] + 1)
    histogram.observe(2**50)
    assert histogram.counts[-1] == 2


def test_a_clock_that_was_set_back_counts_as_none() -> None:
    histogram = Histogram()
    histogram.observe(-5_000)
    assert (histogram.counts[0], histogram.sum_us) == (1, 0)


@given(st.lists(st.integers(0, 10**9)))
def test_a_histogram_loses_nothing(durations: list[int]) -> None:
    histogram = Histogram()
    for us in durations:
        histogram.observe(us)
    assert histogram.total() == len(durations)
    assert histogram.sum_us == sum(durations)
    for index, bound in enumerate(BOUNDS_US):
        assert sum(histogram.counts[: index + 1]) == sum(us <= bound for us in durations)


def test_a_histogram_takes_over_what_another_has_counted() -> None:
    one, other = Histogram(), Histogram()
    one.observe(50)
    other.observe(50)
    other.observe(2**50)
    one.add(other)
    assert (one.counts[0], one.counts[-1], one.sum_us) == (2, 1, 100 + 2**50)


def test_bounds_rise() -> None:
    assert sorted(set(BOUNDS_US)) == BOUNDS_US


def test_a_tally_counts_by_name() -> None:
    tally = Tally()
    for name in ("listen", "hold cursor", "listen"):
        tally.add(name)
    assert tally.counts == {"listen": 2, "hold cursor": 1}


def test_a_tally_is_bounded() -> None:
    tally = Tally()
    for number in range(1000):
        tally.add(f"name {number}")
    tally.add("name 3")
    assert len(tally.counts) == 65
    assert tally.counts[OTHER] == 1000 - 64
    assert tally.counts["name 3"] == 2


@pytest.mark.parametrize(
    ("sqlstate", "known"),
    [
        ("23505", "23"),
        ("57014", "57"),
        ("P0001", "P0"),
        ("XX000", "XX"),
        ("ZZ123", OTHER),
        ("", OTHER),
        ("2", OTHER),
    ],
)
def test_a_class_is_one_that_postgresql_has(sqlstate: str, known: str) -> None:
    assert sqlstate_class(sqlstate) == known


def test_a_pool_counts_a_statement() -> None:
    stats = PoolStats()
    stats.statement("read", 20, 400, 50, 90, b"")
    stats.statement("write", 0, 2_000, 10, 1, b"23505")
    assert {kind: stats.query_time[kind].total() for kind in KINDS} == {
        "read": 1,
        "write": 1,
        "ddl": 0,
        "transaction": 0,
        "session": 0,
        "unknown": 0,
    }
    assert stats.query_time["write"].sum_us == 2_000
    assert {kind: each.sum_us for kind, each in stats.queue_times.items() if each.total()} == {
        "read": 20,
        "write": 0,
    }
    assert (stats.queue_time.total(), stats.queue_time.sum_us) == (2, 20)
    assert (stats.bytes_in, stats.bytes_out) == (60, 91)
    assert stats.errors.counts == {"23": 1}


def test_a_kind_that_nobody_knows_is_unknown() -> None:
    stats = PoolStats()
    stats.statement("novel", 0, 1, 0, 0, b"\xff\xff")
    assert (stats.query_time["unknown"].total(), stats.queue_times["unknown"].total()) == (1, 1)
    assert stats.errors.counts == {OTHER: 1}
