"""What is taken for a read and isn't one, or is one that no standby does: the primary answers, with real servers."""

from __future__ import annotations

import itertools
import json
import urllib.request
from collections.abc import Callable, Iterator
from typing import Any

import psycopg
import pytest

from tests.integration.conftest import MakeKey
from tests.integration.support import Installation, Login, Proxy, wait_until

SCHEMA = "hiding"
HOLES = {
    "a view": f"SELECT * FROM {SCHEMA}.view",
    "an operator": f"SELECT 1 OPERATOR({SCHEMA}.|+|) 2",
    "a cast": f"SELECT (id::text)::{SCHEMA}.written FROM {SCHEMA}.rows",
    "attribute notation": f"SELECT r.hidden_write FROM {SCHEMA}.rows r",
    "an unlogged table": f"SELECT * FROM {SCHEMA}.unlogged",
    # As default privileges have it: who only reads may not use sequences.
    "a sequence of writers": f"SELECT * FROM {SCHEMA}.visits",
}
STATES = {"an unlogged table": "0A000", "a sequence of writers": "42501"}
CALLS = f"SELECT last_value, is_called FROM {SCHEMA}.calls"
_numbers = itertools.count()


def new_text(hole: str) -> str:
    """Return a text of which no proxy has learned before that it is refused."""
    return f"SELECT * FROM ({HOLES[hole]}) AS n{next(_numbers)}"


@pytest.fixture(scope="module", autouse=True)
def objects(installation: Installation) -> Iterator[None]:
    """Make functions that write, behind everything that hides a function's name."""
    installation.execute(
        f"DROP SCHEMA IF EXISTS {SCHEMA} CASCADE",
        f"CREATE SCHEMA {SCHEMA}",
        f"CREATE SEQUENCE {SCHEMA}.calls",
        f"""CREATE FUNCTION {SCHEMA}.count_up() RETURNS bigint LANGUAGE sql AS
            $$ SELECT nextval('{SCHEMA}.calls') $$""",
        f"CREATE VIEW {SCHEMA}.view AS SELECT {SCHEMA}.count_up() AS number",
        f"""CREATE FUNCTION {SCHEMA}.plus(integer, integer) RETURNS bigint LANGUAGE sql AS
            $$ SELECT {SCHEMA}.count_up() $$""",
        f"""CREATE OPERATOR {SCHEMA}.|+| (LEFTARG = integer, RIGHTARG = integer, FUNCTION = {SCHEMA}.plus)""",
        f"CREATE TYPE {SCHEMA}.written AS (v text)",
        f"""CREATE FUNCTION {SCHEMA}.from_text(text) RETURNS {SCHEMA}.written LANGUAGE sql AS
            $$ SELECT ROW({SCHEMA}.count_up()::text)::{SCHEMA}.written $$""",
        f"CREATE CAST (text AS {SCHEMA}.written) WITH FUNCTION {SCHEMA}.from_text(text)",
        f"CREATE TABLE {SCHEMA}.rows AS SELECT 1 AS id",
        # A dot finds functions of the search path alone.
        f"""CREATE FUNCTION public.hidden_write({SCHEMA}.rows) RETURNS bigint LANGUAGE sql AS
            $$ SELECT {SCHEMA}.count_up() $$""",
        "GRANT EXECUTE ON FUNCTION public.hidden_write TO sluice_readwrite, sluice_readonly",
        f"CREATE UNLOGGED TABLE {SCHEMA}.unlogged AS SELECT 1 AS id",
        f"GRANT USAGE ON SCHEMA {SCHEMA} TO sluice_readwrite, sluice_readonly",
        f"GRANT SELECT ON ALL TABLES IN SCHEMA {SCHEMA} TO sluice_readwrite, sluice_readonly",
        f"GRANT USAGE, SELECT ON ALL SEQUENCES IN SCHEMA {SCHEMA} TO sluice_readwrite, sluice_readonly",
        f"CREATE SEQUENCE {SCHEMA}.visitors",
        f"CREATE VIEW {SCHEMA}.visits AS SELECT nextval('{SCHEMA}.visitors') AS visit",
        f"GRANT USAGE ON SEQUENCE {SCHEMA}.visitors TO sluice_readwrite",
        f"GRANT SELECT ON {SCHEMA}.visits TO sluice_readwrite, sluice_readonly",
        f"GRANT EXECUTE ON ALL FUNCTIONS IN SCHEMA {SCHEMA} TO sluice_readwrite, sluice_readonly",
    )
    installation.replicated()
    yield
    installation.execute(f"DROP SCHEMA {SCHEMA} CASCADE")


