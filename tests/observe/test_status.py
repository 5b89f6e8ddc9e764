from __future__ import annotations

import json
from typing import Any

from proxy.observe.history import History
from proxy.observe.snapshot import HostSnapshot, PoolSnapshot, Snapshot
from proxy.observe.stats import PoolStats, ProxyStats
from proxy.observe.status import Status
from tests.observe.test_recent import AT, Log


class Wall:
    def __init__(self) -> None:
        self.now = AT

    def __call__(self) -> float:
        return self.now


def snapshot() -> Snapshot:
    return Snapshot(
        "1.2",
        True,
        True,
        False,
        3,
        100,
        ProxyStats(),
        [
            PoolSnapshot("app", "readonly", "copy", 1, 5, 2, 1, 4, PoolStats(), pinned=1),
            PoolSnapshot("other", "primary", "main", 1, 9, 0, 1, 0, PoolStats()),
        ],
        [
            HostSnapshot("app", "copy", "replica", False, "open", lag=1.5, error="\x1b[2Jrefused\u202e"),
            HostSnapshot("other", "main", "primary", True, response_time=0.0015),
        ],
        {"app": 2, "other": 5},
    )


def told(status: Status, database: str = "app", since: int = 0) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(json.dumps(status.tell(database, ["app", "other"], since)))
    return found


def test_one_database_is_told_of() -> None:
    wall = Wall()
    status = Status(snapshot, History(), None, wall)
    wall.now += 60
    found = told(status)
    assert (found["database"], found["databases"]) == ("app", ["app", "other"])
    assert (found["state"], found["version"], found["uptime"], found["at"]) == ("ready", "1.2", 60.0, AT + 60)
    assert (found["clients"], found["max_clients"], found["stranded"]) == (3, 100, 2)
    (pool,) = found["pools"]
    assert [pool[name] for name in ("pool", "host", "active", "idle", "waiting", "pinned", "maximum")] == [
        "readonly",
        "copy",
        2,
        1,
        4,
        1,
        5,
    ]
    (host,) = found["hosts"]
    assert (host["host"], host["connected"], host["breaker"], host["lag_s"], host["response_ms"]) == (
        "copy",
        False,
        "open",
        1.5,
        None,
    )
    assert host["error"] == "\\x1b[2Jrefused\\u202e"
    assert told(status, "other")["hosts"][0]["response_ms"] == 1.5


def test_history_is_by_column_and_only_what_is_new() -> None:
    history = History()
    for second in range(4):
        history.add(snapshot(), float(second), AT + second)
    status = Status(snapshot, history, None, Wall())
    whole, rest = told(status)["history"], told(status, since=2)["history"]
    assert (whole["last"], whole["at"]) == (3, [AT + 1, AT + 2, AT + 3])
    assert whole["pools"].keys() == {"", "readonly"}
    assert whole["pools"]["readonly"]["waiting"] == [4, 4, 4]
    assert whole["pools"][""]["p50_ms"] == [None, None, None]
    assert (rest["last"], rest["at"], rest["clients"]) == (3, [AT + 3], [3])
    assert told(status, since=3)["history"]["last"] == 3


def test_without_an_access_log_the_last_minutes_are_unknown() -> None:
    recent = told(Status(snapshot, History(), None, Wall()))["recent"]
    assert recent == {
        "enabled": False,
        "seconds": 0,
        "share": 1.0,
        "statements": [],
        "keys": [],
        "denials": [],
    }


def test_statements_keys_and_denials_are_told() -> None:
    log = Log()
    log.statement("SELECT 1", us=3000)
    log.statement("SELECT 2", us=1000, sqlstate=b"22012")
    log.event("denied", reason="no", text="DELETE FROM t")
    log.flush()
    recent = told(Status(snapshot, History(), log.recent, Wall()))["recent"]
    (statement,), (key,), (denial,) = recent["statements"], recent["keys"], recent["denials"]
    assert (statement["statement"], statement["intent"], statement["count"]) == ("SELECT $1", "read", 2)
    assert (statement["total_ms"], statement["mean_ms"], statement["max_ms"]) == (4.0, 2.0, 3.0)
    assert (statement["errors"], statement["rows"]) == (1, 6)
    assert (key["key_id"], key["count"], key["denied"], key["bytes_out"]) == ("ctm_aaaaaaaaaaaa", 2, 1, 40)
    assert (denial["at"], denial["count"], denial["event"], denial["code"]) == (AT, 1, "denied", "CODE")


def test_the_foremost_of_each_order_are_told() -> None:
    log = Log()
    for number in range(60):
        log.statement(f"SELECT c{number} FROM t", us=10_000)
    for _ in range(30):
        log.statement("SELECT quick FROM t", us=1)
    log.flush()
    recent = told(Status(snapshot, History(), log.recent, Wall()))["recent"]
    assert len(recent["statements"]) < 60
    assert "SELECT quick FROM t" in [each["statement"] for each in recent["statements"]]
