"""The columns of each SHOW: PgBouncer 1.25's, in its order and under its types; ours come behind them.

They are those of src/admin.c and src/stats.c in PgBouncer 1.25.2. A tool that reads by name or by place finds what
it finds there. Behind them stand columns of ours, and two that exporters read still, Debian 12's among them, though
PgBouncer has other names for them by now: total_requests (total_query_count) and reserve_pool (reserve_pool_size).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Final

TEXT: Final = 25
INT4: Final = 23
INT8: Final = 20
NUMERIC: Final = 1700

Value = str | int | None


@dataclass(frozen=True, slots=True)
class Column:
    """A column's name and the OID of its type."""

    name: str
    type: int = TEXT


@dataclass(frozen=True, slots=True)
class Table:
    """An answer: columns, and rows of as many values, which may be made as they are taken."""

    columns: Sequence[Column]
    rows: Iterable[Sequence[Value]]


def _columns(names: str, type: int = TEXT) -> tuple[Column, ...]:
    return tuple(Column(name, type) for name in names.split())


_TOTALS: Final = (
    "total_server_assignment_count total_xact_count total_query_count total_received total_sent total_xact_time "
    "total_query_time total_wait_time total_client_parse_count total_server_parse_count total_bind_count"
)
_AVERAGES: Final = (
    "avg_server_assignment_count avg_xact_count avg_query_count avg_recv avg_sent avg_xact_time avg_query_time "
    "avg_wait_time avg_client_parse_count avg_server_parse_count avg_bind_count"
)

STATS: Final = (
    *_columns("database"),
    *_columns(_TOTALS, NUMERIC),
    *_columns(_AVERAGES, NUMERIC),
    *_columns("total_requests", NUMERIC),
)

STATS_TOTALS: Final = (
    *_columns("database"),
    *_columns(
        "server_assignment_count xact_count query_count bytes_received bytes_sent xact_time query_time wait_time "
        "client_parse_count server_parse_count bind_count",
        NUMERIC,
    ),
)

# The last three have their prefix in PgBouncer too.
STATS_AVERAGES: Final = (
    *_columns("database"),
    *_columns(
        "server_assignment_count xact_count query_count bytes_received bytes_sent xact_time query_time wait_time "
        "avg_client_parse_count avg_server_parse_count avg_bind_count",
        NUMERIC,
    ),
)

TOTALS: Final = (*_columns("name"), *_columns("value", NUMERIC))

TOTAL_NAMES: Final = (
    "server_assignment_count",
    "xact_count",
    "query_count",
    "client_bytes",
    "server_bytes",
    "xact_time",
    "query_time",
    "wait_time",
    "ps_client_parse_count",
    "ps_server_parse_count",
    "ps_bind_count",
)
"""The rows of SHOW TOTALS, behind total_ and avg_."""

POOLS: Final = (
    *_columns("database user"),
    *_columns(
        "cl_active cl_waiting cl_active_cancel_req cl_waiting_cancel_req sv_active sv_active_cancel "
        "sv_being_canceled sv_idle sv_used sv_tested sv_login maxwait maxwait_us",
        INT4,
    ),
    *_columns("pool_mode load_balance_hosts"),
    *_columns("pools hosts"),
)

_SOCKET: Final = (
    *_columns("type user database replication state addr"),
    *_columns("port", INT4),
    *_columns("local_addr"),
    *_columns("local_port", INT4),
    *_columns("connect_time request_time"),
    *_columns("wait wait_us close_needed", INT4),
    *_columns("ptr link"),
    *_columns("remote_pid", INT4),
    *_columns("tls application_name"),
    *_columns("prepared_statements id", INT4),
)

_OURS: Final = _columns("user_id pool host pinned")

CLIENTS: Final = (*_SOCKET, *_OURS)
SERVERS: Final = (*_SOCKET, *_OURS)
SOCKETS: Final = (
    *_SOCKET,
    *_columns("recv_pos pkt_pos pkt_remain send_pos send_remain pkt_avail send_avail", INT4),
)

DATABASES: Final = (
    *_columns("name host"),
    *_columns("port", INT4),
    *_columns("database force_user"),
    *_columns("pool_size min_pool_size reserve_pool_size server_lifetime", INT4),
    *_columns("pool_mode load_balance_hosts"),
    *_columns(
        "max_connections current_connections max_client_connections current_client_connections paused disabled",
        INT4,
    ),
    *_columns("reserve_pool", INT4),
)

USERS: Final = (
    *_columns("name pool_size reserve_pool_size pool_mode"),
    *_columns(
        "max_user_connections current_connections max_user_client_connections current_client_connections",
        INT4,
    ),
)

LISTS: Final = (*_columns("list"), *_columns("items", INT4))
STATE: Final = _columns("key value")
CONFIG: Final = _columns("key value default changeable")
VERSION: Final = _columns("version")

# Of things that there are none of here; with their columns, tools find nothing where they expect something.
PEERS: Final = (*_columns("peer_id", INT4), *_columns("host"), *_columns("port pool_size", INT4))
PEER_POOLS: Final = _columns(
    "peer_id cl_active_cancel_req cl_waiting_cancel_req sv_active_cancel sv_login", INT4
)
MEM: Final = (*_columns("name"), *_columns("size used free memtotal", INT4))
DNS_HOSTS: Final = (*_columns("hostname"), *_columns("ttl", INT8), *_columns("addrs"))
DNS_ZONES: Final = (*_columns("zonename"), *_columns("serial", INT8), *_columns("count", INT4))

# Ours.
HOSTS: Final = (
    *_columns("database host addr"),
    *_columns("port", INT4),
    *_columns("role up breaker"),
    *_columns("response_time_us lag_us", INT8),
    *_columns("servers idle waiting", INT4),
    *_columns("error"),
)
KEYS: Final = (
    *_columns("key database name user_id permissions default_pool"),
    *_columns("rate_limit_per_minute", INT4),
    *_columns("expires_at state"),
    *_columns("clients", INT4),
)
CACHE: Final = (
    *_columns("database"),
    *_columns(
        "hits shape_hits fingerprint_hits misses entries bytes prepared prepared_shared prepared_bytes", INT8
    ),
    *_columns("results"),
    *_columns(
        "result_hits result_stale_hits result_misses result_waits result_stores result_evictions"
        " result_invalidations result_entries result_bytes",
        INT8,
    ),
)
PINS: Final = (*_columns("id", INT4), *_columns("user user_id database pool host reasons application_name"))
ROUTE: Final = (
    *_columns("intent target reason"),
    *_columns("statements", INT4),
    *_columns("pin pool needs refused normalized"),
)

SHOWN: Final[dict[str, Sequence[Column]]] = {
    "version": VERSION,
    "config": CONFIG,
    "databases": DATABASES,
    "pools": POOLS,
    "stats": STATS,
    "stats_totals": STATS_TOTALS,
    "stats_averages": STATS_AVERAGES,
    "totals": TOTALS,
    "clients": CLIENTS,
    "servers": SERVERS,
    "sockets": SOCKETS,
    "active_sockets": SOCKETS,
    "lists": LISTS,
    "users": USERS,
    "state": STATE,
    "peers": PEERS,
    "peer_pools": PEER_POOLS,
    "mem": MEM,
    "dns_hosts": DNS_HOSTS,
    "dns_zones": DNS_ZONES,
    "hosts": HOSTS,
    "keys": KEYS,
    "cache": CACHE,
    "pins": PINS,
}
"""By subject of SHOW; HELP is a notice and has none."""
