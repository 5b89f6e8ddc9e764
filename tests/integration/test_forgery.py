"""The forgery suite: two keys over one shared server connection, on a primary and a standby of every PostgreSQL.

Mallory and Victor have the same permissions. Victor works on the connection and leaves things behind; then Mallory
does what an attack of forgery.py says; then Victor comes again. Whatever Mallory is told (rows, errors, notices,
notifications) may hold nothing of Victor's, and Victor has to find himself and his rows as they were.
test_identity.py has what concerns the claim itself, past the proxy.
"""

from __future__ import annotations

import shutil
import struct
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from secrets import token_hex
from typing import Any

import psycopg
import pytest
from psycopg import pq

from proxy.embedded import scratch_directory
from tests.integration.forgery import ATTACKS, Attack
from tests.integration.raw import Raw
from tests.integration.support import Installation, Login, Proxy, wait_until
from tests.session.frontend import SYNC, bind, describe, execute, kinds

pytest_plugins = ["tests.integration.versions"]

Connection = psycopg.Connection[Any]

VICTOR = "victor@example.com"
MALLORY = "mallory@example.com"
PERMISSIONS = ["read:tasks", "write:tasks"]
TABLE = "public.forgery_rows"
PRIMARY = {"options": "-c sluice.pool=primary"}
STANDBY = {"options": "-c sluice.pool=readonly"}
# What a standby says of statements that write, that lock, and that only a primary has.
ON_STANDBY = ("25006", "55000", "0A000")


@dataclass(frozen=True)
class Stage:
    """One server connection for two users, on each host, and what belongs to Victor."""

    proxy: Proxy
    installed: Installation
    victor: Login
    mallory: Login
    secret: str
    row: str

    def filled(self, text: str, claim: str = "") -> str:
        """Return a text of an attack with its names filled in."""
        forged = "0" * 64 + "aaaa" + "9999999999" + f"|{VICTOR}|{self.victor.user}|{' '.join(PERMISSIONS)}"
        values = {
            "t": TABLE,
            "forged": forged,
            "claim": claim.replace(MALLORY, VICTOR),
            "secret": self.secret,
            "victor": VICTOR,
            "key": self.victor.user,
        }
        for name, value in values.items():
            text = text.replace("{" + name + "}", value)
        return text


@pytest.fixture(scope="module")
def stage(installed: Installation) -> Iterator[Stage]:
    """Set the stage; a third session holds the other of each pool's two connections, so that pins are allowed."""
    row = f"row-{token_hex(8)}"
    installed.execute(
        "CREATE FUNCTION public.run(statement text) RETURNS text LANGUAGE plpgsql"
        " AS 'DECLARE result text; BEGIN EXECUTE statement INTO result; RETURN result;"
        " EXCEPTION WHEN syntax_error THEN EXECUTE statement; RETURN NULL; END'",
        "GRANT EXECUTE ON FUNCTION public.run TO PUBLIC",
        "CREATE SEQUENCE public.forgery_numbers",
        "GRANT USAGE ON SEQUENCE public.forgery_numbers TO sluice_readwrite",
        f"CREATE TABLE {TABLE} (id int PRIMARY KEY, owner text DEFAULT sluice.current_user_id(), body text)",
        f"ALTER TABLE {TABLE} ENABLE ROW LEVEL SECURITY, FORCE ROW LEVEL SECURITY",
        f"CREATE POLICY own ON {TABLE} USING (owner = (SELECT sluice.current_user_id()))",
        f"GRANT SELECT, INSERT, UPDATE, DELETE ON {TABLE} TO sluice_readwrite",
        f"GRANT SELECT ON {TABLE} TO sluice_readonly",
        f"INSERT INTO {TABLE} VALUES (1, '{MALLORY}', 'row of mallory'), (2, '{VICTOR}', '{row}')",
        f"ANALYZE {TABLE}",
    )
    installed.replicated()
    directory = scratch_directory("pgsluice-forgery-")
    two = {"min": 0, "max": 2}
    database = {
        "pools": {"primary": two, "readonly": two},
        "pool_defaults": {"acquire_timeout": "10s"},
        "timeouts": {"idle_in_transaction": 0},
    }
    proxy = Proxy(installed, directory, {"databases": {"app": database}, "access_log": {"sinks": ["table"]}})
    proxy.start()

    def login(user: str) -> Login:
        return proxy.login(*installed.generate_key(user, PERMISSIONS))

    holder = login("holder@example.com")
    try:
        # One of the last tests ends these too.
        with closing(holder.connect(**PRIMARY)) as first, closing(holder.connect(**STANDBY)) as second:
            for connection in (first, second):
                connection.execute("BEGIN; SELECT pg_backend_pid()")
            yield Stage(proxy, installed, login(VICTOR), login(MALLORY), f"secret-{token_hex(8)}", row)
    finally:
        proxy.stop()
        shutil.rmtree(directory)
        installed.execute(
            f"DROP TABLE {TABLE}",
            "DROP SEQUENCE public.forgery_numbers",
            "DROP FUNCTION public.run",
        )


