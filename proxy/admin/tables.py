"""The rows of each SHOW, from facts alone."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import astuple
from functools import lru_cache
from typing import Final, TypeVar

from proxy.admin import columns
from proxy.admin.averages import Averages
from proxy.admin.columns import SHOWN, Table, Value
from proxy.admin.facts import CONSOLE, ClientFacts, DatabaseFacts, Facts, Figures, PoolFacts, ServerFacts

Row = Sequence[Value]
Rows = list[Row]
T = TypeVar("T")

_BUFFERS: Final = (0, 0, 0, 0, 0, 0, 0)
_STATES: Final = {"active": "sv_active", "idle": "sv_idle", "used": "sv_used", "tested": "sv_tested"}


def table(subject: str, facts: Facts, averages: Averages, now: float) -> Table:
    """Return what SHOW `subject` answers, for all subjects but help, version and config; `now` is monotonic."""
    rows = _STATS[subject](facts, averages, now) if subject in _STATS else _ROWS[subject](facts)
    return Table(SHOWN[subject], rows)


# -- statistics


def _stats(facts: Facts, averages: Averages, now: float) -> Rows:
    return [
        (name, *astuple(figures), *astuple(averages.of(name, figures, now)), figures.query_count)
        for name, figures in facts.figures.items()
    ]


def _stats_totals(facts: Facts, averages: Averages, now: float) -> Rows:
    return [(name, *astuple(figures)) for name, figures in facts.figures.items()]


def _stats_averages(facts: Facts, averages: Averages, now: float) -> Rows:
    return [(name, *astuple(averages.of(name, figures, now))) for name, figures in facts.figures.items()]


def _totals(facts: Facts, averages: Averages, now: float) -> Rows:
    sums = astuple(sum(facts.figures.values(), Figures()))
    means = astuple(averages.of_all(facts.figures, now))
    names = columns.TOTAL_NAMES
    return [
        *((f"total_{name}", value) for name, value in zip(names, sums, strict=True)),
        *((f"avg_{name}", value) for name, value in zip(names, means, strict=True)),
    ]


# -- pools


def _pools(facts: Facts) -> Rows:
    """Return one row for each database and login: that is a pool to PgBouncer, whatever pools share it here."""
    modes = {each.name: each for each in facts.databases}
    rows: Rows = []
    for database, login in _unique((pool.database, pool.login) for pool in facts.pools):
        pools = [pool for pool in facts.pools if (pool.database, pool.login) == (database, login)]
        clients = [each for each in facts.clients if (each.database, each.login) == (database, login)]
        servers = [each for each in facts.servers if (each.database, each.login) == (database, login)]
        rows.append(
            (
                database,
                login,
                *_counts(clients, servers, sum(pool.opening for pool in pools)),
                modes[database].pool_mode,
                modes[database].balance or None,
                ",".join(_unique(pool.pool for pool in pools)),
                ",".join(_unique(pool.host for pool in pools)),
            )
        )
    visitors = [each for each in facts.clients if each.database == CONSOLE]
    rows.append((CONSOLE, CONSOLE, *_counts(visitors, [], 0), "statement", None, "", ""))
    return rows


def _counts(clients: Sequence[ClientFacts], servers: Sequence[ServerFacts], opening: int) -> list[int]:
    """Return cl_active … maxwait_us."""
    waiting = [each for each in clients if each.state == "waiting"]
    cancels = sum(each.cancels for each in servers)
    longest = int(max((each.waiting for each in waiting), default=0.0) * 1e6)
    states = [each.state for each in servers]
    return [
        len(clients) - len(waiting),
        len(waiting),
        cancels,
        0,
        states.count("active"),
        cancels,
        states.count("being_canceled"),
        states.count("idle"),
        states.count("used"),
        states.count("tested"),
        opening,
        longest // 1_000_000,
        longest % 1_000_000,
    ]


def _databases(facts: Facts) -> Rows:
    rows = [_database(each, facts) for each in facts.databases]
    visitors = sum(each.database == CONSOLE for each in facts.clients)
    named = (CONSOLE, None, facts.port, CONSOLE, CONSOLE)
    return [*rows, (*named, 2, 0, 0, 0, "statement", None, 0, 0, 0, visitors, 0, 0, 0)]


def _database(database: DatabaseFacts, facts: Facts) -> Sequence[Value]:
    pools = [pool for pool in facts.pools if pool.database == database.name]
    most = sum(pool.maximum for pool in pools)
    first = pools[0] if pools else PoolFacts(database.name, "", "", "", 0, 0, 0.0, 0)
    return (
        database.name,
        database.hosts,
        database.port,
        database.database,
        first.login,
        most,
        sum(pool.minimum for pool in pools),
        0,
        int(first.max_lifetime),
        database.pool_mode,
        database.balance or None,
        most,
        sum(each.database == database.name for each in facts.servers) + sum(pool.opening for pool in pools),
        0,
        sum(each.database == database.name for each in facts.clients),
        int(database.paused),
        int(database.disabled),
        0,
    )


def _users(facts: Facts) -> Rows:
    """Return the logins on the servers, and the keys whose clients are connected."""
    logins = _unique(pool.login for pool in facts.pools)
    keys = _unique(client.user for client in facts.clients)
    return [
        (
            name,
            None,
            None,
            None,
            sum(pool.maximum for pool in facts.pools if pool.login == name),
            sum(server.login == name for server in facts.servers),
            0,
            sum(client.user == name for client in facts.clients),
        )
        for name in _unique([*logins, *keys])
    ]


# -- connections


def _clients(facts: Facts) -> Iterable[Row]:
    """Yield a row for each client: there may be thousands."""
    for each in facts.clients:
        yield *_client(each, each.state), each.user_id, each.pool, each.host, ", ".join(each.pins)


def _servers(facts: Facts) -> Rows:
    pins = {each.link: ", ".join(each.pins) for each in facts.clients if each.link}
    users = {each.link: each.user_id for each in facts.clients if each.link}
    return [
        (*_server(each, each.state), users.get(each.ref, ""), each.pool, each.host, pins.get(each.ref, ""))
        for each in facts.servers
    ]


def _sockets(facts: Facts) -> Iterable[Row]:
    """Yield clients and servers; what lies in buffers is the kernel's to know here."""
    for client in facts.clients:
        yield *_client(client, "cl_waiting" if client.state == "waiting" else "cl_active"), *_BUFFERS
    for server in facts.servers:
        yield *_server(server, _STATES.get(server.state, "sv_active")), *_BUFFERS


