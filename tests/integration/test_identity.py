"""The signed identity inside PostgreSQL: on a primary and on a standby, of every version there is."""

from __future__ import annotations

import random
import re
import string
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import psycopg
import pytest
from psycopg import sql

from proxy.auth.identity import Signer, SigningKey
from proxy.embedded import Server
from tests.integration.support import Installation

pytest_plugins = ["tests.integration.versions"]

Connection = psycopg.Connection[Any]

USER = "alice@example.com"
KEY_ID = "ctm_0123456789ab"
PERMISSIONS = ("read:tasks", "write:tasks")
WHO = (
    "SELECT sluice.current_user_id(), sluice.current_user_id('read:tasks'), sluice.current_key_id(),"
    " sluice.has_permission('read:tasks')"
)
NOBODY = (None, None, None, False)


@pytest.fixture(params=["primary", "standby"])
def server(request: pytest.FixtureRequest, installed: Installation) -> Server:
    return installed.cluster.primary if request.param == "primary" else installed.cluster.replicas[0]


@pytest.fixture
def client(installed: Installation, server: Server) -> Iterator[Connection]:
    """Give a connection as a pool opens one."""
    with installed.role("app_rw", server).connect() as connection:
        yield connection


@pytest.fixture
def secret_bytes(installed: Installation) -> tuple[str, bytes, bytes, bytes]:
    with installed.superuser().connect() as superuser:
        row = superuser.execute(
            "SELECT kid, ipad, opad, compare_key FROM sluice.signing_keys ORDER BY created_at DESC LIMIT 1"
        ).fetchone()
    assert row is not None
    kid, ipad, opad, compare_key = row
    return kid, bytes(ipad), bytes(opad), bytes(compare_key)


@pytest.fixture
def signer(secret_bytes: tuple[str, bytes, bytes, bytes]) -> Signer:
    kid, ipad, opad, _ = secret_bytes
    return Signer(SigningKey(kid, ipad, opad))


def claim(
    signer: Signer,
    connection: Connection,
    user: str = USER,
    permissions: Sequence[str] = PERMISSIONS,
    seconds: int = 60,
) -> str:
    session_user = connection.info.user
    pid = connection.info.backend_pid
    return signer.claim(user, KEY_ID, permissions, pid, session_user, int(time.time()) + seconds)


def put(connection: Connection, text: str) -> None:
    connection.execute("SELECT pg_catalog.set_config('sluice.identity', %s, false)", (text,))


def who(connection: Connection) -> tuple[Any, ...]:
    row: tuple[Any, ...] | None = connection.execute(WHO).fetchone()
    assert row is not None
    return row


# What holds


@pytest.mark.parametrize(
    "user",
    [USER, "Ada Lovelace", "=a", "a|b", "a\\b", "jörg", "🦆", "a\tb\n", "x" * 320, "%s $1 'quoted' \"too\""],
)
def test_a_claim_names_its_user(client: Connection, signer: Signer, user: str) -> None:
    put(client, claim(signer, client, user))
    assert who(client) == (user, user, KEY_ID, True)


@pytest.mark.parametrize(
    ("permissions", "asked", "held"),
    [
        (("read:tasks", "write:tasks"), "write:tasks", True),
        (("read:tasks", "write:tasks"), "read:tasks write:tasks", False),
        (("read:tasks", "write:tasks"), "read", False),
        (("read:tasks", "write:tasks"), "read:task", False),
        (("read:tasks", "write:tasks"), "", False),
        (("read:tasks", "write:tasks"), "admin", False),
        (("admin",), "admin", True),
        (("admin",), "read:tasks", False),
        ((), "read:tasks", False),
        ((), "", False),
        (("read:tasks",), None, False),
    ],
)
def test_a_permission_is_held_literally(
    client: Connection, signer: Signer, permissions: Sequence[str], asked: str | None, held: bool
) -> None:
    put(client, claim(signer, client, permissions=permissions))
    row = client.execute(
        "SELECT sluice.has_permission(%s), sluice.current_user_id(%s)", (asked, asked)
    ).fetchone()
    assert row == (held, USER if held else None)


