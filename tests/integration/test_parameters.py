"""Session parameters and what pins: the same conversation at PostgreSQL itself and through narrow pools.

Through the proxy two other sessions of the same user work between any two statements, with settings of their own,
so that hardly any two statements run on the same server connection unless the session is pinned.
"""

from __future__ import annotations

import urllib.request
from collections.abc import Iterator, Sequence
from typing import Any

import psycopg
import pytest
from psycopg import pq

from tests.integration.conftest import MakeKey, MakeTable
from tests.integration.support import Installation, Login, Proxy, wait_until

REPORTED = ("TimeZone", "DateStyle", "IntervalStyle", "client_encoding", "application_name")

Answer = tuple[str, list[tuple[bytes | None, ...]], str]


@pytest.fixture(scope="module")
def narrow(installation: Installation, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Proxy]:
    """Give a proxy with two server connections for each pool."""
    two = {"min": 0, "max": 2}
    pools = dict.fromkeys(("primary", "readonly", "priority", "background", "admin"), two)
    running = Proxy(installation, tmp_path_factory.mktemp("narrow"), {"databases": {"app": {"pools": pools}}})
    running.start()
    yield running
    running.stop()


@pytest.fixture(scope="module")
def login(narrow: Proxy, make_key: MakeKey) -> Login:
    return narrow.login(*make_key())


@pytest.fixture(scope="module")
def others(login: Login) -> Iterator[list[psycopg.Connection[Any]]]:
    """Give two sessions of the same user that disturb."""
    with login.connect() as first, login.connect() as second:
        yield [first, second]


class Talk:
    """A session that notes each answer as its client sees it."""

    def __init__(
        self, connection: psycopg.Connection[Any], others: Sequence[psycopg.Connection[Any]]
    ) -> None:
        self.pg = connection.pgconn
        self.others = others
        self.seen: list[object] = []

    def ask(self, sql: str) -> None:
        """Run `sql` as a simple query; with the extended protocol where it begins with `=`."""
        result = self.pg.exec_params(sql[1:].encode(), []) if sql[0] == "=" else self.pg.exec_(sql.encode())
        tag = (result.command_status or b"").decode()
        rows = [
            tuple(result.get_value(row, column) for column in range(result.nfields))
            for row in range(result.ntuples)
        ]
        code = (result.error_field(pq.DiagnosticField.SQLSTATE) or b"").decode()
        self.seen.append((sql, (tag, rows, code)))
        self.note()
        self.disturb()

    def note(self) -> None:
        """Note what the client has been told of parameters."""
        self.seen.append({name: self.pg.parameter_status(name.encode()) for name in REPORTED})

    def disturb(self) -> None:
        """Let the others change settings and use connections of both pools."""
        for number, other in enumerate(self.others):
            other.execute(f"SET TimeZone = 'Etc/GMT+{number + 1}'; SET search_path = elsewhere")
            other.execute(f"SET work_mem = '{number + 3}MB'; SET intervalstyle = 'sql_standard'")
            other.execute("SELECT 1")
            other.execute("SELECT txid_current()")
            other.execute("SET app.tenant = 'another'")


def told(
    login: Login, script: Sequence[str], others: Sequence[psycopg.Connection[Any]], **options: Any
) -> list[object]:
    with login.connect(**options) as connection:
        talk = Talk(connection, others)
        talk.note()
        for sql in script:
            talk.ask(sql)
        return talk.seen


SHOW = "SELECT current_setting('TimeZone'), now()::text ~ '[+]09$', current_setting('work_mem')"
BERLIN = {"options": "-c TimeZone=Europe/Berlin -c work_mem=7MB", "application_name": "told"}