@pytest.fixture(scope="module", params=["primary", "standby"])
def host(request: pytest.FixtureRequest) -> dict[str, str]:
    return PRIMARY if request.param == "primary" else STANDBY


class Heard:
    """Everything that a client is told."""

    def __init__(self, connection: Connection) -> None:
        self.texts: list[str] = []
        self._connection = connection
        connection.add_notice_handler(lambda notice: self._diagnostic(notice))
        connection.add_notify_handler(lambda notify: self.texts.append(f"{notify.channel} {notify.payload}"))

    def run(self, statement: str) -> tuple[str, str | None]:
        """Run a statement; returns its SQLSTATE ("" for success) and the first value of its last result."""
        value: str | None = None
        try:
            if statement.startswith("COPY"):
                with self._connection.cursor().copy(statement.encode()) as copy:
                    self.texts += [bytes(part).decode(errors="replace") for part in copy]
                return "", None
            cursor = self._connection.execute(statement.encode())
            while True:
                if cursor.description:
                    rows = cursor.fetchall()
                    self.texts += [str(each) for row in rows for each in row]
                    value = str(rows[0][0]) if rows else None
                if not cursor.nextset():
                    return "", value
        except psycopg.Error as error:
            self._diagnostic(error.diag)
            self.texts.append(str(error))
            return error.sqlstate or "08006", value

    def _diagnostic(self, said: psycopg.errors.Diagnostic) -> None:
        fields = (said.message_primary, said.message_detail, said.message_hint, said.context)
        self.texts += [field for field in fields if field]


def own_rows(connection: Connection) -> list[tuple[Any, ...]]:
    return connection.execute(f"SELECT owner, body FROM {TABLE} ORDER BY id").fetchall()


def claim_of(connection: Connection) -> str:
    row = connection.execute("SELECT current_setting('sluice.identity'), sluice.current_user_id()").fetchone()
    assert row is not None
    assert row[0].split("|")[1] == row[1]
    text: str = row[0]
    return text


def forbidden(stage: Stage, claims: list[str]) -> list[str]:
    """Return what nobody but Victor may be told: his row, what he said, his claims, his key; and the signing keys."""
    with stage.installed.superuser().connect() as superuser:
        keys = superuser.execute("SELECT ipad, opad, compare_key FROM sluice.signing_keys").fetchall()
    parts = [bytes(value)[:8] for row in keys for value in row]
    signed = [" ".join(str(byte - 256 if byte > 127 else byte) for byte in part) for part in parts]
    return [
        stage.row,
        stage.secret,
        stage.victor.password,
        *(claim[:64] for claim in claims),
        *(part.hex() for part in parts),
        *signed,
    ]


def test_both_users_get_the_same_server_connection(stage: Stage, host: dict[str, str]) -> None:
    seen = set()
    for login in (stage.victor, stage.mallory) * 3:
        with login.connect(**host) as connection:
            row = connection.execute("SELECT pg_backend_pid(), pg_is_in_recovery()").fetchone()
            assert row is not None
            seen.add(row)
    assert len(seen) == 1
    assert seen.pop()[1] is (host is STANDBY)


