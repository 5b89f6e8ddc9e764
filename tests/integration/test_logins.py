"""Who is let in, who is not, and what each is told."""

from __future__ import annotations

import asyncio
import select
import socket
import struct
from collections.abc import Callable

import asyncpg
import psycopg
import pytest

from tests.integration.conftest import MakeKey, MakeTable
from tests.integration.support import Installation, Login, Proxy, soon, wait_until


async def _refusal(login: Login) -> asyncpg.PostgresError:
    with pytest.raises(asyncpg.PostgresError) as caught:
        async with login.asyncpg():
            raise AssertionError("it was let in")
    return caught.value


def _told(error: asyncpg.PostgresError) -> tuple[str, str]:
    """Return the SQLSTATE, and the code that DETAIL begins with."""
    return str(error.sqlstate), str(error.detail).partition(":")[0]


async def test_rejected_keys_all_get_the_same_answer(
    proxy: Proxy, make_key: MakeKey, installation: Installation
) -> None:
    key_id, key = make_key()
    expired_id, expired = make_key()
    revoked_id, revoked = make_key()
    installation.execute(
        f"UPDATE sluice.api_keys SET expires_at = now() - interval '1 second' WHERE id = '{expired_id}'",
        f"SELECT sluice.revoke_api_key('{revoked_id}')",
    )
    logins = {
        "a wrong secret": proxy.login(key_id, key[:-4] + "0000"),
        "another key's secret": proxy.login(key_id, expired),
        "an unknown key": proxy.login("ctm_000000000000", f"ctm_000000000000_{'0' * 32}"),
        "an expired key": proxy.login(expired_id, expired),
        "a revoked key": proxy.login(revoked_id, revoked),
        "no key at all": proxy.login("postgres", "postgres"),
        "an empty password": proxy.login(key_id, " "),
    }
    refusals = {name: await _refusal(login) for name, login in logins.items()}
    told = {name: _told(error) for name, error in refusals.items()}
    assert told == dict.fromkeys(logins, ("28P01", "INVALID_API_KEY"))
    assert len({str(error) for error in refusals.values()}) == 1


@pytest.mark.parametrize(
    ("program", "arguments"),
    [
        ("psql", ["-X", "-c", "IDENTIFY_SYSTEM", "replication=database"]),
        ("pg_recvlogical", ["--create-slot", "--slot=stolen", "--plugin=pgoutput"]),
        ("pg_receivewal", ["--directory=."]),
        ("pg_basebackup", ["--pgdata=-", "--format=tar", "--wal-method=none"]),
    ],
)
def test_replication_is_refused_with_the_reason(
    admin: Login, program: str, arguments: list[str], request: pytest.FixtureRequest
) -> None:
    if program == "pg_recvlogical":
        arguments = [*arguments, f"--dbname={admin.database}"]
    done = admin.run(program, *arguments)
    assert done.returncode != 0
    assert "pass by row-level security" in done.stderr or request.config.getoption("--direct")


def test_psql_shows_the_message(proxy: Proxy, make_key: MakeKey) -> None:
    key_id, key = make_key()
    done = proxy.login(key_id, key + "x").psql("SELECT 1")
    assert done.returncode == 2
    assert "FATAL:  API key rejected" in done.stderr


async def test_the_password_method_takes_any_user_name(proxy: Proxy, make_key: MakeKey) -> None:
    _, key = make_key(user="any.name@example.com")
    async with proxy.login("whoever", key).asyncpg() as connection:
        assert await connection.fetchval("SELECT sluice.current_user_id()") == "any.name@example.com"


async def test_an_unknown_database_is_named(proxy: Proxy, make_key: MakeKey) -> None:
    key_id, key = make_key()
    error = await _refusal(Login("127.0.0.1", proxy.port, key_id, key, "nowhere"))
    assert error.sqlstate == "3D000"
    assert "nowhere" in str(error)


async def test_an_address_that_is_not_on_the_list_is_refused(
    proxy: Proxy, make_key: MakeKey, installation: Installation
) -> None:
    key_id, key = make_key()
    installation.execute(
        f"UPDATE sluice.api_keys SET allowed_addresses = '{{10.0.0.0/8}}' WHERE id = '{key_id}'"
    )
    error = await _refusal(proxy.login(key_id, key))
    assert _told(error) == ("28000", "ADDRESS_NOT_ALLOWED")


async def test_an_address_on_the_list_is_let_in(
    proxy: Proxy, make_key: MakeKey, installation: Installation
) -> None:
    key_id, key = make_key()
    installation.execute(
        f"UPDATE sluice.api_keys SET allowed_addresses = '{{10.0.0.0/8,127.0.0.0/8}}' WHERE id = '{key_id}'"
    )
    async with proxy.login(key_id, key).asyncpg() as connection:
        assert await connection.fetchval("SELECT 1") == 1


