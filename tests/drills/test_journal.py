"""The judges of the drills: each wrong that they are to find is found in a made-up journal."""

from __future__ import annotations

import dataclasses

import pytest

from tests.drills.journal import Act, Journal, Reckoning, first, longest_gap, rates, reckon

_NOTHING = Reckoning(lost=0, twice=0, refused_but_there=0, unknown=0, in_doubt=1, in_doubt_there=0)


def act(began: float, ended: float, failed: str = "") -> Act:
    return Act("writer 1", "write", began, ended, failed)


def journal() -> Journal:
    return Journal(
        acknowledged={(1, 1): act(0, 1), (1, 2): act(1, 2)},
        in_doubt={(1, 3): act(2, 3, "cut off")},
        refused={(1, 4): act(3, 4, "57P03")},
    )


@pytest.mark.parametrize(
    ("rows", "found"),
    [
        ([(1, 1), (1, 2)], {}),
        ([(1, 1)], {"lost": 1}),
        ([(1, 1), (1, 2), (1, 2), (1, 2)], {"twice": 1}),
        ([(1, 1), (1, 2), (1, 4)], {"refused_but_there": 1}),
        ([(1, 1), (1, 2), (7, 1)], {"unknown": 1}),
        ([(1, 1), (1, 2), (1, 3)], {"in_doubt_there": 1}),
        ([(1, 1), (1, 2), (1, 3), (1, 3)], {"in_doubt_there": 1, "twice": 1}),
    ],
)
def test_a_reckoning_finds_what_is_wrong(rows: list[tuple[int, int]], found: dict[str, int]) -> None:
    assert reckon(journal(), rows) == dataclasses.replace(_NOTHING, **found)


def test_a_gap_ends_with_an_answer_and_not_with_an_error() -> None:
    acts = [act(0, 1), act(1, 2, "57P03"), act(1, 4)]
    assert longest_gap(acts, 0, 5) == 3


def test_a_gap_may_be_at_either_end() -> None:
    assert longest_gap([act(0, 4)], 0, 5) == 4
    assert longest_gap([act(0, 1)], 0, 5) == 4
    assert longest_gap([], 0, 5) == 5


def test_the_first_that_ended_well_counts() -> None:
    acts = [act(0, 1), act(1, 3, "57P03"), act(2, 5), act(4, 6)]
    assert first(acts, 2) == 5
    assert first(acts, 7) is None


def test_rates_count_what_ended_well() -> None:
    acts = [act(0, 10.05), act(0, 10.15), act(0, 10.16), act(0, 10.17, "57P03"), act(0, 9.9), act(0, 10.4)]
    assert rates(acts, 10.0, 10.3) == [10.0, 20.0, 0.0]


def test_an_act_is_under_way_from_its_beginning_to_its_end() -> None:
    assert act(1, 3).during(2, 2.5)
    assert act(1, 3).during(3, 4)
    assert act(1, 3).during(0, 1)
    assert not act(1, 3).during(3.5, 4)
    assert not act(1, 3).during(0, 0.5)
