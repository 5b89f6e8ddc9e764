"""The circuit breaker: each state, and what leads to another."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from proxy.upstream.breaker import CLOSED, HALF_OPEN, OPEN, Breaker


def test_it_opens_after_so_many_failures_in_a_row() -> None:
    breaker = Breaker(3, 5.0)
    assert [breaker.failed(1.0), breaker.failed(2.0), breaker.failed(3.0)] == [False, False, True]
    assert (breaker.state, breaker.retry_at) == (OPEN, 8.0)


def test_a_success_in_between_starts_the_count_anew() -> None:
    breaker = Breaker(2, 5.0)
    breaker.failed(1.0)
    breaker.succeeded()
    assert not breaker.failed(2.0) and breaker.state == CLOSED


def test_an_open_one_lets_nobody_through_before_its_time() -> None:
    breaker = Breaker(1, 5.0)
    breaker.failed(1.0)
    assert not breaker.allows(5.9) and breaker.state == OPEN
    assert breaker.allows(6.0) and breaker.state == HALF_OPEN


def test_in_a_hurry_it_is_tried_at_once() -> None:
    breaker = Breaker(1, 5.0)
    breaker.failed(1.0)
    assert breaker.allows(1.1, hurry=True) and breaker.state == HALF_OPEN


def test_one_failure_opens_a_half_open_one_again_and_an_answer_closes_it() -> None:
    breaker = Breaker(3, 5.0)
    assert breaker.trip(1.0)
    breaker.allows(6.0)
    assert not breaker.failed(6.5), "it was open before"
    assert (breaker.state, breaker.retry_at) == (OPEN, 11.5)
    breaker.allows(11.5)
    breaker.succeeded()
    assert (breaker.state, breaker.failures) == (CLOSED, 0)


@given(
    st.integers(1, 5),
    st.lists(st.tuples(st.sampled_from(["ask", "hurry", "well", "ill"]), st.floats(0.01, 3.0))),
)
def test_it_is_open_for_exactly_retry_after(limit: int, events: list[tuple[str, float]]) -> None:
    breaker = Breaker(limit, 5.0)
    now, opened_at, in_a_row = 0.0, 0.0, 0
    for event, seconds in events:
        now += seconds
        if event in ("ask", "hurry"):
            allowed = breaker.allows(now, event == "hurry")
            assert allowed == (breaker.state != OPEN)
            if not allowed:
                assert now < opened_at + 5.0
        elif event == "well":
            breaker.succeeded()
            in_a_row = 0
        else:
            breaker.failed(now)
            in_a_row += 1
            if breaker.state == OPEN:
                opened_at = now
        assert (breaker.state == CLOSED) == (in_a_row < limit)