@pytest.mark.parametrize("attack", ATTACKS, ids=lambda attack: attack.name)
def test_an_attack_brings_nothing_of_the_other_user(
    stage: Stage, host: dict[str, str], attack: Attack
) -> None:
    if host is STANDBY and attack.primary_only:
        host = PRIMARY
    allowed = (*attack.comes, *(ON_STANDBY if host is STANDBY else ()))
    # Closed, not committed: what is open is left open.
    with closing(stage.victor.connect(**host)) as victor:
        assert own_rows(victor) == [(VICTOR, stage.row)]
        claims = [claim_of(victor)]
        victor.execute("SELECT %s::text", (stage.secret,))
        for statement in attack.before:
            if Heard(victor).run(stage.filled(statement))[0]:
                assert "1/0" in statement
        if not attack.before:
            # Still there while Mallory works.
            heard = mallory_tries(stage, host, attack, allowed)
            assert own_rows(victor) == [(VICTOR, stage.row)]
            claims.append(claim_of(victor))
    if attack.before:
        heard = mallory_tries(stage, host, attack, allowed)
    with stage.victor.connect(**host) as victor:
        assert own_rows(victor) == [(VICTOR, stage.row)]
        claims.append(claim_of(victor))
    told = " ".join(" ".join(heard.texts).split())
    for what in forbidden(stage, claims):
        assert what not in told


def mallory_tries(stage: Stage, host: dict[str, str], attack: Attack, allowed: tuple[str, ...]) -> Heard:
    """Let Mallory do what the attack says, and look whose rows are seen afterwards; returns what was told."""
    with closing(stage.mallory.connect(**host)) as mallory:
        claim = claim_of(mallory)
        heard = Heard(mallory)
        value: str | None = None
        for step in attack.steps:
            sqlstate, value = heard.run(stage.filled(step, claim))
            assert sqlstate in allowed, f"{step}: {sqlstate} {heard.texts[-1:]}"
            # Whoever the server believes is asking, it isn't Victor.
            assert value != VICTOR or "FROM" in step.upper(), step
            if mallory.closed:
                break
        if attack.sees is not None:
            assert value == attack.sees
        if not mallory.closed:
            if mallory.info.transaction_status != pq.TransactionStatus.IDLE:
                mallory.execute("ROLLBACK")
            sqlstate, _ = heard.run(f"SELECT owner FROM {TABLE}")
            # With row_security off PostgreSQL refuses.
            assert sqlstate in ("", "42501")
    assert VICTOR not in [text for text in heard.texts if text == VICTOR]
    return heard


def test_the_suite_would_see_what_it_looks_for(stage: Stage, host: dict[str, str]) -> None:
    with stage.victor.connect(**host) as victor:
        heard = Heard(victor)
        claims = [claim_of(victor)]
        heard.run(f"SELECT body, current_setting('sluice.identity'), '{stage.secret}' FROM {TABLE}")
        heard.run(f"SELECT '{stage.row}'::int")
        told = [what for what in forbidden(stage, claims) if what in " ".join(heard.texts)]
        assert told == [stage.row, stage.secret, claims[0][:64]]
        assert heard.texts[-1].count(stage.row) > 0


def test_a_claim_serves_no_other_connection_and_no_other_login(stage: Stage, host: dict[str, str]) -> None:
    with stage.victor.connect(**host) as victor:
        claim = claim_of(victor)
    servers = stage.installed.cluster.servers
    for role in ("app_rw", "app_ro", "app_admin"):
        for server in servers:
            # What a thief of a pool's password could do, past the proxy.
            with stage.installed.role(role, server).connect() as thief:
                thief.execute("SELECT set_config('sluice.identity', %s, false)", (claim,))
                assert thief.execute("SELECT sluice.current_user_id()").fetchone() == (None,)
                if role != "app_admin":
                    assert own_rows(thief) == []


# What needs more than statements


def test_names_of_the_protocol_are_each_sessions_own(stage: Stage, host: dict[str, str]) -> None:
    with stage.victor.connect(**host) as victor:
        victor.pgconn.prepare(b"of_victor", f"SELECT '{stage.secret}'".encode())
        assert victor.pgconn.exec_prepared(b"of_victor", []).get_value(0, 0) == stage.secret.encode()
        with Raw(stage.proxy.port) as mallory:
            mallory.log_in((stage.mallory.user, stage.mallory.password), **host)
            for messages, answer in (
                ((bind("of_victor"), execute()), "E:26000 ZI"),
                ((describe("of_victor"),), "E:26000 ZI"),
                ((bind(""), execute()), "E:26000 ZI"),
                ((execute("of_victor"),), "E:34000 ZI"),
                ((execute(""),), "E:34000 ZI"),
            ):
                came = b"".join(mallory.ask(b"".join(messages) + SYNC))
                assert kinds(came) == answer
                assert stage.secret.encode() not in came
        assert victor.pgconn.exec_prepared(b"of_victor", []).get_value(0, 0) == stage.secret.encode()