def _active_sockets(facts: Facts) -> Iterable[Row]:
    busy = Facts(
        clients=tuple(each for each in facts.clients if each.state != "idle"),
        servers=tuple(each for each in facts.servers if each.state == "active"),
    )
    return _sockets(busy)


def _client(client: ClientFacts, state: str) -> tuple[Value, ...]:
    waiting = int(client.waiting * 1e6)
    return (
        "C",
        client.user,
        client.database,
        "none",
        state,
        client.address or "unix",
        client.port,
        client.local_address or "unix",
        client.local_port,
        stamp(client.connected_at),
        stamp(client.request_at),
        waiting // 1_000_000,
        waiting % 1_000_000,
        0,
        f"C{client.id}",
        client.link,
        0,
        client.tls,
        client.application_name,
        client.prepared_statements,
        client.id,
    )


def _server(server: ServerFacts, state: str) -> tuple[Value, ...]:
    return (
        "S",
        server.login,
        server.database,
        "none",
        state,
        server.address,
        server.port,
        server.local_address or "unix",
        server.local_port,
        stamp(server.connected_at),
        stamp(server.request_at),
        0,
        0,
        int(server.close_needed),
        server.ref,
        server.link,
        server.pid,
        server.tls,
        server.application_name,
        server.prepared_statements,
        server.pid,
    )


# -- the rest


def _lists(facts: Facts) -> Rows:
    return [
        ("databases", len(facts.databases) + 1),
        ("users", len(_users(facts))),
        ("peers", 0),
        ("pools", len(_pools(facts))),
        ("peer_pools", 0),
        ("free_clients", 0),
        ("used_clients", len(facts.clients)),
        ("login_clients", facts.logging_in),
        ("free_servers", 0),
        ("used_servers", len(facts.servers)),
        ("dns_names", 0),
        ("dns_zones", 0),
        ("dns_queries", 0),
        ("dns_pending", 0),
    ]


def _state(facts: Facts) -> Rows:
    return [
        ("active", _yes(not facts.paused)),
        ("paused", _yes(facts.paused)),
        ("suspended", "no"),
    ]


def _hosts(facts: Facts) -> Rows:
    return [
        (
            each.database,
            each.host,
            each.address,
            each.port,
            each.role,
            _yes(each.up),
            each.breaker,
            _us(each.response_time),
            _us(each.lag),
            each.servers,
            each.idle,
            each.waiting,
            each.error,
        )
        for each in facts.hosts
    ]


def _keys(facts: Facts) -> Rows:
    return [
        (
            each.id,
            each.database,
            each.name,
            each.user_id,
            " ".join(each.permissions),
            each.default_pool,
            each.rate_limit_per_minute or None,
            stamp(each.expires_at) if each.expires_at else None,
            each.state,
            each.clients,
        )
        for each in facts.keys
    ]


def _cache(facts: Facts) -> Rows:
    return [astuple(each) for each in facts.caches]


def _pins(facts: Facts) -> Rows:
    return [
        (
            each.id,
            each.user,
            each.user_id,
            each.database,
            each.pool,
            each.host,
            ", ".join(each.pins),
            each.application_name,
        )
        for each in facts.clients
        if each.pins
    ]


def _none(facts: Facts) -> Rows:
    return []


def stamp(at: float) -> str:
    """Return a time as PgBouncer writes it, in this machine's zone: 2026-11-28 14:03:07 UTC."""
    return _stamp(int(at))


@lru_cache(1000)
def _stamp(at: int) -> str:
    return time.strftime("%Y-%m-%d %H:%M:%S %Z", time.localtime(at))


def _yes(truth: bool) -> str:
    return "yes" if truth else "no"


def _us(seconds: float | None) -> int | None:
    return None if seconds is None else int(seconds * 1e6)


def _unique(items: Iterable[T]) -> list[T]:
    return list(dict.fromkeys(items))


_STATS: Final[Mapping[str, Callable[[Facts, Averages, float], Iterable[Row]]]] = {
    "stats": _stats,
    "stats_totals": _stats_totals,
    "stats_averages": _stats_averages,
    "totals": _totals,
}

_ROWS: Final[Mapping[str, Callable[[Facts], Iterable[Row]]]] = {
    "pools": _pools,
    "databases": _databases,
    "users": _users,
    "clients": _clients,
    "servers": _servers,
    "sockets": _sockets,
    "active_sockets": _active_sockets,
    "lists": _lists,
    "state": _state,
    "hosts": _hosts,
    "keys": _keys,
    "cache": _cache,
    "pins": _pins,
    **dict.fromkeys(("peers", "peer_pools", "mem", "dns_hosts", "dns_zones"), _none),
}
