from __future__ import annotations

from datetime import UTC, datetime, timedelta, timezone
from typing import Any

import pytest

from proxy.errors import SluiceError
from proxy.logreader.wanted import Wanted, as_text, wanted
from tests.logreader.records import record

NOW = datetime(2026, 11, 28, 12, 0, tzinfo=UTC)


@pytest.mark.parametrize(
    ("asked", "like", "unlike"),
    [
        ({"key": "ctm_ab12cd34ef56"}, {}, {"key_id": "ctm_000000000000"}),
        ({"user": "ann@example.com"}, {}, {"user_id": None}),
        ({"intent": "read"}, {}, {"intent": "write"}),
        ({"event": "denied"}, {"event": "denied"}, {}),
        ({"code": "rate_limit_exceeded"}, {"code": "RATE_LIMIT_EXCEEDED"}, {}),
        ({"sqlstate": "42501"}, {"sqlstate": "42501"}, {"sqlstate": "42P01"}),
        ({"sqlstate": "42"}, {"sqlstate": "42P01"}, {"sqlstate": "25006"}),
        ({"sqlstate": "42p01"}, {"sqlstate": "42P01"}, {}),
        ({"slower": "250ms"}, {"duration_us": 250_000}, {"duration_us": 249_999}),
        ({"slower": "0"}, {"duration_us": 0}, {"duration_us": None}),
        ({"since": "10m"}, {"at": "2026-11-28T11:50:00+00:00"}, {"at": "2026-11-28T11:49:59.999+00:00"}),
        ({"until": "10m"}, {"at": "2026-11-28T11:49:59.999+00:00"}, {"at": "2026-11-28T11:50:00+00:00"}),
        ({"since": "2026-11-28"}, {}, {"at": "2026-11-27T23:59:59.999+00:00"}),
        ({"since": "2026-11-28T13:00+02:00"}, {}, {"at": "2026-11-28T10:59:59+00:00"}),
        ({"key": "ctm_ab12cd34ef56", "intent": "read"}, {}, {"intent": "write"}),
    ],
)
def test_a_record_is_wanted_or_not(
    asked: dict[str, str], like: dict[str, Any], unlike: dict[str, Any]
) -> None:
    filtered = wanted(NOW, **asked)
    assert filtered.covers(record(**like))
    assert not filtered.covers(record(**unlike))


def test_everything_is_wanted_where_nothing_is_said() -> None:
    assert wanted(NOW) == Wanted()
    assert Wanted().covers({"id": "x", "at": "2026-11-28T12:00:00.000Z", "event": "login"})


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        ({"intent": "reads"}, "--intent: one of read, write, "),
        ({"event": "query"}, "--event: one of statement, login, "),
        ({"sqlstate": "425"}, "--sqlstate: five characters are needed, or two for a class"),
        ({"slower": "250"}, "--slower: a duration is needed"),
        ({"since": "yesterday"}, "--since: how long ago .* not yesterday"),
        ({"until": "99999999999d"}, "--until: how long ago"),
    ],
)
def test_what_cannot_be_wanted_is_told(asked: dict[str, str], said: str) -> None:
    with pytest.raises(SluiceError, match=said):
        wanted(NOW, **asked)


def test_the_condition_begins_with_the_time_and_holds_no_value() -> None:
    asked = wanted(NOW, key="k'", user="u", sqlstate="42", slower="250ms", until="1m")
    condition, arguments = asked.condition(NOW - timedelta(days=1))
    assert condition == (
        "at >= $1 AND at < $2 AND key_id = $3 AND user_id = $4 AND left(sqlstate, 2) = $5 AND duration_us >= $6"
    )
    assert arguments == [NOW - timedelta(days=1), NOW - timedelta(minutes=1), "k'", "u", "42", 250_000]


def test_times_of_any_zone_sort_as_text() -> None:
    east = datetime(2026, 11, 28, 13, 0, tzinfo=timezone(timedelta(hours=2)))
    assert as_text(east) == "2026-11-28T11:00:00.000Z" < as_text(NOW) == "2026-11-28T12:00:00.000Z"