def test_a_transaction_keeps_the_identity_that_it_began_with(client: Connection, signer: Signer) -> None:
    put(client, claim(signer, client, seconds=2))
    with client.transaction():
        assert who(client)[0] == USER
        client.execute("SELECT pg_sleep(2.1)")
        assert who(client)[0] == USER
    assert who(client) == NOBODY


def test_several_signing_keys_are_good_at_the_same_time(
    installed: Installation, client: Connection, signer: Signer
) -> None:
    with installed.superuser().connect() as superuser:
        row = superuser.execute("SELECT sluice.create_signing_key()").fetchone()
        assert row is not None
        found = superuser.execute(
            "SELECT kid, ipad, opad FROM sluice.signing_keys WHERE kid = %s", row
        ).fetchone()
        assert found is not None
        newer = Signer(SigningKey(found[0], bytes(found[1]), bytes(found[2])))
        try:
            installed.replicated()
            for each in (signer, newer):
                put(client, claim(each, client))
                assert who(client)[0] == USER
            superuser.execute("DELETE FROM sluice.signing_keys WHERE kid = %s", row)
            installed.replicated()
            assert who(client) == NOBODY
        finally:
            superuser.execute("DELETE FROM sluice.signing_keys WHERE kid = %s", row)


# What doesn't


def test_without_a_claim_nobody_asks(client: Connection) -> None:
    assert who(client) == NOBODY


@pytest.mark.parametrize("statement", ["RESET ALL", "DISCARD ALL", "RESET sluice.identity"])
def test_a_reset_takes_the_identity_away(client: Connection, signer: Signer, statement: str) -> None:
    put(client, claim(signer, client))
    client.execute(statement)
    assert who(client) == NOBODY


def test_a_claim_set_in_a_transaction_goes_with_its_rollback(client: Connection, signer: Signer) -> None:
    with client.transaction(force_rollback=True):
        put(client, claim(signer, client))
        assert who(client)[0] == USER
    assert who(client) == NOBODY


def test_a_claim_of_another_backend_is_worth_nothing(
    installed: Installation, server: Server, client: Connection, signer: Signer
) -> None:
    with installed.role("app_rw", server).connect() as other:
        put(other, claim(signer, other))
        assert who(other)[0] == USER
        put(client, claim(signer, other))
        assert who(client) == NOBODY


def test_a_claim_of_another_login_is_worth_nothing(client: Connection, signer: Signer) -> None:
    pid = client.info.backend_pid
    put(client, signer.claim(USER, KEY_ID, PERMISSIONS, pid, "app_ro", int(time.time()) + 60))
    assert who(client) == NOBODY


def test_an_expired_claim_is_worth_nothing(client: Connection, signer: Signer) -> None:
    for seconds in (-1, -3600):
        put(client, claim(signer, client, seconds=seconds))
        assert who(client) == NOBODY


def test_a_claim_ends_with_the_second_that_it_names(client: Connection, signer: Signer) -> None:
    with client.transaction():
        row = client.execute("SELECT floor(extract(epoch FROM now()))::bigint").fetchone()
        assert row is not None
        pid = client.info.backend_pid
        put(client, signer.claim(USER, KEY_ID, PERMISSIONS, pid, "app_rw", row[0]))
        assert who(client) == NOBODY
        put(client, signer.claim(USER, KEY_ID, PERMISSIONS, pid, "app_rw", row[0] + 1))
        assert who(client)[0] == USER


def test_a_claim_of_another_key_is_worth_nothing(client: Connection, signer: Signer) -> None:
    stranger = Signer(SigningKey.from_secret(signer.kid, b"a key of one's own"))
    unknown = Signer(SigningKey.from_secret("zzzz", b"a key of one's own"))
    for each in (stranger, unknown):
        put(client, claim(each, client))
        assert who(client) == NOBODY