def test_a_login_without_a_user_is_told_what_is_missing(proxy: Proxy) -> None:
    with socket.create_connection(("127.0.0.1", proxy.port), timeout=10) as client:
        body = struct.pack("!I", 196608) + b"database\0app\0\0"
        client.sendall(struct.pack("!I", len(body) + 4) + body)
        answer = client.makefile("rb").read()
    assert answer.startswith(b"E")
    assert b"C28000\0" in answer
    assert b"DMISSING_API_KEY" in answer


def test_ssl_requests_get_a_clean_no(proxy: Proxy, make_key: MakeKey) -> None:
    login = proxy.login(*make_key())
    with login.connect(sslmode="prefer", gssencmode="disable") as connection:
        assert connection.execute("SELECT 1").fetchone() == (1,)
    with pytest.raises(Exception, match="does not support SSL"):
        login.connect(sslmode="require", gssencmode="disable")


async def test_a_read_only_key_may_not_write(proxy: Proxy, make_key: MakeKey, make_table: MakeTable) -> None:
    table = make_table("id integer", "VALUES (1)")
    writes = (
        f"INSERT INTO {table} VALUES (2)",
        f"UPDATE {table} SET id = 2",
        f"WITH gone AS (DELETE FROM {table} RETURNING 1) SELECT count(*) FROM gone",
        f"TRUNCATE {table}",
        f"WITH kept AS (UPDATE {table} SET id = 3 RETURNING id) SELECT id FROM kept",
    )
    async with proxy.login(*make_key(["read:tasks"])).asyncpg() as connection:
        for statement in writes:
            with pytest.raises(asyncpg.InsufficientPrivilegeError) as caught:
                await connection.execute(statement)
            assert _told(caught.value) == ("42501", "INSUFFICIENT_PERMISSIONS"), statement
            with pytest.raises(asyncpg.InsufficientPrivilegeError):
                await connection.fetch(statement)
        assert await connection.fetchval(f"SELECT id FROM {table}") == 1


async def test_a_refused_write_fails_its_transaction(
    proxy: Proxy, make_key: MakeKey, make_table: MakeTable
) -> None:
    table = make_table("id integer", "VALUES (1)")
    async with proxy.login(*make_key(["read:tasks"])).asyncpg() as connection:
        await connection.execute("BEGIN")
        assert await connection.fetchval(f"SELECT id FROM {table}") == 1
        with pytest.raises(asyncpg.InsufficientPrivilegeError):
            await connection.execute(f"UPDATE {table} SET id = 2")
        with pytest.raises(asyncpg.InFailedSQLTransactionError):
            await connection.execute("SELECT 1")
        await connection.execute("ROLLBACK")
        assert await connection.fetchval("SELECT 1") == 1


@pytest.mark.parametrize(
    "statement",
    [
        "CREATE TABLE mine (id integer)",
        "DO $$ BEGIN END $$",
        "SET ROLE sluice_admin",
        "SET SESSION AUTHORIZATION postgres",
        "SET session_replication_role = replica",
        "ALTER ROLE app_rw SET search_path = pg_temp",
        "SET sluice.identity = 'x'",
        "SELECT set_config('sluice.identity', 'x', false)",
        "RESET sluice.identity",
    ],
)
async def test_what_needs_an_admin_or_forges_is_refused(
    statement: str, proxy: Proxy, make_key: MakeKey
) -> None:
    async with proxy.login(*make_key()).asyncpg() as connection:
        with pytest.raises(asyncpg.InsufficientPrivilegeError) as caught:
            await connection.execute(statement)
        assert _told(caught.value) == ("42501", "INSUFFICIENT_PERMISSIONS")
        assert await connection.fetchval("SELECT 1") == 1


async def test_a_revoked_key_s_sessions_end_at_once(
    proxy: Proxy, make_key: MakeKey, installation: Installation
) -> None:
    key_id, key = make_key()
    ended = [asyncio.Event(), asyncio.Event()]
    login = proxy.login(key_id, key)
    async with proxy.login(*make_key()).asyncpg() as bystander:
        async with login.asyncpg() as idle, login.asyncpg() as busy:
            for connection, event in zip((idle, busy), ended, strict=True):
                connection.add_termination_listener(lambda _, event=event: event.set())
            await busy.execute("BEGIN")
            await busy.execute("SELECT pg_current_xact_id()")
            installation.execute(f"SELECT sluice.revoke_api_key('{key_id}')")
            async with asyncio.timeout(5):
                await asyncio.gather(*(event.wait() for event in ended))
        assert await bystander.fetchval("SELECT 1") == 1
    assert _told(await _refusal(login)) == ("28P01", "INVALID_API_KEY")