SCRIPTS = {
    "set": ["SET TimeZone = 'Asia/Tokyo'", SHOW, "SHOW TimeZone", "SELECT txid_current() > 0", SHOW],
    "set in the extended protocol": [
        "=SET TimeZone = 'Asia/Tokyo'",
        "=" + SHOW,
        "=RESET TimeZone",
        "=" + SHOW,
    ],
    "reset": ["SET work_mem = '9MB'", SHOW, "RESET work_mem", SHOW, "SHOW work_mem"],
    "set to default": [
        "SET TimeZone = 'Asia/Tokyo'",
        "SET TimeZone TO DEFAULT",
        SHOW,
        "SET TIME ZONE LOCAL",
        SHOW,
    ],
    "reset all": ["SET TimeZone = 'Asia/Tokyo'; SET work_mem = '9MB'", "RESET ALL", SHOW],
    "discard all": ["SET TimeZone = 'Asia/Tokyo'; SET work_mem = '9MB'", "DISCARD ALL", SHOW],
    "reset in a transaction": [
        *("SET TimeZone = 'Asia/Tokyo'", "BEGIN", "RESET TimeZone", SHOW, "ROLLBACK", SHOW),
        *("BEGIN", "RESET TimeZone", SHOW, "COMMIT", SHOW),
    ],
    "reset all in a transaction": [
        *("SET TimeZone = 'Asia/Tokyo'; SET work_mem = '9MB'", "BEGIN", "RESET ALL", SHOW, "SAVEPOINT a"),
        *("SET work_mem = '11MB'", SHOW, "ROLLBACK TO a", SHOW, "ROLLBACK", SHOW),
        *("BEGIN", "RESET ALL", "COMMIT", SHOW),
    ],
    "savepoints": [
        *(
            "BEGIN",
            "SET TimeZone = 'Asia/Tokyo'",
            "SAVEPOINT a",
            "SET TimeZone = 'Asia/Seoul'",
            "RELEASE a",
            "COMMIT",
        ),
        *(SHOW, "BEGIN", "SAVEPOINT a", "SET work_mem = '9MB'", "ROLLBACK TO a", "COMMIT", SHOW),
        *("BEGIN", "SAVEPOINT a", "RESET work_mem", "ROLLBACK TO a", "COMMIT", SHOW),
    ],
    "set local": [
        "BEGIN",
        "SET LOCAL TimeZone = 'Asia/Tokyo'",
        SHOW,
        "COMMIT",
        SHOW,
        "SET LOCAL work_mem = '9MB'",
        SHOW,
    ],
    "set and set local": [
        "BEGIN",
        "SET work_mem = '9MB'",
        "SET LOCAL work_mem = '11MB'",
        SHOW,
        "COMMIT",
        SHOW,
    ],
    "errors": [
        *("SET TimeZone = 'Nowhere/At all'", SHOW, "SET no_such_parameter = 1", "SHOW no_such_parameter"),
        *("BEGIN", "SET TimeZone = 'Asia/Tokyo'", "SELECT 1/0", "COMMIT", SHOW),
        *("SET TimeZone = 'Asia/Tokyo'; SELECT 1/0", SHOW),
    ],
    "merged values": [
        *("SET DateStyle = 'German'", "SHOW DateStyle", "SET DateStyle = 'YMD'", "SHOW DateStyle"),
        *(
            "SELECT date '2024-02-01'::text",
            "SET IntervalStyle = 'iso_8601'",
            "SELECT interval '1 day 1 hour'::text",
        ),
    ],
    "set_config": [
        *(
            "SELECT set_config('TimeZone', 'Asia/Tokyo', false)",
            SHOW,
            "SELECT set_config('TimeZone', NULL, false) = ''",
            SHOW,
        ),
        *("SELECT set_config('TimeZone', 'Asia/Tokyo', true)", SHOW),
        *("BEGIN", "SELECT set_config('work_mem', '9MB', true)", SHOW, "COMMIT", SHOW),
    ],
    "search_path": [
        *(
            'SET search_path = "$user", "Odd name", pg_catalog',
            "SHOW search_path",
            "SELECT current_schemas(true)",
        ),
        *("SET SCHEMA 'public'", "SHOW search_path"),
    ],
    "values in another encoding": [
        *(
            "SET client_encoding = 'LATIN1'",
            "SELECT set_config('search_path', 'sch' || chr(233) || 'ma', false) IS NULL",
        ),
        *("SELECT ascii(substr(current_setting('search_path'), 4, 1))", "SET bytea_output = 'escape'"),
        *("SET client_encoding = 'UTF8'", "SELECT ascii(substr(current_setting('search_path'), 4, 1))"),
    ],
    "a timeout of next to nothing": [
        # Less would be too little for a SHOW on a machine that has much to do.
        "SET statement_timeout = '4'",
        "SHOW statement_timeout",
        "RESET statement_timeout",
    ],
    "settings of the application": [
        *("SET app.tenant = 'one'", "SELECT current_setting('app.tenant')", "SHOW app.tenant"),
        *("BEGIN", "SET LOCAL app.tenant = 'two'", "SHOW app.tenant", "COMMIT", "SHOW app.tenant"),
        *("RESET app.tenant", "SHOW app.tenant", "SET app.tenant = ''", "SHOW app.tenant"),
    ],
    "timeouts": [
        *(
            "SET statement_timeout = '90s'",
            "SHOW statement_timeout",
            "SET lock_timeout = 1500",
            "SHOW lock_timeout",
        ),
        *("RESET statement_timeout", "SHOW statement_timeout"),
    ],
    "characteristics": [
        *(
            "SET SESSION CHARACTERISTICS AS TRANSACTION ISOLATION LEVEL REPEATABLE READ",
            "SHOW transaction_isolation",
        ),
        *("SET SESSION CHARACTERISTICS AS TRANSACTION READ ONLY", "SHOW transaction_read_only"),
        *(
            "SELECT nextval('no_such')",
            "SET default_transaction_read_only = off",
            "SHOW transaction_read_only",
        ),
        *("BEGIN", "SET TRANSACTION ISOLATION LEVEL SERIALIZABLE", "SHOW transaction_isolation", "COMMIT"),
        "SHOW transaction_isolation",
    ],
    "names": [
        *(
            "SET application_name = 'mine'",
            "SHOW application_name",
            "RESET application_name",
            "SHOW application_name",
        ),
        *("SET client_encoding = 'LATIN1'", "SELECT 'x'", "SHOW client_encoding", "RESET client_encoding"),
        *("SHOW client_encoding", "SET extra_float_digits = 0", "SELECT 0.1::float8 + 0.2::float8"),
    ],
    "role": [
        "SET ROLE NONE",
        "RESET ROLE",
        "SHOW role",
        "BEGIN",
        "SET LOCAL ROLE NONE",
        "SHOW role",
        "COMMIT",
    ],
}


