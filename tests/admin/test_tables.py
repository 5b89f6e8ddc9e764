"""Rows of each SHOW, from made-up facts."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from proxy.admin.averages import Averages
from proxy.admin.columns import SHOWN, TEXT
from proxy.admin.facts import (
    CacheFacts,
    ClientFacts,
    DatabaseFacts,
    Facts,
    Figures,
    HostFacts,
    KeyFacts,
    PoolFacts,
    ServerFacts,
)
from proxy.admin.tables import table

CLIENT = ClientFacts(
    id=7,
    user="ctm_alice",
    user_id="alice@example.com",
    database="app",
    state="active",
    login="app_rw",
    pool="primary",
    host="a",
    address="192.0.2.1",
    port=50_000,
    local_address="192.0.2.9",
    local_port=6432,
    connected_at=0.0,
    request_at=86_400.0,
    link="a/11",
    tls="TLSv1.3/TLS_AES_256_GCM_SHA384",
    application_name="psql",
    prepared_statements=3,
)
SERVER = ServerFacts(
    ref="a/11",
    login="app_rw",
    database="app",
    pool="primary",
    host="a",
    state="active",
    address="192.0.2.5",
    port=5432,
    local_address="192.0.2.9",
    local_port=40_000,
    connected_at=0.0,
    request_at=0.0,
    pid=11,
    link="C7",
)
FIGURES = Figures(*range(1, 12))
FACTS = Facts(
    clients=(
        CLIENT,
        replace(CLIENT, id=8, state="waiting", waiting=3.25, link=""),
        replace(CLIENT, id=9, state="waiting", waiting=0.5, link=""),
        replace(CLIENT, id=10, state="idle", login="app_ro", pool="readonly", link="", pins=("listen",)),
        replace(CLIENT, id=11, database="pgbouncer", login="pgbouncer", user="ctm_ops"),
    ),
    servers=(
        SERVER,
        replace(SERVER, ref="a/12", pid=12, state="idle", link="", pool="background"),
        replace(SERVER, ref="a/13", pid=13, state="used", link=""),
        replace(SERVER, ref="b/14", pid=14, state="tested", link="", host="b"),
        replace(SERVER, ref="b/15", pid=15, state="being_canceled", link="", cancels=2, close_needed=True),
        replace(SERVER, ref="b/16", pid=16, state="idle", login="app_ro", pool="readonly", link=""),
    ),
    pools=(
        PoolFacts("app", "primary", "a", "app_rw", 2, 10, 3600.0, 1),
        PoolFacts("app", "background", "a", "app_rw", 1, 2, 3600.0, 0),
        PoolFacts("app", "readonly", "a", "app_ro", 0, 5, 3600.0, 0),
        PoolFacts("app", "readonly", "b", "app_ro", 0, 5, 3600.0, 2),
    ),
    databases=(
        DatabaseFacts("app", "a,b", 5432, "app_db", "transaction", "round-robin", True, False, FIGURES),
    ),
    hosts=(HostFacts("app", "a", "192.0.2.5", 5432, "primary", True, "closed", 0.0015, None, 5, 2, 1, ""),),
    keys=(KeyFacts("ctm_alice", "app", "n", "alice", ("a", "b"), "", 0, 86_400.0, "active", 4),),
    caches=(CacheFacts("app", 1, 2, 3, 4, 5, 6, 7, 8, 9, "on", 10, 11, 12, 13, 14, 15, 16, 17, 18),),
    console=Figures(query_count=5, xact_count=5),
    port=6432,
    logging_in=6,
)


def shown(subject: str, facts: Facts = FACTS) -> list[dict[str, Any]]:
    answer = table(subject, facts, Averages(1000.0), 1001.0)
    names = [column.name for column in answer.columns]
    return [dict(zip(names, row, strict=True)) for row in answer.rows]


def test_the_pool_of_a_login_has_all_pools_that_share_it() -> None:
    writers, readers, console = shown("pools")
    assert writers == {
        "database": "app",
        "user": "app_rw",
        "cl_active": 1,
        "cl_waiting": 2,
        "cl_active_cancel_req": 2,
        "cl_waiting_cancel_req": 0,
        "sv_active": 1,
        "sv_active_cancel": 2,
        "sv_being_canceled": 1,
        "sv_idle": 1,
        "sv_used": 1,
        "sv_tested": 1,
        "sv_login": 1,
        "maxwait": 3,
        "maxwait_us": 250_000,
        "pool_mode": "transaction",
        "load_balance_hosts": "round-robin",
        "pools": "primary,background",
        "hosts": "a",
    }
    assert (readers["user"], readers["cl_active"], readers["sv_idle"], readers["sv_login"]) == (
        "app_ro",
        1,
        1,
        2,
    )
    assert (readers["maxwait"], readers["hosts"]) == (0, "a,b")
    assert (console["database"], console["cl_active"], console["pool_mode"]) == ("pgbouncer", 1, "statement")


def test_no_pair_of_database_and_user_stands_twice() -> None:
    # Prometheus would refuse the whole scrape.
    pairs = [(row["database"], row["user"]) for row in shown("pools")]
    assert len(pairs) == len(set(pairs))


def test_statistics_stand_in_pgbouncers_order() -> None:
    row = shown("stats")[0]
    assert row["database"] == "app"
    assert [row[name] for name in list(row)[1:12]] == list(range(1, 12))
    assert row["total_requests"] == row["total_query_count"] == 3
    # Of two seconds.
    assert (row["avg_query_count"], row["avg_recv"]) == (1, 2)
    assert row["avg_query_time"] == 7 // 3
    assert shown("stats_totals")[0]["bytes_sent"] == 5
    assert shown("stats_averages")[0]["wait_time"] == 8


def test_the_console_is_a_database_of_its_own() -> None:
    assert [row["database"] for row in shown("stats")] == ["app", "pgbouncer"]
    assert shown("stats_totals")[1]["query_count"] == 5
    console = shown("databases")[1]
    assert (console["name"], console["port"], console["current_client_connections"]) == ("pgbouncer", 6432, 1)


def test_totals_are_those_of_all_databases() -> None:
    rows = {row["name"]: row["value"] for row in shown("totals")}
    assert rows["total_query_count"] == 3 + 5
    assert rows["total_client_bytes"] == 4
    assert rows["total_ps_bind_count"] == 11
    assert rows["avg_query_time"] == 7 // 8
    assert len(rows) == 22


def test_a_database_shows_its_limits_and_state() -> None:
    row = shown("databases")[0]
    assert (row["host"], row["port"], row["database"], row["force_user"]) == ("a,b", 5432, "app_db", "app_rw")
    assert (row["pool_size"], row["min_pool_size"], row["max_connections"]) == (22, 3, 22)
    assert (row["current_connections"], row["current_client_connections"]) == (6 + 3, 4)
    assert (row["paused"], row["disabled"], row["server_lifetime"]) == (1, 0, 3600)
    assert row["reserve_pool"] == row["reserve_pool_size"] == 0


def test_clients_show_how_long_they_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TZ", "UTC")
    active, waiting, *_ = shown("clients")
    assert (waiting["state"], waiting["wait"], waiting["wait_us"]) == ("waiting", 3, 250_000)
    assert (active["type"], active["ptr"], active["link"], active["id"]) == ("C", "C7", "a/11", 7)
    assert active["tls"] == "TLSv1.3/TLS_AES_256_GCM_SHA384"
    assert active["request_time"].startswith("1970-01-02 ")
    assert shown("clients")[3]["pinned"] == "listen"


def test_a_client_of_a_unix_socket_says_so() -> None:
    (row,) = shown("clients", Facts(clients=(replace(CLIENT, address="", local_address="", port=0),)))
    assert (row["addr"], row["local_addr"], row["port"]) == ("unix", "unix", 0)


def test_servers_name_their_client() -> None:
    rows = shown("servers")
    assert (rows[0]["link"], rows[0]["user_id"], rows[0]["remote_pid"]) == ("C7", "alice@example.com", 11)
    assert (rows[1]["link"], rows[1]["user_id"]) == ("", "")
    assert [row["close_needed"] for row in rows] == [0, 0, 0, 0, 1, 0]


def test_sockets_are_clients_and_servers_under_pgbouncers_states() -> None:
    states = [row["state"] for row in shown("sockets")]
    assert states[:3] == ["cl_active", "cl_waiting", "cl_waiting"]
    assert states[5:9] == ["sv_active", "sv_idle", "sv_used", "sv_tested"]
    assert len(shown("active_sockets")) == 4 + 1


def test_users_are_logins_and_keys() -> None:
    rows = {row["name"]: row for row in shown("users")}
    assert list(rows) == ["app_rw", "app_ro", "ctm_alice", "ctm_ops"]
    assert (rows["app_rw"]["max_user_connections"], rows["app_rw"]["current_connections"]) == (12, 5)
    assert rows["ctm_alice"]["current_client_connections"] == 4


def test_lists_count() -> None:
    rows = {row["list"]: row["items"] for row in shown("lists")}
    assert " ".join(rows) == (
        "databases users peers pools peer_pools free_clients used_clients login_clients free_servers used_servers "
        "dns_names dns_zones dns_queries dns_pending"
    )
    assert (rows["databases"], rows["pools"], rows["users"]) == (2, 3, 4)
    assert (rows["used_clients"], rows["login_clients"], rows["used_servers"]) == (5, 6, 6)


@pytest.mark.parametrize("paused", [False, True])
def test_the_state_is_active_or_paused(paused: bool) -> None:
    rows = {row["key"]: row["value"] for row in shown("state", replace(FACTS, paused=paused))}
    assert rows == {
        "active": "no" if paused else "yes",
        "paused": "yes" if paused else "no",
        "suspended": "no",
    }


def test_hosts_show_times_in_microseconds() -> None:
    (row,) = shown("hosts")
    assert (row["host"], row["up"], row["response_time_us"], row["lag_us"]) == ("a", "yes", 1500, None)


def test_keys_show_when_they_expire_and_no_secret() -> None:
    (row,) = shown("keys")
    assert (row["key"], row["permissions"], row["clients"]) == ("ctm_alice", "a b", 4)
    assert row["expires_at"].startswith("1970-01-02")
    assert row["rate_limit_per_minute"] is None


def test_pins_are_of_those_clients_alone_that_keep_a_connection() -> None:
    assert [(row["id"], row["reasons"]) for row in shown("pins")] == [(10, "listen")]


def test_the_cache_shows_its_counts() -> None:
    (row,) = shown("cache")
    assert list(row.values()) == ["app", *range(1, 10), "on", *range(10, 19)]


@pytest.mark.parametrize("subject", sorted(SHOWN.keys() - {"version", "config"}))
@pytest.mark.parametrize("facts", [FACTS, Facts()], ids=["facts", "nothing"])
def test_each_row_has_a_value_of_its_columns_type(subject: str, facts: Facts) -> None:
    answer = table(subject, facts, Averages(1000.0), 1001.0)
    assert answer.columns is SHOWN[subject]
    for row in list(answer.rows):
        assert len(row) == len(answer.columns)
        for value, column in zip(row, answer.columns, strict=True):
            assert value is None or isinstance(value, str if column.type == TEXT else int)
