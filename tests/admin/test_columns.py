"""The columns are PgBouncer 1.25's: their names and order as in its src/admin.c and src/stats.c."""

from __future__ import annotations

import pytest

from proxy.admin.columns import INT4, NUMERIC, SHOWN, TEXT
from proxy.admin.commands import SUBJECTS

SOCKET = (
    "type user database replication state addr port local_addr local_port connect_time request_time wait wait_us "
    "close_needed ptr link remote_pid tls application_name prepared_statements id"
)

PGBOUNCER = {
    "stats": (
        "database total_server_assignment_count total_xact_count total_query_count total_received total_sent "
        "total_xact_time total_query_time total_wait_time total_client_parse_count total_server_parse_count "
        "total_bind_count avg_server_assignment_count avg_xact_count avg_query_count avg_recv avg_sent avg_xact_time "
        "avg_query_time avg_wait_time avg_client_parse_count avg_server_parse_count avg_bind_count"
    ),
    "stats_totals": (
        "database server_assignment_count xact_count query_count bytes_received bytes_sent xact_time query_time "
        "wait_time client_parse_count server_parse_count bind_count"
    ),
    "stats_averages": (
        "database server_assignment_count xact_count query_count bytes_received bytes_sent xact_time query_time "
        "wait_time avg_client_parse_count avg_server_parse_count avg_bind_count"
    ),
    "totals": "name value",
    "pools": (
        "database user cl_active cl_waiting cl_active_cancel_req cl_waiting_cancel_req sv_active sv_active_cancel "
        "sv_being_canceled sv_idle sv_used sv_tested sv_login maxwait maxwait_us pool_mode load_balance_hosts"
    ),
    "clients": SOCKET,
    "servers": SOCKET,
    "sockets": SOCKET + " recv_pos pkt_pos pkt_remain send_pos send_remain pkt_avail send_avail",
    "active_sockets": SOCKET + " recv_pos pkt_pos pkt_remain send_pos send_remain pkt_avail send_avail",
    "databases": (
        "name host port database force_user pool_size min_pool_size reserve_pool_size server_lifetime pool_mode "
        "load_balance_hosts max_connections current_connections max_client_connections current_client_connections "
        "paused disabled"
    ),
    "users": (
        "name pool_size reserve_pool_size pool_mode max_user_connections current_connections "
        "max_user_client_connections current_client_connections"
    ),
    "lists": "list items",
    "state": "key value",
    "config": "key value default changeable",
    "version": "version",
    "peers": "peer_id host port pool_size",
    "peer_pools": "peer_id cl_active_cancel_req cl_waiting_cancel_req sv_active_cancel sv_login",
    "mem": "name size used free memtotal",
    "dns_hosts": "hostname ttl addrs",
    "dns_zones": "zonename serial count",
}

OURS = {
    "stats": "total_requests",
    "pools": "pools hosts",
    "clients": "user_id pool host pinned",
    "servers": "user_id pool host pinned",
    "databases": "reserve_pool",
}


@pytest.mark.parametrize("subject", PGBOUNCER)
def test_columns_are_pgbouncers_with_ours_behind(subject: str) -> None:
    expected = [*PGBOUNCER[subject].split(), *OURS.get(subject, "").split()]
    assert [column.name for column in SHOWN[subject]] == expected


def test_each_subject_but_help_has_columns() -> None:
    assert set(SUBJECTS) - {"help"} == SHOWN.keys()


@pytest.mark.parametrize("subject", SHOWN)
def test_no_name_stands_twice_in_a_table(subject: str) -> None:
    names = [column.name for column in SHOWN[subject]]
    assert len(names) == len(set(names))


def test_figures_are_numeric_and_counts_are_integers() -> None:
    assert {column.type for column in SHOWN["stats"][1:]} == {NUMERIC}
    types = {column.name: column.type for column in SHOWN["pools"]}
    assert (types["cl_active"], types["maxwait_us"], types["pool_mode"]) == (INT4, INT4, TEXT)
    assert {column.name: column.type for column in SHOWN["clients"]}["connect_time"] == TEXT
