"""Kept results on a real proxy: drivers, writes here and elsewhere, keys, the console, a long way, and many users."""

from __future__ import annotations

import json
import signal
import statistics
import time
import uuid
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import pytest
import yaml
from psycopg.rows import dict_row

from tests.integration import cached
from tests.integration.conftest import MakeKey, MakeTable
from tests.integration.delayed import Delayed
from tests.integration.support import DATABASE, Installation, Login, Proxy, wait_until

ROUND_TRIP = 0.04


def keeps(installation: Installation, mode: str = "on", **cache: str) -> dict[str, Any]:
    """Return the configuration of a proxy that keeps results, of the primary alone."""
    changes = cached.changes(installation)
    changes["databases"][DATABASE]["cache"] = {"mode": mode, **cache}
    return {**changes, "access_log": {"sinks": ["table", "stdout"]}}


@pytest.fixture(scope="module")
def keeping(installation: Installation, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Proxy]:
    """Give a proxy that keeps results for a minute."""
    proxy = Proxy(installation, tmp_path_factory.mktemp("keeping"), keeps(installation, ttl="60s"))
    proxy.start()
    yield proxy
    proxy.stop()


@pytest.fixture
def kept(keeping: Proxy, make_key: MakeKey) -> Login:
    return keeping.login(*make_key())


def given(proxy: Proxy) -> float:
    return cached.hits(cached.metrics(proxy))


def test_psql_gets_a_kept_result(keeping: Proxy, kept: Login, make_table: MakeTable) -> None:
    table = make_table("a int", "VALUES (1)")
    before = given(keeping)
    for _ in range(3):
        done = kept.psql(f"SELECT a FROM {table};\n", "-At")
        assert (done.stdout, done.stderr) == ("1\n", "")
    assert given(keeping) == before + 2


@pytest.mark.parametrize("binary", [False, True])
@pytest.mark.parametrize("prepare", [False, True])
def test_psycopg_gets_a_kept_result(
    keeping: Proxy, kept: Login, make_table: MakeTable, binary: bool, prepare: bool
) -> None:
    table = make_table("a int, at timestamptz", "VALUES (1, '2026-01-01'), (2, NULL)")
    text = f"SELECT a, at FROM {table} WHERE a < %s ORDER BY a"
    before = given(keeping)
    answers = []
    for _ in range(2):
        with kept.connect() as connection, connection.cursor(binary=binary) as cursor:
            answers += [cursor.execute(text, (9,), prepare=prepare).fetchall() for _ in range(3)]
            assert cursor.execute(text, (2,), prepare=prepare).rowcount == 1
    assert answers == answers[:1] * 6
    assert given(keeping) >= before + 4


async def test_asyncpg_gets_a_kept_result(keeping: Proxy, kept: Login, make_table: MakeTable) -> None:
    table = make_table("a int, b jsonb", "VALUES (1, '{}')")
    before = given(keeping)
    for _ in range(2):
        async with kept.asyncpg() as connection:
            for _ in range(3):
                assert [tuple(row) for row in await connection.fetch(f"SELECT * FROM {table}")] == [(1, "{}")]
                assert await connection.fetchval(f"SELECT a FROM {table} WHERE a = $1", 1) == 1
    # What runs behind the Flush with which it prepares a statement, on the connection held, is asked for.
    assert given(keeping) == before + 6


def test_a_write_through_the_proxy_is_seen_at_once(kept: Login, make_table: MakeTable) -> None:
    table = make_table("a int", "VALUES (0)")
    with kept.connect() as reader, kept.connect() as writer:
        for number in range(1, 50):
            assert reader.execute(f"SELECT a FROM {table}").fetchone() == (number - 1,)
            assert writer.execute(f"SELECT a FROM {table}").fetchone() == (number - 1,)
            writer.execute(f"UPDATE {table} SET a = {number}")
            assert writer.execute(f"SELECT a FROM {table}").fetchone() == (number,)
        with writer.transaction():
            writer.execute(f"UPDATE {table} SET a = 100")
            assert reader.execute(f"SELECT a FROM {table}").fetchone() == (49,)
            assert writer.execute(f"SELECT a FROM {table}").fetchone() == (100,)
        assert reader.execute(f"SELECT a FROM {table}").fetchone() == (100,)
        with writer.cursor().copy(f"COPY {table} FROM STDIN") as copy:
            copy.write("7\n")
        assert reader.execute(f"SELECT count(*) FROM {table}").fetchone() == (2,)


