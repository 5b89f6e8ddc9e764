"""Where statements run: reads on the replica, everything else on the primary."""

from __future__ import annotations

from collections.abc import Callable

import psycopg
import pytest

from tests.integration.conftest import MakeKey, MakeTable
from tests.integration.support import Installation, Login, Proxy, wait_until

PORT = "SELECT inet_server_port()"


@pytest.fixture
def primary(installation: Installation) -> int:
    return installation.cluster.primary.port


@pytest.fixture
def replica(installation: Installation) -> int:
    return installation.cluster.replicas[0].port


@pytest.fixture
def key(proxy: Proxy, make_key: MakeKey) -> Login:
    return proxy.login(*make_key())


def _port(connection: psycopg.Connection[tuple[int]], statement: str = PORT) -> int:
    row = connection.execute(statement).fetchone()
    assert row is not None
    return int(row[0])


def test_a_select_lands_on_the_replica(key: Login, replica: int) -> None:
    with key.connect() as connection:
        assert connection.execute("SELECT pg_is_in_recovery()").fetchone() == (True,)
        assert _port(connection) == replica
    assert key.psql("SELECT pg_is_in_recovery()", "-At").stdout == "t\n"


@pytest.mark.parametrize(
    "read",
    [
        "VALUES (inet_server_port())",
        "WITH x AS (SELECT inet_server_port() AS port) SELECT port FROM x",
        "SELECT inet_server_port(), random(), now(), pg_is_in_recovery()",
        "SELECT inet_server_port() FROM {t} LIMIT 1",
        "SELECT inet_server_port() UNION ALL SELECT id FROM {t} WHERE false",
    ],
)
def test_what_only_reads_lands_on_the_replica(
    read: str, key: Login, replica: int, make_table: MakeTable
) -> None:
    table = make_table("id integer", "VALUES (1)")
    with key.connect() as connection:
        assert _port(connection, read.format(t=table)) == replica


@pytest.mark.parametrize(
    "write",
    [
        "INSERT INTO {t} VALUES (2) RETURNING inet_server_port()",
        "UPDATE {t} SET id = 2 WHERE id = 1 RETURNING inet_server_port()",
        "DELETE FROM {t} RETURNING inet_server_port()",
        "MERGE INTO {t} USING (VALUES (7)) v (id) ON t.id = v.id WHEN NOT MATCHED THEN INSERT VALUES (7)"
        " RETURNING inet_server_port()",
        "WITH w AS (INSERT INTO {t} VALUES (3) RETURNING 1) SELECT inet_server_port() FROM w",
        "SELECT inet_server_port() FROM {t} FOR UPDATE",
        "SELECT inet_server_port() FROM (SELECT * FROM {t} FOR SHARE) x",
        "SELECT inet_server_port() FROM (SELECT pg_advisory_xact_lock(1)) x",
        "SELECT inet_server_port() FROM (SELECT pg_current_xact_id()) x",
    ],
)
def test_what_writes_or_locks_lands_on_the_primary(
    write: str, key: Login, primary: int, make_table: MakeTable
) -> None:
    table = make_table("id integer", "VALUES (1)")
    with key.connect() as connection:
        assert _port(connection, write.replace("t.id", f"{table}.id").format(t=table)) == primary


def test_a_sequence_moves_on_the_primary(
    key: Login, primary: int, installation: Installation, make_table: MakeTable
) -> None:
    sequence = f"{make_table('id integer')}_s"
    installation.execute(
        f"CREATE SEQUENCE {sequence}", f"GRANT USAGE ON SEQUENCE {sequence} TO sluice_readwrite"
    )
    try:
        with key.connect() as connection:
            assert (
                _port(connection, f"SELECT inet_server_port() FROM (SELECT nextval('{sequence}')) x")
                == primary
            )
            assert _port(connection, f"SELECT currval('{sequence}')") == 1
    finally:
        installation.execute(f"DROP SEQUENCE {sequence}")


def test_a_transaction_stays_on_the_primary(key: Login, primary: int) -> None:
    with key.connect(autocommit=False) as connection:
        assert _port(connection) == primary
        assert connection.execute("SHOW transaction_read_only").fetchone() == ("off",)