def mutations(text: str, count: int) -> Iterator[str]:
    """Yield `count` texts near `text`: bytes changed, added, removed, moved, doubled."""
    chance = random.Random(20240229)
    letters = string.ascii_letters + string.digits + "|=:;,. -_\\'\"\n\té…🦆"
    made = 0
    while made < count:
        changed = list(text)
        for _ in range(chance.choice((1, 1, 1, 2, 5))):
            at = chance.randrange(len(changed))
            match chance.randrange(6):
                case 0:
                    changed[at] = chance.choice(letters)
                case 1:
                    changed.insert(at, chance.choice(letters))
                case 2:
                    del changed[at]
                case 3:
                    changed[at] = changed[at].swapcase()
                case 4:
                    other = chance.randrange(len(changed))
                    changed[at], changed[other] = changed[other], changed[at]
                case _:
                    changed[at:at] = changed[at : at + chance.randrange(1, 40)]
        if "".join(changed) != text:
            made += 1
            yield "".join(changed)


# In the list, not in WHERE: there PostgreSQL calls a stable function without arguments once for all rows.
EACH = """
    SELECT given, sluice.current_user_id(), sluice.current_user_id('read:tasks'), sluice.current_key_id(),
           sluice.has_permission('read:tasks')
    FROM (SELECT given, pg_catalog.set_config('sluice.identity', given, false) AS taken
          FROM unnest(%s::text[]) AS given OFFSET 0) AS texts
    WHERE taken IS NOT NULL
"""


def test_a_changed_claim_is_worth_nothing(client: Connection, signer: Signer) -> None:
    genuine = claim(signer, client)
    forged = list(mutations(genuine, 20_000))
    # The genuine one in their midst shows that the query would find a forged one.
    rows = client.execute(EACH, ([*forged, genuine, *forged[:10]],)).fetchall()
    assert len(rows) == 20_011
    assert [row for row in rows if row[1:] != NOBODY] == [(genuine, USER, USER, KEY_ID, True)]


@pytest.mark.parametrize(
    "text",
    [
        "",
        " ",
        "|",
        "|" * 84,
        "0" * 83,
        "0" * 84,
        "f" * 64 + "0000" + "9999999999" + "|a|b|c",
        "\\" * 100,
        "\\x" + "00" * 64,
        "'" * 100,
        "é" * 84,
        "🦆" * 100,
        "…" * 3000,
        "x" * 8192,
        "x" * 8193,
        "x" * 1_000_000,
    ],
    ids=lambda text: f"{text[:8]!r}, {len(text)}",
)
def test_anything_else_is_nobody_and_no_error(client: Connection, text: str) -> None:
    put(client, text)
    assert who(client) == NOBODY


def test_a_bad_mac_before_any_text_is_no_error(client: Connection, signer: Signer) -> None:
    head = f"{'0' * 64}{signer.kid}"
    for tail in (
        "",
        "|",
        "9999999999",
        "99999999999999|||",
        "not a number|=|=|",
        "éééééééééé|ü|ü|ü",
        "\\" * 30,
    ):
        put(client, (head + tail).ljust(90, "|"))
        assert who(client) == NOBODY


SETTINGS = [
    "standard_conforming_strings = off",
    "bytea_output = escape",
    "client_encoding = latin1",
    "plan_cache_mode = force_custom_plan",
    "plan_cache_mode = force_generic_plan",
    "search_path = pg_temp, public",
    "row_security = off",
    "transform_null_equals = on",
    "extra_float_digits = -15",
    "datestyle = 'German'",
    "timezone = 'Pacific/Chatham'",
    "enable_seqscan = off",
    "jit_above_cost = 0",
    "work_mem = '64kB'",
    "check_function_bodies = off",
    "plpgsql.extra_errors = 'all'",
]


