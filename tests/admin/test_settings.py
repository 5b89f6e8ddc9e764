"""SHOW CONFIG."""

from __future__ import annotations

from proxy.admin.settings import settings
from proxy.config import Config

GIVEN = {
    "listen": {"max_clients": 70},
    "databases": {
        "app": {
            "control": {"user": "sluice_control", "password": "very secret"},
            "hosts": [{"host": "a"}, {"host": "b", "port": 5433}],
            "pools": {"primary": {"user": "app_rw", "password": "hunter2", "max": 9, "acquire_timeout": 1.5}},
        }
    },
}


def shown(config: Config) -> dict[str, tuple[object, ...]]:
    return {str(row[0]): tuple(row[1:]) for row in settings(config).rows}


def test_each_setting_stands_under_its_path_with_its_default() -> None:
    rows = shown(Config.model_validate(GIVEN))
    assert rows["listen.max_clients"] == ("70", "5000", "yes")
    assert rows["databases.app.hosts.1.port"] == ("5433", "5432", "yes")
    assert rows["databases.app.pools.primary.max"] == ("9", "10", "yes")
    assert rows["databases.app.pools.primary.acquire_timeout"] == ("1.5", "30", "yes")
    assert rows["databases.app.routing.enabled"] == ("true", "true", "yes")


def test_no_password_is_shown() -> None:
    rows = shown(Config.model_validate(GIVEN))
    assert rows["databases.app.control.password"][0] == "***"
    assert "hunter2" not in str(rows)
    assert "very secret" not in str(rows)


def test_what_pgbouncer_calls_otherwise_stands_there_too() -> None:
    rows = shown(Config.model_validate(GIVEN))
    assert rows["max_client_conn"][0] == "70"
    assert rows["default_pool_size"][0] == "9"
    assert rows["max_db_connections"][0] == "18"
    assert rows["query_wait_timeout"][0] == "1.5"
    assert rows["pool_mode"][0] == "transaction"
    assert rows["server_lifetime"][0] == "3600"


def test_what_needs_a_restart_is_told() -> None:
    rows = shown(Config.model_validate(GIVEN))
    fixed = {key for key, (_, _, changeable) in rows.items() if changeable == "no" and "." in key}
    assert fixed == {
        "listen.host",
        "listen.port",
        "listen.unix_socket_dir",
        "http.host",
        "http.port",
        "http.api",
        "http.cors_origins",
        "auth.keys",
        "auth.keys_file",
        "auth.rate_limit_store",
        "identity.mode",
        "databases.app.database",
        "databases.app.pool_mode",
        "access_log.sinks",
        "access_log.statements",
        "access_log.spool_dir",
    }
    assert rows["workers"][2] == "no"