def calls(installation: Installation) -> tuple[int, bool]:
    with installation.superuser().connect() as connection:
        row = connection.execute(CALLS).fetchone()
    assert row is not None
    return int(row[0]), bool(row[1])


def counted(proxy: Proxy, reason: str) -> float:
    """Return how often reads were sent once more for `reason`."""
    with urllib.request.urlopen(proxy.url("/metrics"), timeout=10) as answer:
        lines = answer.read().decode().splitlines()
    wanted = [line for line in lines if line.startswith("pgsluice_retries_total") and f'"{reason}"' in line]
    return sum(float(line.rpartition(" ")[2]) for line in wanted)


def logged(proxy: Proxy, read: str, number: int) -> list[dict[str, Any]]:
    """Return the records of `read`, once there are so many; its name alone is no literal."""
    name = read.rpartition(" ")[2]
    lines = proxy.output.read_text().splitlines()
    found = [json.loads(line) for line in lines if f'AS {name}"' in line]
    assert len(found) <= number
    return found if len(found) == number else []


@pytest.fixture(scope="module")
def module_proxy(installation: Installation, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Proxy]:
    """Give one proxy that was started when the functions were there."""
    running = Proxy(installation, tmp_path_factory.mktemp("proxy"))
    running.start()
    yield running
    running.stop()


@pytest.mark.parametrize("hole", HOLES)
def test_the_primary_answers_what_a_replica_refuses(
    hole: str, module_proxy: Proxy, make_key: MakeKey
) -> None:
    proxy = module_proxy
    login = proxy.login(*make_key())
    read = new_text(hole)
    state = STATES.get(hole, "25006")
    before = counted(proxy, state)
    assert login.psql(read, "-At").stderr == ""
    assert counted(proxy, state) == before + 1.0
    with login.connect() as connection:
        assert connection.execute(read, prepare=True).fetchone() is not None
        assert connection.execute(read, prepare=True).fetchone() is not None
    assert counted(proxy, state) == before + 1.0, "its text is known from then on"
    ours = wait_until(lambda: logged(proxy, read, 3), message="three records")
    assert {(each["target"], each["reason"], each.get("sqlstate")) for each in ours} == {
        ("primary", f"refused as a read before ({state})", None)
    }


@pytest.mark.parametrize("hole", HOLES)
@pytest.mark.parametrize("prepare", [False, True])
def test_a_drivers_first_read_is_answered(
    hole: str, prepare: bool, module_proxy: Proxy, make_key: MakeKey
) -> None:
    with module_proxy.login(*make_key()).connect() as connection:
        cursor = connection.execute(new_text(hole), prepare=prepare)
        assert cursor.fetchone() is not None and cursor.description is not None


async def test_asyncpg_gets_its_rows(module_proxy: Proxy, make_key: MakeKey) -> None:
    async with module_proxy.login(*make_key()).asyncpg() as connection:
        for hole in HOLES:
            read = new_text(hole)
            for _ in range(3):
                assert len(await connection.fetch(read)) == 1


@pytest.mark.parametrize("hole", [hole for hole in HOLES if hole not in STATES])
def test_a_reader_writes_nothing_through_a_hole(
    hole: str, module_proxy: Proxy, make_key: MakeKey, installation: Installation
) -> None:
    before = calls(installation)
    read = new_text(hole)
    with module_proxy.login(*make_key(["read:tasks"])).connect() as connection:
        for _ in range(2):
            with pytest.raises(psycopg.errors.ReadOnlySqlTransaction):
                connection.execute(read)
    assert calls(installation) == before