def test_a_clients_settings_change_nothing(client: Connection, signer: Signer) -> None:
    client.prepare_threshold = None  # DISCARD ALL would drop what psycopg prepared
    for setting in SETTINGS:
        client.execute("DISCARD ALL")
        client.execute(f"SET {setting}".encode())
        genuine = claim(signer, client)
        for _ in range(7):  # beyond the executions that get a custom plan
            put(client, genuine)
            assert who(client) == (USER, USER, KEY_ID, True), setting
            put(client, genuine[:-1])
            assert who(client) == NOBODY, setting


def test_names_of_the_clients_own_are_not_used(installed: Installation, signer: Signer) -> None:
    with installed.role("app_rw").connect() as connection:
        connection.execute("CREATE TEMP TABLE signing_keys AS SELECT 'zzzz'::text AS kid")
        connection.execute(
            "CREATE FUNCTION pg_temp.sha256(bytea) RETURNS bytea LANGUAGE sql AS $$ SELECT '\\x00'::bytea $$"
        )
        connection.execute(
            "CREATE FUNCTION pg_temp.now() RETURNS timestamptz LANGUAGE sql"
            " AS $$ SELECT '-infinity'::timestamptz $$"
        )
        connection.execute("SET search_path = pg_temp, sluice, pg_catalog, public")
        put(connection, "0" * 64 + f"{signer.kid}9999999999|{USER}|{KEY_ID}|admin")
        assert who(connection) == NOBODY
        put(connection, claim(signer, connection, seconds=-5))
        assert who(connection) == NOBODY
        put(connection, claim(signer, connection))
        assert who(connection)[0] == USER


# What protects the keys


REFUSED = [
    "SELECT * FROM sluice.signing_keys",
    "SELECT kid FROM sluice.signing_keys",
    "SELECT sluice.create_signing_key()",
    "SELECT sluice.hmac_pad('\\x00', '36')",
    "SELECT sluice.decode_claim_field('=YQ')",
    "SELECT sluice.scram_verifier('a', '\\x00')",
    "SELECT sluice.check_key_admin()",
    "SELECT secret_sha256 FROM sluice.api_keys",
    "SELECT scram_verifier FROM sluice.api_keys",
    "SELECT * FROM sluice.api_access_logs",
    "SELECT sluice.ensure_partitions()",
    "SELECT sluice.cleanup_old_logs(1)",
    "DELETE FROM sluice.schema_checksums",
    "SET ROLE sluice_definer",
    "SET ROLE sluice_control",
    "SET SESSION AUTHORIZATION sluice_control",
    "CREATE TABLE sluice.mine ()",
    "SELECT pg_stat_get_backend_activity(1)",
]


@pytest.mark.parametrize("role", ["app_rw", "app_ro", "app_admin"])
def test_clients_are_refused(installed: Installation, server: Server, role: str) -> None:
    with installed.role(role, server).connect() as connection:
        for statement in REFUSED:
            with pytest.raises((psycopg.errors.InsufficientPrivilege, psycopg.errors.ReadOnlySqlTransaction)):
                connection.execute(statement.encode())


def test_the_control_login_reads_keys_and_the_log_and_nothing_else(
    installed: Installation, server: Server
) -> None:
    with installed.role("sluice_control", server).connect() as control:
        assert control.execute("SELECT kid, ipad, opad FROM sluice.signing_keys").fetchall()
        control.execute("SELECT id, secret_sha256, scram_verifier FROM sluice.api_keys")
        control.execute("SELECT * FROM sluice.api_access_logs LIMIT 1")
        for statement in (
            "UPDATE sluice.api_access_logs SET key_id = NULL",
            "DELETE FROM sluice.api_access_logs",
            "SELECT sluice.create_signing_key()",
            "SELECT sluice.current_user_id()",
            "DELETE FROM sluice.schema_checksums",
        ):
            with pytest.raises((psycopg.errors.InsufficientPrivilege, psycopg.errors.ReadOnlySqlTransaction)):
                control.execute(statement)


