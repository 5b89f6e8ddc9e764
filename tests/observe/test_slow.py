"""Slow statements in the log: one line each, and not too many of them."""

from __future__ import annotations

import pytest

from proxy.observe.slow import MOST_A_SECOND, SlowLog


def tell(slow: SlowLog, now: float, statement: str = "SELECT $1", sqlstate: str = "") -> None:
    slow.tell(now, 1_500_000, 250_000, "ctm_abc", "pool readonly on replica1", 7, sqlstate, statement, "f00f")


def test_a_slow_statement_is_one_warning(caplog: pytest.LogCaptureFixture) -> None:
    tell(SlowLog("app"), 10.0)
    (record,) = caplog.records
    assert record.levelname == "WARNING"
    assert record.message == (
        "app: slow statement: 1.500 s, of which 0.250 s waiting; key ctm_abc; pool readonly on replica1; 7 rows;"
        " f00f SELECT $1"
    )


def test_what_it_failed_with_is_told(caplog: pytest.LogCaptureFixture) -> None:
    tell(SlowLog("app"), 10.0, sqlstate="57014")
    assert "; failed with 57014; f00f" in caplog.text


def test_when_everything_is_slow_the_rest_are_counted(caplog: pytest.LogCaptureFixture) -> None:
    slow = SlowLog("app")
    for _ in range(MOST_A_SECOND + 5):
        tell(slow, 10.5)
    assert len(caplog.records) == MOST_A_SECOND
    tell(slow, 11.0)
    assert caplog.records[-2].message == "app: 5 more slow statements within a second"
    assert len(caplog.records) == MOST_A_SECOND + 2