@pytest.mark.parametrize("script", SCRIPTS.values(), ids=list(SCRIPTS))
@pytest.mark.parametrize("options", [{}, BERLIN], ids=["plain", "with parameters at startup"])
def test_a_session_has_its_settings_as_at_postgresql(
    login: Login,
    installation: Installation,
    others: list[psycopg.Connection[Any]],
    script: list[str],
    options: dict[str, Any],
) -> None:
    direct = installation.role("app_rw")
    assert told(login, script, others, **options) == told(direct, script, [], **options)


PINNING = {
    "listen": [
        "LISTEN a",
        "SELECT pg_listening_channels()",
        "LISTEN b",
        "UNLISTEN a",
        "SELECT pg_listening_channels()",
        "UNLISTEN b",
        "BEGIN",
        "LISTEN c",
        "ROLLBACK",
        "SELECT pg_listening_channels()",
    ],
    "temporary table": [
        *("CREATE TEMP TABLE mine AS SELECT 7 AS x", "SELECT x FROM mine", "INSERT INTO mine VALUES (8)"),
        *("SELECT sum(x) FROM mine", "CREATE TEMP VIEW seen AS SELECT x FROM mine", "SELECT x FROM seen"),
        *("DROP VIEW seen", "SELECT x FROM mine", "DROP TABLE mine", "SELECT x FROM mine"),
    ],
    "temporary table of a transaction": [
        *("BEGIN", "CREATE TEMP TABLE mine (x int) ON COMMIT DROP", "INSERT INTO mine VALUES (1)"),
        *("SELECT x FROM mine", "COMMIT", "SELECT x FROM mine"),
        *("BEGIN", "CREATE TEMP TABLE mine (x int)", "ROLLBACK", "SELECT x FROM mine"),
        *("CREATE TEMP TABLE mine (x int)", "DISCARD TEMP", "SELECT x FROM mine"),
    ],
    "hold cursor": [
        *(
            "BEGIN",
            "DECLARE c CURSOR WITH HOLD FOR SELECT generate_series(1, 5)",
            "COMMIT",
            "FETCH c",
            "FETCH 2 FROM c",
        ),
        *(
            "BEGIN",
            "DECLARE d CURSOR WITH HOLD FOR SELECT 1",
            "COMMIT",
            "CLOSE c",
            "FETCH d",
            "CLOSE d",
            "FETCH d",
        ),
    ],
    "advisory lock": [
        *(
            "SELECT pg_advisory_lock(4711)",
            "SELECT pg_try_advisory_lock(4711)",
            "SELECT pg_advisory_unlock(4711)",
        ),
        *("SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND pid = pg_backend_pid()",),
        *(
            "SELECT pg_advisory_unlock(4711)",
            "SELECT pg_advisory_lock(4712)",
            "SELECT pg_advisory_unlock_all()",
        ),
        *("BEGIN", "SELECT pg_advisory_xact_lock(4713)", "COMMIT"),
    ],
    "in the extended protocol": [
        *("=LISTEN a", "=SELECT pg_listening_channels()", "=UNLISTEN *", "=SELECT pg_listening_channels()"),
        *("=SELECT pg_advisory_lock(4714)", "=SELECT pg_advisory_unlock(4714)"),
    ],
    "unseen settings": ["SELECT set_config(lower('TIMEZONE'), 'Asia/Tokyo', false)", SHOW, "RESET ALL", SHOW],
    "everything": [
        *("LISTEN a", "CREATE TEMP TABLE mine (x int)", "SELECT pg_advisory_lock(4715)", "DISCARD ALL"),
        *("SELECT x FROM mine", "SELECT pg_listening_channels()"),
    ],
    "nothing": [
        "SELECT lastval()",
        "SELECT currval('pg_catalog.pg_class')",
        "FETCH nothing",
        "LOAD 'nothing'",
    ],
}