@pytest.mark.long
def test_a_write_elsewhere_is_heard_of(
    installation: Installation, keeping: Proxy, kept: Login, make_table: MakeTable
) -> None:
    table, view = make_table("a int", "VALUES (0)"), f"v_{uuid.uuid4().hex[:12]}"
    installation.execute(
        f"CREATE VIEW public.{view} WITH (security_invoker) AS SELECT a FROM public.{table}",
        f"GRANT SELECT ON public.{view} TO sluice_readwrite, sluice_readonly",
        f"CREATE TRIGGER told AFTER INSERT OR UPDATE OR DELETE OR TRUNCATE ON public.{table}"
        f" FOR EACH STATEMENT EXECUTE FUNCTION sluice.invalidate_cache('{view}')",
    )
    try:
        with kept.connect() as reader:

            def shows(number: int) -> bool:
                rows = [reader.execute(f"SELECT a FROM {name}").fetchone() for name in (table, view)]
                return rows == [(number,), (number,)]

            for number in range(1, 4):
                assert shows(number - 1)
                installation.execute(f"UPDATE public.{table} SET a = {number}")
                wait_until(partial(shows, number), 5.0, "what was written elsewhere")
            installation.execute(f"TRUNCATE public.{table}")
            wait_until(lambda: reader.execute(f"SELECT a FROM {view}").fetchone() is None, 5.0)
    finally:
        installation.execute(f"DROP VIEW public.{view}")


@pytest.mark.long
def test_without_a_word_of_it_nothing_holds_once_the_listener_is_lost(
    installation: Installation, kept: Login, make_table: MakeTable
) -> None:
    table = make_table("a int", "VALUES (0)")
    with kept.connect() as reader:
        assert reader.execute(f"SELECT a FROM {table}").fetchone() == (0,)
        installation.execute(f"UPDATE public.{table} SET a = 1")
        time.sleep(0.2)
        assert reader.execute(f"SELECT a FROM {table}").fetchone() == (0,)
        installation.execute(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
            " WHERE application_name = 'pgsluice control' AND query LIKE '%sluice_cache%'"
        )
        wait_until(lambda: reader.execute(f"SELECT a FROM {table}").fetchone() == (1,), 5.0)


def test_row_level_security_has_its_say(
    installation: Installation, keeping: Proxy, make_key: MakeKey, make_table: MakeTable
) -> None:
    table = make_table("owner text", "VALUES ('alice'), ('bob')")
    installation.execute(
        f"ALTER TABLE public.{table} ENABLE ROW LEVEL SECURITY, FORCE ROW LEVEL SECURITY",
        f"CREATE POLICY own ON public.{table} TO sluice_readonly"
        " USING (owner = (SELECT sluice.current_user_id()))",
    )
    logins = {user: keeping.login(*make_key(user=user)) for user in ("alice", "bob", "carol")}
    for _ in range(2):
        for user, login in logins.items():
            with login.connect() as connection:
                for _ in range(2):
                    rows = connection.execute(f"SELECT owner FROM {table}").fetchall()
                    assert rows == ([] if user == "carol" else [(user,)])


@pytest.mark.long
def test_a_key_has_its_say_and_so_has_one_that_replaces_it(
    installation: Installation, start_proxy: Callable[..., Proxy], make_key: MakeKey, make_table: MakeTable
) -> None:
    proxy = start_proxy(keeps(installation, "asked"))
    table = make_table("a int", "VALUES (0)")
    key_id, key = make_key()

    def asks(login: Login, comment: str = "") -> float:
        before = given(proxy)
        with login.connect() as connection:
            for _ in range(3):
                connection.execute(f"SELECT a FROM {table} {comment}")
        return given(proxy) - before

    login = proxy.login(key_id, key)
    assert asks(login) == 0
    assert asks(login, "/* sluice: cache=10s */") >= 1
    with installation.superuser().connect() as superuser:
        assert superuser.execute("SELECT sluice.keep_results(%s, true)", (key_id,)).fetchone() == (True,)
        wait_until(lambda: asks(login) == 3 or asks(login) == 3, 5.0, "the key's say")
        assert asks(login, "/* sluice: cache=off */") == 0
        rotated = superuser.execute("SELECT sluice.rotate_api_key(%s)", (key_id,)).fetchone()
    assert rotated is not None
    made = rotated[0]
    newer = proxy.login(made["id"], made["api_key"])
    asks(newer)
    assert asks(newer) == 3


def test_the_console_shows_and_drops_them(keeping: Proxy, make_key: MakeKey, make_table: MakeTable) -> None:
    table = make_table("a int", "VALUES (0)")
    operator = keeping.login(*make_key(["admin", "read:metrics"]))
    with keeping.login(*make_key()).connect() as client:
        client.execute(f"SELECT a FROM {table}")
    console = Login(operator.host, operator.port, operator.user, operator.password, "pgsluice")
    with console.connect(row_factory=dict_row) as connection:
        (shown,) = connection.execute("SHOW CACHE").fetchall()
        assert shown["results"] == "on"
        assert shown["result_entries"] > 0 < shown["result_bytes"]
        connection.execute(f"FLUSH CACHE {DATABASE}")
        (shown,) = connection.execute("SHOW CACHE").fetchall()
        assert (shown["result_entries"], shown["result_bytes"]) == (0, 0)


