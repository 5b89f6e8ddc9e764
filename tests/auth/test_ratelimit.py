from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.auth.ratelimit import TokenBucket


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
