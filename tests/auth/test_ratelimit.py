from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.auth.ratelimit import LeasedBucket, TokenBucket


def test_a_minute_of_statements_at_once_then_evenly() -> None:
    bucket = TokenBucket(60, 100.0)
    assert [bucket.take(100.0) for _ in range(60)] == [0.0] * 60
    assert bucket.take(100.0) == pytest.approx(1.0)
    assert bucket.take(100.25) == pytest.approx(0.75)
    assert bucket.take(101.0) == 0.0
    assert bucket.take(101.0) == pytest.approx(1.0)


def test_waiting_as_long_as_told_is_enough() -> None:
    bucket = TokenBucket(7, 0.0)
    now = 0.0
    for _ in range(50):
        wait = bucket.take(now)
        if wait:
            now += wait + 1e-9
            assert bucket.take(now) == 0.0


def test_it_never_holds_more_than_a_minute() -> None:
    bucket = TokenBucket(3, 0.0)
    assert [bucket.take(1e6) == 0.0 for _ in range(4)] == [True, True, True, False]


def test_a_clock_that_steps_back_gives_nothing() -> None:
    bucket = TokenBucket(1, 100.0)
    assert bucket.take(100.0) == 0.0
    assert bucket.take(0.0) == pytest.approx(60.0)
    assert bucket.take(160.1) == 0.0


def test_a_limit_of_nothing_allows_nothing() -> None:
    assert TokenBucket(0, 0.0).take(1e9) == 60.0


@given(st.integers(1, 1000), st.lists(st.floats(0, 30), max_size=200))
def test_never_more_than_the_limit_and_its_refill(per_minute: int, steps: list[float]) -> None:
    bucket = TokenBucket(per_minute, 0.0)
    now, taken = 0.0, 0
    for step in steps:
        now += step
        taken += bucket.take(now) == 0.0
    assert taken <= per_minute * (1 + now / 60) + 1e-6


def test_who_takes_several_waits_until_they_are_paid() -> None:
    bucket = TokenBucket(60, 0.0)
    assert bucket.take(0.0, 150) == 0.0
    assert bucket.take(0.0) == pytest.approx(91.0)
    assert bucket.take(90.5) == pytest.approx(0.5)
    assert bucket.take(91.0) == 0.0


class Store:
    """Answers when it is told to."""

    def __init__(self) -> None:
        self.asked: list[int] = []

    def lease(self, bucket: LeasedBucket, count: int) -> None:
        self.asked.append(count)


def leased(per_minute: int = 600) -> tuple[LeasedBucket, Store]:
    store = Store()
    return LeasedBucket(per_minute, 0.0, store.lease), store


def ask(bucket: LeasedBucket, now: float) -> list[float]:
    resumed: list[float] = []
    assert bucket.lacks(now)
    bucket.wait(resumed.append, now)
    return resumed


def test_a_shared_limit_is_leased_one_permit_at_first_and_more_while_it_is_used_up() -> None:
    bucket, store = leased()
    now = 0.0
    for _ in range(6):
        resumed = ask(bucket, now)
        bucket.granted(store.asked[-1], now)
        assert resumed == [now]
        for _ in range(store.asked[-1]):
            assert not bucket.lacks(now)
            assert bucket.take(now) == 0.0
        now += 0.1
    assert store.asked == [1, 2, 4, 8, 10, 10], "at most a second's worth"


def test_who_asks_rarely_leases_one_at_a_time_and_leaves_none() -> None:
    bucket, store = leased()
    for now in (0.0, 5.0, 10.0):
        ask(bucket, now)
        bucket.granted(store.asked[-1], now)
        assert bucket.take(now) == 0.0
    assert store.asked == [1, 1, 1]


def test_permits_that_were_not_used_in_time_are_lost() -> None:
    bucket, store = leased()
    ask(bucket, 0.0)
    bucket.granted(10, 0.0)
    assert bucket.take(0.9) == 0.0
    ask(bucket, 1.0)
    assert store.asked == [1, 1]


def test_one_question_serves_all_who_wait() -> None:
    bucket, store = leased()
    first, second = ask(bucket, 0.0), ask(bucket, 0.0)
    bucket.granted(2, 0.1)
    assert (first, second, store.asked) == ([0.1], [0.1], [1])


def test_a_refusal_says_for_how_long_and_nobody_asks_meanwhile() -> None:
    bucket, store = leased()
    resumed = ask(bucket, 0.0)
    bucket.refused(12.0, 0.0)
    assert resumed == [0.0]
    assert not bucket.lacks(2.0)
    assert bucket.take(2.0) == 10.0
    assert bucket.lacks(12.0)
    assert store.asked == [1]


def test_a_text_of_many_statements_passes_whole_and_is_paid_for() -> None:
    bucket, store = leased(60)
    ask(bucket, 0.0)
    bucket.granted(1, 0.0)
    assert bucket.take(0.0, 100) == 0.0
    ask(bucket, 0.1)
    assert store.asked[-1] == 60, "not more than the store could ever grant"
    bucket.granted(60, 0.1)
    ask(bucket, 0.1)
    bucket.refused(1.0, 0.1)
    assert bucket.take(0.1) == pytest.approx(39.0)


def test_without_the_store_the_bucket_holds_the_limit_alone() -> None:
    bucket, store = leased(60)
    ask(bucket, 0.0)
    bucket.granted(50, 0.0)
    for _ in range(50):
        assert bucket.take(0.0) == 0.0
    ask(bucket, 0.0)
    bucket.failed(0.0)
    allowed = 0
    while bucket.take(0.5) == 0.0:
        allowed += 1
    assert allowed == 10, "what was spent before counts"
    assert not bucket.lacks(0.5)
    assert bucket.lacks(1.0)
    assert len(store.asked) == 2
