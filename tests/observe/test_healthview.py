from __future__ import annotations

import json
from dataclasses import replace

import pytest

from proxy.observe.healthview import health, status
from proxy.observe.snapshot import HostSnapshot, PoolSnapshot, SinkSnapshot, Snapshot, SpoolSnapshot
from proxy.observe.stats import PoolStats, ProxyStats

MAIN = HostSnapshot("app", "main", "primary", True, response_time=0.001)
REPLICA = HostSnapshot("app", "replica1", "replica", True, response_time=0.002, lag=0.5)
AWAY = replace(REPLICA, connected=False, breaker="open", response_time=None, lag=None, error="refused")


def snapshot(*, ready: bool = True, draining: bool = False, replica: HostSnapshot = REPLICA) -> Snapshot:
    return Snapshot(
        version="1.2.3",
        compiled=True,
        ready=ready,
        draining=draining,
        clients=3,
        max_clients=5000,
        proxy=ProxyStats(),
        pools=[
            PoolSnapshot("app", "readonly", "replica1", 1, 5, 2, 1, 4, PoolStats(), pinned=1, busy=1),
        ],
        hosts=[MAIN, replica],
        spool=SpoolSnapshot(records=10, bytes=2000, segments=1, dropped=2),
    )


@pytest.mark.parametrize(
    ("made", "word"),
    [
        (snapshot(), "ready"),
        (snapshot(replica=AWAY), "degraded"),
        (snapshot(replica=replace(REPLICA, breaker="half-open")), "degraded"),
        (snapshot(ready=False, replica=AWAY), "unavailable"),
        (snapshot(ready=False, draining=True), "draining"),
    ],
)
def test_the_state_in_a_word(made: Snapshot, word: str) -> None:
    assert status(made) == word
    assert health(made)["status"] == word


def test_each_host_is_told() -> None:
    assert health(snapshot(replica=AWAY))["hosts"] == [
        {
            "database": "app",
            "host": "main",
            "role": "primary",
            "connected": True,
            "breaker": "closed",
            "response_time": 0.001,
            "lag": None,
            "error": "",
        },
        {
            "database": "app",
            "host": "replica1",
            "role": "replica",
            "connected": False,
            "breaker": "open",
            "response_time": None,
            "lag": None,
            "error": "refused",
        },
    ]


def test_each_pool_is_told() -> None:
    assert health(snapshot())["pools"] == [
        {
            "database": "app",
            "pool": "readonly",
            "host": "replica1",
            "max": 5,
            "total": 4,
            "idle": 1,
            "active": 2,
            "pinned": 1,
            "waiting": 4,
        }
    ]


def test_the_rest_is_told() -> None:
    told = health(snapshot())
    assert told["tunnel"] is None
    assert told["spool"] == {"records": 10, "bytes": 2000, "segments": 1, "dropped": 2}
    versions = told["versions"]
    assert isinstance(versions, dict)
    assert (versions["pgsluice"], versions["compiled"]) == ("1.2.3", True)
    assert (told["clients"], told["max_clients"]) == (3, 5000)


def test_a_sink_of_the_access_log_that_fails_is_told() -> None:
    sink = SinkSnapshot("table", last_error="no primary", dropped=3)
    assert health(replace(snapshot(), access_log=[sink]))["access_log"] == [
        {"sink": "table", "waiting": 0, "dropped": 3, "error": "no primary"}
    ]


def test_all_of_it_is_json() -> None:
    made = snapshot(replica=AWAY)
    assert json.loads(json.dumps(health(made))) == health(made)


def test_a_tunnel_is_told_by_the_hosts_behind_it() -> None:
    behind = replace(AWAY, host="far", error="no cloudflared is connected", tunnelled=True)
    assert health(replace(snapshot(), hosts=[MAIN, behind]))["tunnel"] == {
        "hosts": ["far"],
        "connected": False,
        "error": "far: no cloudflared is connected",
    }