def as_in_a_plan(value: bytes) -> list[str]:
    """Return how a node tree and a client would print a part of `value`."""
    part = value[:8]
    signed = " ".join(str(byte - 256 if byte > 127 else byte) for byte in part)
    return [part.hex(), signed, " ".join(str(byte) for byte in part)]


def one_line(said: Sequence[str]) -> str:
    """Return all of it without line breaks: PostgreSQL wraps plans wherever a line is full."""
    return " ".join(" ".join(said).split())


def test_keys_never_show_in_what_the_server_tells(
    installed: Installation,
    server: Server,
    client: Connection,
    signer: Signer,
    secret_bytes: tuple[str, bytes, bytes, bytes],
) -> None:
    said: list[str] = []
    client.add_notice_handler(lambda notice: said.append(f"{notice.message_primary} {notice.message_detail}"))
    for setting in (
        "client_min_messages = debug5",
        "debug_print_parse = on",
        "debug_print_rewritten = on",
        "debug_print_plan = on",
        "debug_pretty_print = off",
    ):
        client.execute(f"SET {setting}".encode())
    # The test rests on that: a constant shows, in this form.
    client.execute("SELECT '\\x36543210fedcba98'::bytea || convert_to(version(), 'UTF8')")
    assert as_in_a_plan(bytes.fromhex("36543210fedcba98"))[1] in one_line(said)
    for plan_cache_mode in ("auto", "force_custom_plan", "force_generic_plan"):
        client.execute(f"SET plan_cache_mode = {plan_cache_mode}".encode())
        put(client, claim(signer, client))
        assert who(client)[0] == USER
        client.execute(f"EXPLAIN (ANALYZE, VERBOSE, SETTINGS) {WHO}".encode())
    everything = one_line(said)
    for value in secret_bytes[1:]:
        for form in as_in_a_plan(value):
            assert form not in everything


def test_a_new_api_key_never_shows_in_what_the_server_tells(installed: Installation, signer: Signer) -> None:
    said: list[str] = []
    with installed.role("app_admin").connect() as admin:
        put(admin, claim(signer, admin, permissions=["admin"]))
        admin.add_notice_handler(
            lambda notice: said.append(f"{notice.message_primary} {notice.message_detail}")
        )
        for setting in ("client_min_messages = debug5", "debug_print_plan = on", "debug_print_parse = on"):
            admin.execute(f"SET {setting}".encode())
        row = admin.execute("""SELECT generate_api_key('a key', 'bob', '["read:tasks"]')""").fetchone()
    assert row is not None
    secret = row[0]["api_key"].rpartition("_")[2]
    everything = one_line(said)
    assert "generate_api_key" in everything or "PLAN" in everything.upper()
    for form in (secret, *as_in_a_plan(secret.encode())):
        assert form not in everything


def test_every_definer_function_is_closed_and_hardened(installed: Installation) -> None:
    with installed.superuser().connect() as superuser:
        rows = superuser.execute("""
            SELECT p.oid::regprocedure::text, p.prosecdef, r.rolname, p.proconfig,
                   has_function_privilege('public', p.oid, 'EXECUTE'),
                   p.provolatile::text || p.proparallel::text
            FROM pg_proc p JOIN pg_roles r ON r.oid = p.proowner
            WHERE p.pronamespace = 'sluice'::regnamespace
        """).fetchall()
    assert len(rows) >= 16
    for name, definer, owner, settings, public, kind in rows:
        assert owner in {"sluice_definer", "sluice_owner"}, name
        assert not public, name
        if definer:
            assert settings[:5] == [
                "search_path=pg_catalog, pg_temp",
                "client_min_messages=notice",
                "debug_print_parse=off",
                "debug_print_rewritten=off",
                "debug_print_plan=off",
            ], name
        if re.search(r"current_|has_permission", name):
            assert kind == "sr", f"{name}: stable, parallel restricted"


# Row-level security on it