def pinned(narrow: Proxy) -> float:
    """Return how many server connections the metrics call pinned."""
    with urllib.request.urlopen(narrow.url("/metrics"), timeout=10) as answer:
        lines = answer.read().decode().splitlines()
    return sum(
        float(line.split()[-1]) for line in lines if line.startswith("pgsluice_pool_connections_pinned{")
    )


@pytest.mark.parametrize("script", PINNING.values(), ids=list(PINNING))
def test_what_cannot_be_carried_is_kept_as_at_postgresql_and_let_go(
    narrow: Proxy,
    login: Login,
    installation: Installation,
    others: list[psycopg.Connection[Any]],
    script: list[str],
) -> None:
    with login.connect() as connection:
        talk = Talk(connection, others)
        talk.note()
        for sql in script:
            talk.ask(sql)
        assert pinned(narrow) == 0
    assert talk.seen == told(installation.role("app_rw"), script, [])


def test_the_reason_of_a_pin_is_counted(narrow: Proxy, login: Login) -> None:
    with login.connect() as connection:
        connection.execute("LISTEN counted")
        assert pinned(narrow) == 1
        with urllib.request.urlopen(narrow.url("/metrics"), timeout=10) as answer:
            assert 'reason="listen"' in answer.read().decode()
    wait_until(lambda: pinned(narrow) == 0)


def test_one_connection_of_a_pool_stays_free(narrow: Proxy, login: Login) -> None:
    with login.connect() as first, login.connect() as second:
        first.execute("LISTEN a")
        with pytest.raises(psycopg.errors.TooManyConnections, match="keep their server connection"):
            second.execute("LISTEN b")
        assert second.execute("SELECT txid_current() > 0").fetchone() == (True,)
        first.execute("UNLISTEN *")
        wait_until(lambda: pinned(narrow) == 0)
        second.execute("LISTEN b")


def test_notifications_come_at_once_while_the_client_is_idle(login: Login) -> None:
    with login.connect() as listener, login.connect() as sender:
        listener.execute("LISTEN news")
        sender.execute("NOTIFY news, 'hello'")
        (heard,) = listener.notifies(timeout=10, stop_after=1)
        assert (heard.channel, heard.payload) == ("news", "hello")
        listener.execute("UNLISTEN news")
        sender.execute("NOTIFY news, 'too late'")
        assert list(listener.notifies(timeout=0.3)) == []


def test_currval_is_of_this_session(login: Login, make_table: MakeTable, installation: Installation) -> None:
    table = make_table("id serial, of text")
    installation.execute(f"GRANT USAGE, SELECT ON SEQUENCE {table}_id_seq TO sluice_readwrite")
    currval = f"SELECT currval('{table}_id_seq')"
    with login.connect() as mine, login.connect() as other:
        with pytest.raises(psycopg.errors.ObjectNotInPrerequisiteState):
            mine.execute(currval)
        mine.execute(f"INSERT INTO {table} (of) VALUES ('mine')")
        assert mine.execute(currval).fetchone() == (1,)
        for _ in range(3):
            other.execute(f"INSERT INTO {table} (of) VALUES ('other')")
        assert mine.execute("SELECT lastval()").fetchone() == (1,)
        mine.execute("DISCARD ALL")
        mine.execute(f"INSERT INTO {table} (of) VALUES ('mine')")
        other.execute(f"INSERT INTO {table} (of) VALUES ('other')")
        other.execute(f"INSERT INTO {table} (of) VALUES ('other')")
        with pytest.raises(psycopg.errors.ObjectNotInPrerequisiteState):
            mine.execute(currval)


