"""Session parameters and what pins: the same conversation at PostgreSQL itself and through narrow pools.

Through the proxy two other sessions of the same user work between any two statements, with settings of their own,
so that hardly any two statements run on the same server connection unless the session is pinned.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import psycopg
import pytest
from psycopg import pq

from tests.integration.conftest import MakeKey
from tests.integration.support import Installation, Login, Proxy

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