def test_a_reader_reads_an_unlogged_table_with_its_own_login(module_proxy: Proxy, make_key: MakeKey) -> None:
    with module_proxy.login(*make_key(["read:tasks"])).connect() as connection:
        read = f"SELECT current_user, pg_is_in_recovery() FROM {SCHEMA}.unlogged"
        assert connection.execute(read).fetchone() == ("app_ro", False)


def test_a_transaction_that_a_client_made_read_only_stays_refused(
    module_proxy: Proxy, make_key: MakeKey, installation: Installation
) -> None:
    before = calls(installation)
    read = new_text("a view")
    with module_proxy.login(*make_key()).connect() as connection:
        connection.execute("BEGIN READ ONLY")
        with pytest.raises(psycopg.errors.ReadOnlySqlTransaction):
            connection.execute(read)
        connection.execute("ROLLBACK")
        connection.execute("SET sluice.pool = 'readonly'")
        with pytest.raises(psycopg.errors.ReadOnlySqlTransaction):
            connection.execute(read)
    assert calls(installation) == before


@pytest.mark.long
def test_with_the_retry_switched_off_clients_get_the_servers_error(
    start_proxy: Callable[..., Proxy], make_key: MakeKey
) -> None:
    proxy = start_proxy({"databases": {"app": {"routing": {"retry_readonly_errors": False}}}})
    with proxy.login(*make_key()).connect() as connection:
        with pytest.raises(psycopg.errors.ReadOnlySqlTransaction):
            connection.execute(HOLES["a view"])
        assert connection.execute(HOLES["a view"]).fetchone() is not None
    assert counted(proxy, "25006") == 0.0


def test_a_read_that_conflicts_with_recovery_is_answered_by_the_primary(
    module_proxy: Proxy, make_key: MakeKey, installation: Installation
) -> None:
    """The replica is told to replay at once what the read still needs."""
    replica = installation.cluster.replicas[0]
    superuser = installation.superuser(replica)
    installation.execute(
        f"DROP TABLE IF EXISTS {SCHEMA}.vacuumed",
        f"CREATE TABLE {SCHEMA}.vacuumed AS SELECT generate_series(1, 1000) AS id",
        f"GRANT SELECT ON {SCHEMA}.vacuumed TO sluice_readwrite, sluice_readonly",
    )
    installation.replicated()
    with superuser.connect() as connection:
        connection.execute("ALTER SYSTEM SET max_standby_streaming_delay = 0")
        connection.execute("SELECT pg_reload_conf()")
    login: Login = module_proxy.login(*make_key())
    read = f"SELECT count(*), pg_is_in_recovery() FROM {SCHEMA}.vacuumed v, LATERAL (SELECT pg_sleep(0.003), v.id) s"
    try:
        reader = login.psql_start("-At", "-c", read)
        wait_until(lambda: _runs(superuser, "vacuumed"), message="the replica reads")
        installation.execute(f"DELETE FROM {SCHEMA}.vacuumed WHERE id <= 500", f"VACUUM {SCHEMA}.vacuumed")
        out, err = reader.communicate(timeout=30)
        assert (out, err) == ("500|f\n", "")
        assert counted(module_proxy, "40001") == 1.0
    finally:
        with superuser.connect() as connection:
            connection.execute("ALTER SYSTEM RESET max_standby_streaming_delay")
            connection.execute("SELECT pg_reload_conf()")


def _runs(login: Login, part: str) -> bool:
    with login.connect() as connection:
        row = connection.execute(
            "SELECT count(*) FROM pg_locks l JOIN pg_class c ON c.oid = l.relation WHERE c.relname = %s",
            (part,),
        ).fetchone()
    return row is not None and row[0] > 0
