from __future__ import annotations

import logging
from collections.abc import Iterable
from types import SimpleNamespace
from typing import Any, cast

import pytest

from proxy.board import Board
from proxy.observe.access_log import AccessLog
from proxy.observe.record import session_part
from proxy.observe.snapshot import Snapshot
from proxy.observe.stats import ProxyStats
from proxy.session.served import Served
from tests.observe.decoder import decode

SESSION = session_part("ctm_aaaaaaaaaaaa", "u", "", "", "app")


def snapshot() -> Snapshot:
    return Snapshot("1", False, True, False, 0, 1, ProxyStats())


def board(access_log: AccessLog) -> Board:
    served = cast(Served, SimpleNamespace(keys=None))
    return Board(snapshot, {"app": served}, access_log, ProxyStats())


def recent(told: Any) -> dict[str, Any]:
    found: dict[str, Any] = told["recent"]
    return found


async def copy(payload: Iterable[memoryview], again: bool) -> None:
    """Take rows and keep nothing."""


async def test_what_is_logged_is_told() -> None:
    access_log = AccessLog(copy)
    told = board(access_log)
    access_log.buffer.event("denied", 1.0, SESSION, "why")
    access_log.flush()
    (denial,) = recent(told.tell("app", ["app"], 0))["denials"]
    assert denial["reason"] == "why"


async def test_without_an_access_log_that_is_told() -> None:
    assert recent(board(AccessLog(None)).tell("app", ["app"], 0))["enabled"] is False


async def test_the_access_log_goes_on_where_the_dashboard_cannot_read_it(
    caplog: pytest.LogCaptureFixture,
) -> None:
    stored: list[str] = []

    async def keep(payload: Iterable[memoryview], again: bool) -> None:
        stored.extend(row["reason"] for row in decode(b"".join(payload)[19:-2]))

    access_log = AccessLog(keep, flush_interval=3600.0)
    told = board(access_log)
    access_log.start()
    access_log.buffer.event("denied", 1.0, SESSION, "first")
    # An event that isn't where it should be: the rows end before it.
    access_log.buffer.events.append(1_000_000)
    with caplog.at_level(logging.ERROR):
        access_log.flush()
    access_log.buffer.event("denied", 1.0, SESSION, "second")
    access_log.flush()
    await access_log.close()
    assert stored == ["first", "second"]
    assert [record.name for record in caplog.records] == ["proxy.board"]
    assert len(recent(told.tell("app", ["app"], 0))["denials"]) == 1
