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


def shown(started: Config, latest: Config | None = None) -> dict[str, tuple[object, ...]]:
    return {str(row[0]): tuple(row[1:]) for row in settings(started, latest or started).rows}


def test_each_setting_stands_under_its_path_with_its_default() -> None:
    rows = shown(Config.model_validate(GIVEN))
    assert rows["listen.max_clients"] == ("70", "5000", "no")
    assert rows["databases.app.hosts.1.port"] == ("5433", "5432", "no")
    assert rows["databases.app.pools.primary.max"] == ("9", "10", "yes")
    assert rows["databases.app.pools.primary.acquire_timeout"] == ("1.5", "30", "yes")
    assert rows["databases.app.routing.enabled"] == ("true", "true", "no")


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


def test_after_a_reload_what_could_change_has_changed_and_nothing_else() -> None:
    started = Config.model_validate(GIVEN)
    latest = Config.model_validate(
        {
            "listen": {"max_clients": 9},
            "databases": {"app": {"pools": {"primary": {"max": 20}}, "timeouts": {"query": 5}}},
        }
    )
    rows = shown(started, latest)
    assert rows["databases.app.pools.primary.max"][0] == "20"
    assert rows["databases.app.timeouts.query"][0] == "5"
    assert rows["listen.max_clients"][0] == "70"
    assert rows["databases.app.pools.primary.user"][0] == "app_rw"