async def test_a_forged_notification_ends_no_session(
    proxy: Proxy, make_key: MakeKey, installation: Installation
) -> None:
    key_id, key = make_key()
    async with proxy.login(key_id, key).asyncpg() as connection, proxy.login(*make_key()).asyncpg() as forger:
        for _ in range(20):
            await forger.execute("SELECT pg_notify('sluice_keys', $1)", key_id)
        assert await connection.fetchval("SELECT 1") == 1


async def test_a_rate_limit_leaves_the_connection_usable(
    proxy: Proxy, make_key: MakeKey, installation: Installation
) -> None:
    key_id, key = make_key()
    installation.execute(f"UPDATE sluice.api_keys SET rate_limit_per_minute = 5 WHERE id = '{key_id}'")
    async with proxy.login(key_id, key).asyncpg() as connection:
        with pytest.raises(asyncpg.PostgresError) as caught:
            for _ in range(20):
                await connection.execute("SELECT 1")
        assert _told(caught.value) == ("53400", "RATE_LIMIT_EXCEEDED")
        assert caught.value.hint
        assert not connection.is_closed()
        with pytest.raises(asyncpg.PostgresError) as again:
            await connection.fetch("SELECT 1")
        assert _told(again.value) == ("53400", "RATE_LIMIT_EXCEEDED")


async def test_a_pool_without_a_free_connection_says_so(
    start_proxy: Callable[..., Proxy], make_key: MakeKey
) -> None:
    narrow = start_proxy(
        {
            "databases": {
                "app": {
                    "pools": {"primary": {"min": 0, "max": 1}},
                    "pool_defaults": {"acquire_timeout": "300ms"},
                }
            }
        }
    )
    login = narrow.login(*make_key())
    async with login.asyncpg() as holder, login.asyncpg() as waiting:
        await holder.execute("BEGIN")
        await holder.execute("SELECT pg_current_xact_id()")
        with pytest.raises(asyncpg.PostgresError) as caught:
            await waiting.execute("SELECT pg_current_xact_id()")
        assert _told(caught.value) == ("53300", "POOL_EXHAUSTED")
        await holder.execute("COMMIT")
        await waiting.execute("SELECT pg_current_xact_id()")


async def test_more_clients_than_allowed_are_turned_away(
    start_proxy: Callable[..., Proxy], make_key: MakeKey
) -> None:
    small = start_proxy({"listen": {"max_clients": 3}})
    login = small.login(*make_key())
    async with login.asyncpg(), login.asyncpg(), login.asyncpg():
        error = await _refusal(login)
        assert error.sqlstate == "53300"

    def free_again() -> bool:
        with login.connect() as connection:
            return connection.execute("SELECT 1").fetchone() == (1,)

    assert await soon(free_again)


async def test_a_client_that_says_nothing_is_closed(start_proxy: Callable[..., Proxy]) -> None:
    impatient = start_proxy({"listen": {"auth_timeout": "300ms"}})
    with socket.create_connection(("127.0.0.1", impatient.port), timeout=10) as client:
        assert b"FATAL" in client.recv(1000) or client.recv(1) == b""
    assert impatient.process.poll() is None


def test_the_query_timeout_cancels_on_the_server_too(
    start_proxy: Callable[..., Proxy], make_key: MakeKey, installation: Installation
) -> None:
    strict = start_proxy({"databases": {"app": {"timeouts": {"query": "300ms"}}}})
    done = strict.login(*make_key()).psql(
        "SELECT pg_sleep(30);\nSELECT 'goes on';\n", "-At", "-v", "VERBOSITY=verbose"
    )
    assert "57014" in done.stderr
    assert "QUERY_TIMEOUT" in done.stderr
    assert done.stdout == "goes on\n"
    active = (
        "SELECT count(*) FROM pg_stat_activity"
        " WHERE state = 'active' AND query LIKE '%pg_sleep(30)%' AND pid <> pg_backend_pid()"
    )
    for server in installation.cluster.servers:
        with installation.superuser(server).connect() as connection:
            wait_until(lambda: connection.execute(active).fetchone() == (0,), message="it is cancelled")


def test_an_idle_transaction_is_ended(start_proxy: Callable[..., Proxy], make_key: MakeKey) -> None:
    strict = start_proxy({"databases": {"app": {"timeouts": {"idle_in_transaction": "1s"}}}})
    with strict.login(*make_key()).connect() as connection:
        connection.execute("BEGIN")
        connection.execute("SELECT pg_current_xact_id()")
        told, _, _ = select.select([connection.pgconn.socket], [], [], 20)
        assert told
        with pytest.raises(psycopg.errors.IdleInTransactionSessionTimeout):
            connection.execute("SELECT 1")