ADMINS = {
    "role": [
        *(
            "SET ROLE sluice_readonly",
            "SELECT current_user",
            "BEGIN",
            "SET LOCAL ROLE NONE",
            "SELECT current_user",
        ),
        *("COMMIT", "SELECT current_user", "SHOW role", "RESET ROLE", "SELECT current_user"),
        *("BEGIN", "SET ROLE sluice_readonly", "ROLLBACK", "SELECT current_user", "SET ROLE sluice_readonly"),
        *("RESET ALL", "SELECT current_user", "DISCARD ALL", "SELECT current_user"),
    ],
    "a function that changes settings": [
        *("DO $$ BEGIN PERFORM set_config('TimeZone', 'Asia/Tokyo', false); END $$", SHOW, "SHOW TimeZone"),
        *("RESET TimeZone", SHOW),
    ],
}


@pytest.mark.parametrize("script", ADMINS.values(), ids=list(ADMINS))
def test_an_admin_has_its_role_and_settings_as_at_postgresql(
    narrow: Proxy, make_key: MakeKey, installation: Installation, script: list[str]
) -> None:
    installation.execute("GRANT sluice_readonly TO app_admin")
    admin = narrow.login(*make_key(["admin", "read:tasks", "write:tasks"]))
    with admin.connect() as first, admin.connect() as second:
        assert told(admin, script, [first, second]) == told(installation.role("app_admin"), script, [])
    installation.execute("REVOKE sluice_readonly FROM app_admin")


def test_the_pool_is_shown_chosen_and_given_back(narrow: Proxy, make_key: MakeKey) -> None:
    login = narrow.login(*make_key())
    for options, start in (("", ""), ("-c sluice.pool=priority", "priority")):
        with login.connect(options=options) as connection:
            for binary in (False, True):

                def value(sql: str, binary: bool = binary, connection: Any = connection) -> object:
                    return connection.execute(sql, binary=binary, prepare=binary).fetchone()[0]

                assert value("SHOW sluice.pool") == start
                connection.execute("SET sluice.pool = 'background'", prepare=binary)
                assert value("SHOW sluice.pool") == "background"
                assert value("SELECT current_setting('sluice.pool')") == "background"
                with pytest.raises(psycopg.errors.InvalidParameterValue, match="does not exist"):
                    connection.execute("SET sluice.pool = 'nowhere'", prepare=binary)
                connection.execute("RESET sluice.pool", prepare=binary)
                assert value("SHOW sluice.pool") == start


# -- pool_mode: session


@pytest.fixture(scope="module")
def kept(installation: Installation, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Proxy]:
    """Give a proxy whose clients keep their server connection until they end."""
    changes = {"databases": {"app": {"pool_mode": "session"}}}
    running = Proxy(installation, tmp_path_factory.mktemp("kept"), changes)
    running.start()
    yield running
    running.stop()


@pytest.mark.parametrize("script", [*SCRIPTS.values(), *PINNING.values()], ids=[*SCRIPTS, *PINNING])
def test_in_session_mode_everything_stays_as_at_postgresql(
    kept: Proxy, make_key: MakeKey, installation: Installation, script: list[str]
) -> None:
    login = kept.login(*make_key())
    with login.connect() as first:
        assert told(login, script, [first], **BERLIN) == told(
            installation.role("app_rw"), script, [], **BERLIN
        )


def test_in_session_mode_a_connection_is_reset_when_its_client_ends(kept: Proxy, make_key: MakeKey) -> None:
    login = kept.login(*make_key())
    with login.connect() as first:
        pid = first.info.backend_pid
        first.execute("CREATE TEMP TABLE mine (x int)")
        first.execute("SET TimeZone = 'Asia/Tokyo'")
        assert first.execute("SHOW TimeZone").fetchone() == ("Asia/Tokyo",)
        backend = first.execute("SELECT pg_backend_pid()").fetchone()
        assert first.execute("SELECT pg_backend_pid(), txid_current() > 0").fetchone() == (
            *(backend or ()),
            True,
        )
        assert pid
    for _ in range(4):
        with login.connect() as next_one:
            assert next_one.execute("SHOW TimeZone").fetchone() != ("Asia/Tokyo",)
            with pytest.raises(psycopg.errors.UndefinedTable):
                next_one.execute("SELECT x FROM mine")