@pytest.fixture
def notes(installed: Installation) -> Iterator[str]:
    """Give a table of notes that belong to users, with two rows of Alice's and one of Bob's."""
    installed.execute(
        "DROP TABLE IF EXISTS public.notes_of_users",
        "CREATE TABLE public.notes_of_users (owner text NOT NULL, body text)",
        "ALTER TABLE public.notes_of_users ENABLE ROW LEVEL SECURITY, FORCE ROW LEVEL SECURITY",
        "CREATE POLICY own ON public.notes_of_users TO sluice_readwrite, sluice_readonly"
        " USING (owner = (SELECT sluice.current_user_id('read:tasks')))"
        " WITH CHECK (owner = (SELECT sluice.current_user_id('write:tasks')))",
        "GRANT SELECT, INSERT ON public.notes_of_users TO sluice_readwrite",
        "GRANT SELECT ON public.notes_of_users TO sluice_readonly",
        f"INSERT INTO public.notes_of_users VALUES ('{USER}', 'one'), ('{USER}', 'two'), ('bob', 'three')",
    )
    installed.replicated()
    yield "public.notes_of_users"
    installed.execute("DROP TABLE public.notes_of_users")


def bodies(connection: Connection) -> list[str]:
    return [row[0] for row in connection.execute("SELECT body FROM public.notes_of_users ORDER BY body")]


def test_a_policy_shows_each_user_their_rows(notes: str, client: Connection, signer: Signer) -> None:
    assert bodies(client) == []
    put(client, claim(signer, client))
    assert bodies(client) == ["one", "two"]
    put(client, claim(signer, client, "bob"))
    assert bodies(client) == ["three"]
    put(client, claim(signer, client, permissions=["write:tasks"]))
    assert bodies(client) == []


def test_a_policy_lets_each_user_write_their_rows_only(
    notes: str, installed: Installation, signer: Signer
) -> None:
    with installed.role("app_rw").connect() as connection:
        put(connection, claim(signer, connection))
        connection.execute("INSERT INTO public.notes_of_users VALUES (%s, 'three')", (USER,))
        for user, permissions in (("bob", PERMISSIONS), (USER, ["read:tasks"])):
            put(connection, claim(signer, connection, permissions=permissions))
            with pytest.raises(psycopg.errors.InsufficientPrivilege):
                connection.execute("INSERT INTO public.notes_of_users VALUES (%s, 'four')", (user,))


def set_it(connection: Connection, text: str) -> None:
    connection.execute(sql.SQL("SET sluice.identity = {}").format(sql.Literal(text)))


def set_in_do(connection: Connection, text: str) -> None:
    connection.execute(
        sql.SQL("DO {}").format(
            sql.Literal(f"BEGIN PERFORM set_config('sluice.identity', '{text}', false); END")
        )
    )


def set_in_execute(connection: Connection, text: str) -> None:
    body = f"BEGIN EXECUTE 'SET sluice.identity = ' || quote_literal('{text}'); END"
    connection.execute(sql.SQL("DO {}").format(sql.Literal(body)))


def set_by_query_to_xml(connection: Connection, text: str) -> None:
    inner = f"select set_config('sluice.identity', '{text}', false)"
    try:
        connection.execute("SELECT query_to_xml(%s, true, false, '')", (inner,))
    except psycopg.errors.FeatureNotSupported:
        set_it(connection, text)  # a server without libxml


@pytest.mark.parametrize("forge", [put, set_it, set_in_do, set_in_execute, set_by_query_to_xml])
def test_a_forged_identity_shows_no_row(
    notes: str,
    installed: Installation,
    server: Server,
    client: Connection,
    signer: Signer,
    forge: Callable[[Connection, str], None],
) -> None:
    own = claim(signer, client, "bob")
    with installed.role("app_rw", server).connect() as alice:
        stolen = claim(signer, alice)
        put(alice, stolen)
        assert bodies(alice) == ["one", "two"]
        for text in (stolen, own.replace("bob", USER), own[:64] + stolen[64:], "", USER):
            put(client, own)
            assert bodies(client) == ["three"]
            forge(client, text)
            assert bodies(client) == []