def test_a_read_only_transaction_is_served_by_the_replica(key: Login, replica: int) -> None:
    with key.connect() as connection:
        connection.execute("BEGIN READ ONLY")
        assert _port(connection) == replica
        assert _port(connection) == replica
        connection.execute("COMMIT")


def test_several_statements_in_one_message_go_where_the_strongest_goes(
    key: Login, primary: int, make_table: MakeTable
) -> None:
    table = make_table("id integer")
    done = key.psql(f"SELECT inet_server_port() \\; INSERT INTO {table} VALUES (1);\n", "-At")
    assert done.stdout == f"{primary}\nINSERT 0 1\n"


def test_a_session_reads_its_own_write(key: Login, make_table: MakeTable) -> None:
    table = make_table("id integer", "VALUES (0)")
    with key.connect() as connection:
        for number in range(1, 50):
            connection.execute(f"UPDATE {table} SET id = %s", (number,))
            assert connection.execute(f"SELECT id FROM {table}").fetchone() == (number,)


def test_reads_return_to_the_replica_after_a_write(key: Login, replica: int, make_table: MakeTable) -> None:
    table = make_table("id integer")
    with key.connect() as connection:
        connection.execute(f"INSERT INTO {table} VALUES (1)")
        wait_until(lambda: _port(connection) == replica, message="reads are served by the replica again")


def test_a_client_that_asks_for_a_primary_finds_one(key: Login, primary: int) -> None:
    with key.connect() as connection:
        assert connection.execute("SHOW transaction_read_only").fetchone() == ("off",)
        assert connection.execute("SHOW in_hot_standby").fetchone() == ("off",)
    with key.connect(target_session_attrs="read-write") as connection:
        assert connection.execute("SELECT 1").fetchone() == (1,)


@pytest.mark.parametrize("pool", ["primary", "priority", "background"])
def test_a_pool_asked_for_is_obeyed(pool: str, key: Login, primary: int) -> None:
    with key.connect(options=f"-c sluice.pool={pool}") as connection:
        assert _port(connection) == primary
    with key.connect() as connection:
        connection.execute(f"SET sluice.pool = '{pool}'")
        assert _port(connection) == primary
        assert _port(connection) == primary
    with key.connect() as connection:
        assert _port(connection, f"/* sluice: pool={pool} */ {PORT}") == primary


def test_the_readonly_pool_gets_no_write(
    key: Login, primary: int, replica: int, make_table: MakeTable
) -> None:
    table = make_table("id integer")
    with key.connect(options="-c sluice.pool=readonly") as connection:
        assert _port(connection) == replica
        assert _port(connection, f"INSERT INTO {table} VALUES (1) RETURNING inet_server_port()") == primary


def test_an_unknown_pool_is_an_error(key: Login) -> None:
    with key.connect() as connection, pytest.raises(psycopg.Error, match="pool"):
        connection.execute("SET sluice.pool = 'no such pool'")


def test_a_long_statement_is_not_parsed_and_goes_to_the_primary(key: Login, primary: int) -> None:
    with key.connect() as connection:
        assert _port(connection, f"{PORT} /* {'x' * 20000} */") == primary


def test_a_hostile_statement_harms_nobody(key: Login, proxy: Proxy) -> None:
    with key.connect() as connection:
        deep = "SELECT " + "(" * 4000 + "1" + ")" * 4000
        for statement in (deep, "SELECT " + "1+" * 30000 + "1", "SELECT '" + "\\" * 16000):
            with pytest.raises(psycopg.Error):
                connection.execute(statement)
                raise psycopg.DataError("some servers compute it")
        assert connection.execute("SELECT 1").fetchone() == (1,)
    assert proxy.process.poll() is None


def test_reads_fall_back_to_the_primary_host_without_a_replica(
    start_proxy: Callable[..., Proxy], installation: Installation, make_key: MakeKey
) -> None:
    hosts = [{"name": "main", "host": "127.0.0.1", "port": installation.cluster.primary.port}]
    alone = start_proxy({"databases": {"app": {"hosts": hosts}}})
    with alone.login(*make_key()).connect() as connection:
        row = connection.execute("SELECT pg_is_in_recovery(), current_user").fetchone()
    assert row == (False, "app_ro")
