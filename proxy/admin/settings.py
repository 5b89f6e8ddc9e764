"""SHOW CONFIG: the settings under PgBouncer's names, where they have one, then all of ours by their paths."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

from pydantic import SecretStr

from proxy.admin.averages import STATS_PERIOD
from proxy.admin.columns import CONFIG, Table
from proxy.config import Config
from proxy.config.changes import needs_restart
from proxy.upstream.pool import TEST_AFTER


def settings(config: Config) -> Table:
    """Return key, value, default and changeable of each setting in force; passwords are masked."""
    plain = Config.model_validate({"databases": {name: {} for name in config.databases}})
    defaults = dict(_flat(plain.model_dump()))
    rows: list[tuple[str | None, ...]] = [
        (key, value, None, "no") for key, value in _as_pgbouncer(config).items()
    ]
    for key, value in _flat(config.model_dump()):
        default = defaults.get(re.sub(r"\.hosts\.\d+\.", ".hosts.0.", key))
        rows.append((key, value, default, "no" if needs_restart(key) else "yes"))
    return Table(CONFIG, rows)


def _as_pgbouncer(config: Config) -> dict[str, str]:
    """Return what PgBouncer calls otherwise, times in seconds; of a database it is the first one's."""
    listen = config.listen
    database = next(iter(config.databases.values()))
    pool = database.pools.get("primary") or next(iter(database.pools.values()))
    numbers: dict[str, float] = {
        "max_client_conn": listen.max_clients,
        "default_pool_size": pool.max,
        "min_pool_size": pool.min,
        "reserve_pool_size": 0,
        "max_db_connections": sum(each.max for each in database.pools.values()) * len(database.hosts),
        "max_user_connections": 0,
        "query_timeout": database.timeouts.query,
        "query_wait_timeout": pool.acquire_timeout,
        "idle_transaction_timeout": database.timeouts.idle_in_transaction,
        "client_idle_timeout": database.timeouts.client_idle,
        "client_login_timeout": listen.auth_timeout,
        "server_lifetime": pool.max_lifetime,
        "server_idle_timeout": pool.idle_timeout,
        "server_connect_timeout": pool.connect_timeout,
        "server_check_delay": TEST_AFTER,
        "stats_period": STATS_PERIOD,
    }
    return {
        "listen_addr": listen.host,
        "listen_port": str(listen.port),
        "unix_socket_dir": str(listen.unix_socket_dir or ""),
        "auth_type": "scram-sha-256",
        "pool_mode": database.pool_mode,
        "client_tls_sslmode": {"off": "disable", "prefer": "allow"}.get(listen.tls.mode, listen.tls.mode),
        **{name: _number(value) for name, value in numbers.items()},
    }


def _flat(value: Any, path: str = "") -> Iterator[tuple[str, str | None]]:
    if isinstance(value, Mapping):
        for name, below in value.items():
            yield from _flat(below, f"{path}.{name}" if path else name)
    elif isinstance(value, list) and any(isinstance(each, Mapping) for each in value):
        for number, below in enumerate(value):
            yield from _flat(below, f"{path}.{number}")
    elif isinstance(value, SecretStr):
        yield path, "***" if value.get_secret_value() else ""
    elif isinstance(value, list):
        yield path, ", ".join(str(each) for each in value)
    else:
        yield path, _plain(value)


def _plain(value: object) -> str | None:
    if value is None:
        return None
    if isinstance(value, bool):
        return "true" if value else "false"
    return _number(value) if isinstance(value, float) else str(value)


def _number(value: float) -> str:
    return str(int(value)) if value == int(value) else str(value)
