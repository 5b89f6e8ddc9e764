"""Averages over the window of one or two minutes."""

from __future__ import annotations

from proxy.admin.averages import Averages
from proxy.admin.facts import Figures


def test_before_the_first_minute_it_is_an_average_since_the_start() -> None:
    averages = Averages(1000.0)
    done = Figures(xact_count=50, query_count=100, received=1000, query_time=5000, xact_time=10_000)
    mean = averages.of("app", done, 1009.0)
    assert (mean.xact_count, mean.query_count, mean.received) == (5, 10, 100)
    assert (mean.query_time, mean.xact_time) == (50, 200)


def test_a_window_begins_every_60_seconds() -> None:
    averages = Averages(1000.0)
    assert not averages.due(1059.9)
    assert averages.due(1060.0)
    averages.turn(1060.0, {})
    assert not averages.due(1119.9)


def test_an_average_goes_back_to_the_window_before() -> None:
    averages = Averages(1000.0)
    averages.turn(1060.0, {"app": Figures(query_count=600)})
    # The older figures are those of the start still.
    assert averages.of("app", Figures(query_count=600), 1060.0).query_count == 10
    averages.turn(1120.0, {"app": Figures(query_count=600)})
    assert averages.of("app", Figures(query_count=1200), 1120.0).query_count == 10
    averages.turn(1180.0, {"app": Figures(query_count=1200)})
    averages.turn(1240.0, {"app": Figures(query_count=1200)})
    assert averages.of("app", Figures(query_count=1200), 1240.0).query_count == 0


def test_waiting_is_an_average_for_each_assignment() -> None:
    averages = Averages(1000.0)
    mean = averages.of("app", Figures(server_assignment_count=4, wait_time=1000), 1000.0)
    assert mean.wait_time == 250
    assert mean.server_assignment_count == 4


def test_nothing_done_is_nothing_on_average() -> None:
    assert Averages(1000.0).of("app", Figures(), 1000.0) == Figures()


def test_of_all_databases_it_is_that_of_their_sum() -> None:
    averages = Averages(1000.0)
    figures = {
        "a": Figures(query_count=30, query_time=300),
        "b": Figures(query_count=10, query_time=2_000),
    }
    mean = averages.of_all(figures, 1001.0)
    assert (mean.query_count, mean.query_time) == (20, 57)