@pytest.mark.long
def test_a_reload_turns_it_off_and_on(
    installation: Installation, start_proxy: Callable[..., Proxy], make_key: MakeKey, make_table: MakeTable
) -> None:
    proxy = start_proxy(keeps(installation))
    table = make_table("a int", "VALUES (0)")
    login = proxy.login(*make_key())
    content = yaml.safe_load(proxy.config.read_text())

    def reloaded(mode: str) -> None:
        content["databases"][DATABASE]["cache"]["mode"] = mode
        proxy.config.write_text(yaml.safe_dump(content))
        read = proxy.errors.read_text().count("configuration read again")
        proxy.process.send_signal(signal.SIGHUP)
        wait_until(lambda: proxy.errors.read_text().count("configuration read again") > read)

    with login.connect() as client:

        def hits() -> float:
            before = given(proxy)
            for _ in range(4):
                client.execute(f"SELECT a FROM {table}")
            return given(proxy) - before

        assert hits() >= 3
        reloaded("off")
        assert hits() == 0
        reloaded("on")
        hits()
        assert hits() == 4
    assert not proxy.said("a restart is needed")


def test_each_is_in_the_access_log(
    installation: Installation, start_proxy: Callable[..., Proxy], make_key: MakeKey, make_table: MakeTable
) -> None:
    proxy = start_proxy(keeps(installation))
    table = make_table("a int", "VALUES (0)")
    with proxy.login(*make_key()).connect() as client:
        for _ in range(3):
            client.execute(f"SELECT a FROM {table}")

    def records() -> list[dict[str, Any]]:
        lines = [json.loads(line) for line in proxy.output.read_text().splitlines() if table in line]
        return lines if len(lines) == 3 else []

    found = wait_until(records, 10.0, "three records")
    assert [(line["target"], line["pool"], line["rows"]) for line in found[1:]] == [("cache", "cache", 1)] * 2
    assert found[1]["reason"] == "kept result"


PATIENT = {"health": {"interval": "5s", "failures_to_open": 20}}
"""What is measured is no host's health: a machine with much to do keeps it waiting."""


@pytest.mark.long
def test_a_long_way_is_not_gone_twice(
    installation: Installation, start_proxy: Callable[..., Proxy], make_key: MakeKey, make_table: MakeTable
) -> None:
    table = make_table("a int", "VALUES (0)")
    tunnel = Delayed(installation.cluster.primary.port, ROUND_TRIP)
    try:
        far = {"name": "far", "host": "127.0.0.1", "port": tunnel.port, "tls": {"mode": "off"}}
        proxy = start_proxy(
            {"databases": {DATABASE: {"hosts": [far], "cache": {"mode": "asked"}, **PATIENT}}}
        )
        with proxy.login(*make_key()).connect() as client:
            seconds = {
                comment: times(client, f"SELECT a FROM {table} {comment}")
                for comment in ("", "-- sluice: cache=60s")
            }
        uncached, kept = (statistics.median(each) for each in seconds.values())
        print(f"\nmedian {uncached * 1e3:.2f} ms, kept {kept * 1e3:.3f} ms")
        assert uncached >= ROUND_TRIP
        # Under 1 ms on a machine that does nothing else.
        assert kept < ROUND_TRIP / 8
        proxy.stop()
    finally:
        tunnel.close()


def times(client: Any, text: str) -> list[float]:
    """Return how long each of 60 questions took, but the first ones."""
    seconds = []
    for _ in range(60):
        began = time.perf_counter()
        client.execute(text)
        seconds.append(time.perf_counter() - began)
    return seconds[5:]


@pytest.fixture(scope="module")
def notes(installation: Installation) -> Iterator[Installation]:
    """Give the tables of the model."""
    installation.execute(*cached.TABLES)
    yield installation
    installation.execute(
        "DROP TABLE public.kept_notes, public.kept_totals", "DROP FUNCTION public.kept_total()"
    )


@pytest.mark.parametrize(
    ("operations", "users"),
    [(4_000, 6), pytest.param(cached.OPERATIONS, cached.USERS, marks=pytest.mark.long)],
)
@pytest.mark.timeout(400)  # a hundred thousand take one minute where nothing else runs
async def test_many_users_against_a_model(
    notes: Installation, start_proxy: Callable[..., Proxy], operations: int, users: int
) -> None:
    notes.execute("TRUNCATE public.kept_notes, public.kept_totals")
    proxy = start_proxy(cached.changes(notes))
    outcome = await cached.run(notes, proxy, operations, 20261128, users)
    assert outcome.wrong == []
    assert sum(outcome.operations.values()) >= operations
    assert cached.hits(outcome.metrics) > operations / 10
    assert outcome.metrics['invalidations_total{database="app"}'] > 0


@pytest.mark.long
async def test_with_a_replica_too_nothing_is_older_than_its_time_or_the_own_write(
    notes: Installation, start_proxy: Callable[..., Proxy]
) -> None:
    notes.execute("TRUNCATE public.kept_notes, public.kept_totals")
    proxy = start_proxy(cached.changes(notes, with_replicas=True))
    outcome = await cached.run(notes, proxy, 3_000, 20261129, 4, one_host=False)
    assert outcome.wrong == []
    assert cached.hits(outcome.metrics) > 0