def test_nobody_cancels_another_without_the_secret(stage: Stage, host: dict[str, str]) -> None:
    with stage.victor.connect(**host) as victor:
        pid = victor.pgconn.backend_pid
        victor.pgconn.send_query(b"SELECT pg_sleep(1), 'done'")
        for guess in (
            b"",
            bytes(4),
            b"\xff" * 4,
            *(bytes.fromhex(token_hex(4)) for _ in range(50)),
            bytes(32),
        ):
            with Raw(stage.proxy.port) as mallory:
                mallory.send(struct.pack("!iii", 12 + len(guess), 80877102, pid) + guess)
                assert mallory.rest() in (b"",) or guess in (b"", bytes(32))
        result = victor.pgconn.get_result()
        assert result is not None and victor.pgconn.get_result() is None
        assert result.get_value(0, 1) == b"done"


@pytest.mark.parametrize("function", ["pg_cancel_backend", "pg_terminate_backend"])
@pytest.mark.long
def test_whoever_ends_all_backends_learns_nothing_and_is_nobody_else(
    installed: Installation, stage: Stage, function: str
) -> None:
    # They share a role, so PostgreSQL permits it, until `setup --harden`.
    directory = scratch_directory("pgsluice-ends-")
    running = Proxy(installed, directory)
    running.start()
    try:
        victor = running.login(stage.victor.user, stage.victor.password)
        mallory = running.login(stage.mallory.user, stage.mallory.password)
        with closing(victor.connect(**PRIMARY)) as first, closing(mallory.connect(**PRIMARY)) as second:
            first.execute("BEGIN")
            first.execute(f"SELECT body FROM {TABLE}")
            heard = Heard(second)
            everybody = (
                "SELECT pid FROM pg_stat_activity WHERE usename = 'app_rw' AND pid <> pg_backend_pid()"
            )
            sqlstate, _ = heard.run(f"SELECT {function}(pid) FROM ({everybody}) AS others")
            assert sqlstate in ("", "42501")
            for _ in range(3):
                assert heard.run(f"SELECT owner, body FROM {TABLE}")[0] in ("", "57014", "57P01", "08006")
            told = " ".join(heard.texts)
            assert stage.row not in told and VICTOR not in told

        def himself() -> bool:
            with victor.connect(**PRIMARY) as again:
                return own_rows(again) == [(VICTOR, stage.row)]

        assert wait_until(himself)
    finally:
        running.stop()
        shutil.rmtree(directory)


ALTERED = {
    "sluice.identity": "'{forged}'",
    "row_security": "off",
    "search_path": "pg_temp, public, pg_catalog",
    "default_transaction_read_only": "on",
    "role": "sluice_owner",
    "session_preload_libraries": "'plpgsql'",
    "client_min_messages": "debug5",
    "debug_print_plan": "on",
}


def test_a_role_that_alters_itself_changes_nobody(installed: Installation, stage: Stage) -> None:
    """ALTER ROLE sets what every later connection of the pool begins with; a role may do that to itself."""
    directory = scratch_directory("pgsluice-alters-")
    done: list[str] = []
    try:
        with stage.mallory.connect(**PRIMARY) as mallory:
            heard = Heard(mallory)
            assert heard.run("ALTER ROLE app_rw SET row_security = off")[0] == "42501"
            for name, value in ALTERED.items():
                statement = stage.filled(f"ALTER ROLE app_rw SET {name} = {value}")
                sqlstate, _ = heard.run(f"SELECT public.run($${statement}$$)")
                assert sqlstate in ("", "42501", "42704", "22023")
                done += [name] if not sqlstate else []
        assert "row_security" in done and "search_path" in done
        running = Proxy(installed, directory)
        running.start()
        try:
            for login, rows in (
                (stage.victor, [(VICTOR, stage.row)]),
                (stage.mallory, [(MALLORY, "row of mallory")]),
            ):
                login = running.login(login.user, login.password)
                for host in (PRIMARY, STANDBY):
                    with login.connect(**host) as connection:
                        heard = Heard(connection)
                        assert own_rows(connection) == rows
                        claim_of(connection)
                        connection.execute("SELECT pg_sleep(0)")
                        told = " ".join(" ".join(heard.texts).split())
                        if login.user == stage.mallory.user:
                            assert not [what for what in forbidden(stage, []) if what in told]
        finally:
            running.stop()
    finally:
        shutil.rmtree(directory)
        installed.execute(*(f"ALTER ROLE app_rw RESET {name}" for name in done))
