"""API keys and the access log, as the SQL that the proxy, the command line and administrators call."""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import time
import uuid
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import asyncpg
import psycopg
import pytest

from proxy import keys
from proxy.auth.identity import Signer, SigningKey
from proxy.auth.key import Key
from tests.integration.support import Installation

pytest_plugins = ["tests.integration.versions"]

Connection = psycopg.Connection[Any]

GENERATE = """SELECT generate_api_key('My API key', 'user@company.com', '["read:tasks"]')"""


@pytest.fixture
def superuser(installed: Installation) -> Iterator[Connection]:
    with installed.superuser().connect() as connection:
        yield connection


@pytest.fixture
def control(installed: Installation) -> Iterator[Connection]:
    with installed.role("sluice_control").connect() as connection:
        yield connection


def value(connection: Connection, query: str, *parameters: object) -> Any:
    row = connection.execute(query.encode(), parameters or None).fetchone()
    return None if row is None else row[0]


def identify(connection: Connection, installed: Installation, user: str, *permissions: str) -> None:
    """Put the claim of `user` on a pool's connection, as the proxy does."""
    with installed.role("sluice_control").connect() as control:
        row = control.execute(
            "SELECT kid, ipad, opad FROM sluice.signing_keys ORDER BY created_at DESC LIMIT 1"
        ).fetchone()
    assert row is not None
    signer = Signer(SigningKey(row[0], bytes(row[1]), bytes(row[2])))
    info = connection.info
    text = signer.claim(
        user, "ctm_000000000000", permissions, info.backend_pid, info.user, int(time.time()) + 60
    )
    connection.execute("SELECT set_config('sluice.identity', %s, false)", (text,))


def generate(connection: Connection, user: str = "user@company.com", **options: object) -> dict[str, Any]:
    named = "".join(f", {name} => %s" for name in options)
    made: dict[str, Any] = value(
        connection,
        f"""SELECT sluice.generate_api_key('a key', %s, '["read:tasks"]'{named})""",
        user,
        *options.values(),
    )
    return made


# Making keys


def test_a_key_is_made_and_proven_by_its_row(superuser: Connection) -> None:
    made = value(superuser, GENERATE)
    assert (made["name"], made["user_id"], made["permissions"]) == (
        "My API key",
        "user@company.com",
        ["read:tasks"],
    )
    with superuser.cursor(row_factory=psycopg.rows.dict_row) as cursor:
        row = cursor.execute("SELECT * FROM sluice.api_keys WHERE id = %s", (made["id"],)).fetchone()
    assert row is not None
    key = Key.from_row({**row, "permissions": json.dumps(row["permissions"])})
    assert key.verify_secret(made["api_key"])
    assert not key.verify_secret(made["api_key"][:-1] + "!")
    assert made["api_key"].startswith(made["id"] + "_")
    assert len(made["api_key"]) == 4 + 12 + 1 + 32
    assert made["api_key"].rpartition("_")[2] not in str(row)


def test_the_verifier_is_that_of_the_whole_key(superuser: Connection) -> None:
    made = generate(superuser)
    verifier = value(superuser, "SELECT scram_verifier FROM sluice.api_keys WHERE id = %s", made["id"])
    method, rounds, proofs = verifier.split("$")
    iterations, salt = rounds.split(":")
    stored, server = (base64.b64decode(part) for part in proofs.split(":"))
    assert (method, iterations) == ("SCRAM-SHA-256", "4096")
    salted = hashlib.pbkdf2_hmac("sha256", made["api_key"].encode(), base64.b64decode(salt), 4096)
    client_key = hmac.new(salted, b"Client Key", hashlib.sha256).digest()
    assert stored == hashlib.sha256(client_key).digest()
    assert server == hmac.new(salted, b"Server Key", hashlib.sha256).digest()


def test_postgresql_takes_the_verifier_as_its_own(superuser: Connection, installed: Installation) -> None:
    # RFC 7677 has no vector with a salt of our length; the server itself is the judge.
    verifier = value(
        superuser, "SELECT sluice.scram_verifier('a password', '\\x00112233445566778899aabbccddeeff')"
    )
    superuser.execute("DROP ROLE IF EXISTS scram_judge")
    superuser.execute(f"CREATE ROLE scram_judge LOGIN PASSWORD '{verifier}'".encode())
    try:
        for password, accepted in (("a password", True), ("another", False)):
            try:
                psycopg.connect(
                    host="127.0.0.1",
                    port=installed.cluster.primary.port,
                    user="scram_judge",
                    password=password,
                    dbname="app",
                ).close()
                assert accepted
            except psycopg.OperationalError:
                assert not accepted
    finally:
        superuser.execute("DROP ROLE scram_judge")


def test_keys_and_secrets_differ(superuser: Connection) -> None:
    made = [generate(superuser) for _ in range(20)]
    assert len({key["id"] for key in made}) == len({key["api_key"][-32:] for key in made}) == 20


def test_limits_are_kept(superuser: Connection) -> None:
    expires = datetime.now(UTC) + timedelta(days=3)
    made = generate(
        superuser,
        default_pool="background",
        allowed_addresses=["10.0.0.0/8", "2001:db8::/32"],
        rate_limit_per_minute=60,
        expires_at=expires,
    )
    row = superuser.execute(
        "SELECT default_pool, allowed_addresses::text[], rate_limit_per_minute, expires_at"
        " FROM sluice.api_keys WHERE id = %s",
        (made["id"],),
    ).fetchone()
    assert row == ("background", ["10.0.0.0/8", "2001:db8::/32"], 60, expires)
    assert datetime.fromisoformat(made["expires_at"]) == expires


@pytest.mark.parametrize(
    ("arguments", "constraint"),
    [
        ("'', 'user', '[]'", "api_keys_name_check"),
        ("'a key', '', '[]'", "api_keys_user_id_check"),
        ("'a key', 'a|b', '[]'", "api_keys_user_id_check"),
        ("'a key', 'user', '{}'", "api_keys_permissions_check"),
        ("'a key', 'user', '\"admin\"'", "api_keys_permissions_check"),
        ("'a key', 'user', '[1]'", "api_keys_permissions_check"),
        ("'a key', 'user', '[null]'", "api_keys_permissions_check"),
        ("'a key', 'user', '[\"\"]'", "api_keys_permissions_check"),
        ("'a key', 'user', '[\"read tasks\"]'", "api_keys_permissions_check"),
        ("'a key', 'user', '[\"read:a|b\"]'", "api_keys_permissions_check"),
        ("'a key', 'user', '[\"read:\"]'", "api_keys_permissions_check"),
        ("'a key', 'user', '[\"a:b:c\"]'", "api_keys_permissions_check"),
        ("'a key', 'user', '[\"lesen:aufträge\"]'", "api_keys_permissions_check"),
        ("'a key', 'user', '[\"a\\n\"]'", "api_keys_permissions_check"),
        ("'a key', 'user', '[[\"admin\"]]'", "api_keys_permissions_check"),
        ("'a key', 'user', '[{\"admin\": 1}]'", "api_keys_permissions_check"),
        ("'a key', 'user', '[]', default_pool => ''", "api_keys_default_pool_check"),
        ("'a key', 'user', '[]', rate_limit_per_minute => 0", "api_keys_rate_limit_per_minute_check"),
        ("'a key', 'user', '[]', allowed_addresses => '{NULL}'", "api_keys_allowed_addresses_check"),
    ],
)
def test_what_no_key_may_be_is_refused(superuser: Connection, arguments: str, constraint: str) -> None:
    with pytest.raises(psycopg.errors.CheckViolation) as refusal:
        superuser.execute(f"SELECT sluice.generate_api_key({arguments})".encode())
    assert refusal.value.diag.constraint_name == constraint


def test_a_refusal_shows_no_verifier(installed: Installation) -> None:
    with installed.role("sluice_control").connect() as control, pytest.raises(psycopg.Error) as refusal:
        control.execute("SELECT sluice.generate_api_key('a key', 'a|b', '[]')")
    assert "SCRAM" not in str(refusal.value)


@pytest.mark.parametrize(
    "permission", ["admin", "read:tasks", "write:metrics", "deploy:a-b_c.d", "*:*", "READ:Tasks"]
)
def test_permissions_are_any_verb_and_area(superuser: Connection, permission: str) -> None:
    assert value(
        superuser, "SELECT sluice.generate_api_key('a', 'b', jsonb_build_array(%s::text))", permission
    )


def test_a_key_that_is_over_before_it_begins_is_refused(superuser: Connection) -> None:
    with pytest.raises(psycopg.errors.InvalidParameterValue, match="past"):
        generate(superuser, expires_at=datetime.now(UTC) - timedelta(seconds=1))


# Who may


@pytest.mark.parametrize(
    "function", ["generate_api_key('a', 'b', '[]')", "revoke_api_key('x')", "rotate_api_key('x')"]
)
@pytest.mark.parametrize("schema", ["", "sluice."])
def test_an_admins_pool_needs_an_admins_claim(installed: Installation, function: str, schema: str) -> None:
    with installed.role("app_admin").connect() as connection:
        for permissions in ((), ("read:tasks", "write:tasks")):
            identify(connection, installed, "mallory", *permissions)
            with pytest.raises(psycopg.errors.InsufficientPrivilege, match="manage API keys"):
                connection.execute(f"SELECT {schema}{function}".encode())


@pytest.mark.parametrize("role", ["app_rw", "app_ro"])
def test_other_pools_are_refused_whatever_the_claim(installed: Installation, role: str) -> None:
    with installed.role(role).connect() as connection:
        identify(connection, installed, "root", "admin")
        for function in ("generate_api_key('a', 'b', '[]')", "revoke_api_key('x')", "rotate_api_key('x')"):
            for schema in ("", "sluice."):
                with pytest.raises(
                    psycopg.errors.InsufficientPrivilege, match="permission denied for function"
                ):
                    connection.execute(f"SELECT {schema}{function}".encode())


def test_an_admin_makes_rotates_and_revokes(installed: Installation) -> None:
    with installed.role("app_admin").connect() as connection:
        identify(connection, installed, "root", "admin")
        made = value(connection, GENERATE)
        newer = value(connection, "SELECT rotate_api_key(%s)", made["id"])
        assert value(connection, "SELECT revoke_api_key(%s)", newer["id"]) is True
        seen = connection.execute("SELECT id FROM sluice.api_keys").fetchall()
        assert {(made["id"],), (newer["id"],)} <= set(seen)


def test_users_see_their_own_keys(installed: Installation, superuser: Connection) -> None:
    user = f"{uuid.uuid4()}@example.com"
    made = generate(superuser, user)
    with installed.role("app_ro").connect() as connection:
        assert connection.execute("SELECT id FROM sluice.api_keys").fetchall() == []
        identify(connection, installed, user)
        assert connection.execute("SELECT id, name FROM sluice.api_keys").fetchall() == [
            (made["id"], "a key")
        ]


def test_the_control_login_counts_and_changes_nothing_else(
    control: Connection, superuser: Connection
) -> None:
    made = generate(superuser)
    control.execute(
        "UPDATE sluice.api_keys SET last_used_at = now(), use_count = use_count + 5 WHERE id = %s",
        (made["id"],),
    )
    assert value(superuser, "SELECT use_count FROM sluice.api_keys WHERE id = %s", made["id"]) == 5
    for change in ("permissions = '[\"admin\"]'", "revoked_at = NULL", "secret_sha256 = secret_sha256"):
        with pytest.raises(psycopg.errors.InsufficientPrivilege):
            control.execute(f"UPDATE sluice.api_keys SET {change}".encode())
    with pytest.raises(psycopg.errors.InsufficientPrivilege):
        control.execute("DELETE FROM sluice.api_keys")


# Ending them


def test_a_key_is_revoked_once(superuser: Connection) -> None:
    made = generate(superuser)
    assert value(superuser, "SELECT sluice.revoke_api_key(%s)", made["id"])
    assert value(superuser, "SELECT revoked_at <= now() FROM sluice.api_keys WHERE id = %s", made["id"])
    assert value(superuser, "SELECT sluice.revoke_api_key(%s)", made["id"]) is False
    assert value(superuser, "SELECT sluice.revoke_api_key('ctm_unknown')") is False


def test_a_rotated_key_lives_on_for_its_grace(superuser: Connection) -> None:
    made = generate(superuser, default_pool="priority", rate_limit_per_minute=7)
    newer = value(superuser, "SELECT sluice.rotate_api_key(%s, '2 hours')", made["id"])
    assert newer["id"] != made["id"] and newer["rotated_from"] == made["id"]
    row = superuser.execute(
        """
        SELECT old.expires_at = old_ends AND old.expires_at BETWEEN now() + '119 min' AND now() + '2 hours',
               old.revoked_at IS NULL,
               (new.name, new.user_id, new.permissions, new.default_pool, new.rate_limit_per_minute)
                 = (old.name, old.user_id, old.permissions, old.default_pool, old.rate_limit_per_minute),
               new.secret_sha256 <> old.secret_sha256, new.expires_at IS NULL, new.rotated_from = old.id
        FROM sluice.api_keys old, sluice.api_keys new, (SELECT %s::timestamptz AS old_ends) AS told
        WHERE old.id = %s AND new.id = %s
        """,
        (newer["old_key_expires_at"], made["id"], newer["id"]),
    ).fetchone()
    assert row == (True,) * 6


def test_rotation_gives_the_new_key_the_old_ones_span(superuser: Connection) -> None:
    made = generate(superuser, expires_at=datetime.now(UTC) + timedelta(minutes=30))
    superuser.execute(
        "UPDATE sluice.api_keys SET created_at = now() - interval '30 days' + interval '30 min',"
        " expires_at = now() + interval '30 min' WHERE id = %s",
        (made["id"],),
    )
    newer = value(superuser, "SELECT sluice.rotate_api_key(%s)", made["id"])
    ends, old_ends = (datetime.fromisoformat(newer[name]) for name in ("expires_at", "old_key_expires_at"))
    assert abs(ends - datetime.now(UTC) - timedelta(days=30)) < timedelta(minutes=1)
    assert abs(old_ends - datetime.now(UTC) - timedelta(minutes=30)) < timedelta(minutes=1)


def test_rotation_without_grace_ends_the_old_key_at_once(superuser: Connection) -> None:
    made = generate(superuser)
    value(superuser, "SELECT sluice.rotate_api_key(%s, '0')", made["id"])
    assert value(superuser, "SELECT expires_at <= now() FROM sluice.api_keys WHERE id = %s", made["id"])


def test_only_a_valid_key_is_rotated(superuser: Connection) -> None:
    revoked, rotated = generate(superuser)["id"], generate(superuser)["id"]
    superuser.execute("SELECT sluice.revoke_api_key(%s)", (revoked,))
    superuser.execute("SELECT sluice.rotate_api_key(%s, '0')", (rotated,))
    for key_id in (revoked, rotated, "ctm_unknown"):
        with pytest.raises(psycopg.errors.NoDataFound, match=key_id):
            superuser.execute("SELECT sluice.rotate_api_key(%s)", (key_id,))
    with pytest.raises(psycopg.errors.InvalidParameterValue, match="grace"):
        superuser.execute("SELECT sluice.rotate_api_key(%s, '-1 hour')", (generate(superuser)["id"],))


def test_every_change_is_announced(superuser: Connection, control: Connection) -> None:
    control.execute("LISTEN sluice_keys")

    def announced() -> list[str]:
        superuser.execute("NOTIFY sluice_keys, 'end'")
        heard: list[str] = []
        for notification in control.notifies(timeout=10):
            if notification.payload == "end":
                return heard
            heard.append(notification.payload)
        raise AssertionError("the channel is silent")

    key_id = generate(superuser)["id"]
    assert announced() == [key_id]
    superuser.execute(
        "UPDATE sluice.api_keys SET use_count = 1, last_used_at = now() WHERE id = %s", (key_id,)
    )
    assert announced() == []
    newer = value(superuser, "SELECT sluice.rotate_api_key(%s)", key_id)["id"]
    assert set(announced()) == {key_id, newer}
    superuser.execute("SELECT sluice.revoke_api_key(%s)", (newer,))
    assert announced() == [newer]
    superuser.execute("DELETE FROM sluice.api_keys WHERE id = %s", (newer,))
    assert announced() == [newer]


def test_a_key_is_rotated_once(superuser: Connection) -> None:
    made = generate(superuser, expires_at=datetime.now(UTC) + timedelta(days=90))
    newer = value(superuser, "SELECT sluice.rotate_api_key(%s, '1 hour')", made["id"])
    with pytest.raises(psycopg.errors.ObjectNotInPrerequisiteState, match="was rotated before"):
        superuser.execute("SELECT sluice.rotate_api_key(%s)", (made["id"],))
    newest = value(superuser, "SELECT sluice.rotate_api_key(%s)", newer["id"])
    assert datetime.fromisoformat(newest["expires_at"]) > datetime.now(UTC) + timedelta(days=89)


# The same as typed calls


async def test_keys_by_typed_calls(installed: Installation) -> None:
    user = f"{uuid.uuid4()}@example.com"
    expires = datetime.now(UTC) + timedelta(hours=1)
    async with installed.role("sluice_control").asyncpg() as connection:
        made = await keys.create(
            connection,
            "a key",
            user,
            ["read:tasks"],
            allowed_addresses=["10.0.0.0/8"],
            default_pool="readonly",
            rate_limit_per_minute=9,
            expires_at=expires,
        )
        assert made.api_key.startswith(made.id) and made.api_key not in repr(made)
        plain = await keys.create(connection, "another", user, [])
        assert (plain.allowed_addresses, plain.expires_at, plain.permissions) == ((), None, ())
        newer = await keys.rotate(connection, made.id, timedelta(minutes=5))
        assert (newer.rotated_from, newer.default_pool) == (made.id, "readonly")
        assert newer.old_key_expires_at is not None and newer.old_key_expires_at < expires
        assert await keys.revoke(connection, newer.id) is True
        assert await keys.revoke(connection, newer.id) is False
        found = await keys.list_keys(connection, user)
        assert [key.id for key in found] == [made.id, plain.id, newer.id]
        assert found[0].allowed_addresses == ("10.0.0.0/8",)
        assert found[0].permissions == ("read:tasks",)
        assert found[2].revoked_at is not None
        assert {key.id for key in found} <= {key.id for key in await keys.list_keys(connection)}
        with pytest.raises(asyncpg.NoDataFoundError):
            await keys.rotate(connection, newer.id)
    async with installed.role("app_admin").asyncpg() as connection:
        with pytest.raises(asyncpg.InsufficientPrivilegeError):
            await keys.create(connection, "a key", user, ["admin"])


# The access log

COPIED = "id, at, event, key_id, user_id, statement"


def log_rows(control: Connection, user: str, *statements: str) -> None:
    """COPY rows into the table as the proxy does, with ids whose millisecond is `at`."""
    with (
        control.cursor() as cursor,
        cursor.copy(f"COPY sluice.api_access_logs ({COPIED}) FROM STDIN") as copy,
    ):
        for statement in statements:
            now = datetime.now(UTC)
            copy.write_row((uuid.uuid4(), now, "statement", "ctm_000000000000", user, statement))


def test_users_read_their_own_accesses_and_admins_all(installed: Installation, control: Connection) -> None:
    alice, bob = (f"{name}-{uuid.uuid4()}" for name in ("alice", "bob"))
    log_rows(control, alice, "SELECT 1", "SELECT 2")
    log_rows(control, bob, "SELECT 3")
    mine = "SELECT user_id, statement FROM sluice.access_log WHERE user_id IN (%s, %s) ORDER BY statement"
    with installed.role("app_ro").connect() as connection:
        assert connection.execute(mine, (alice, bob)).fetchall() == []
        identify(connection, installed, alice)
        assert connection.execute(mine, (alice, bob)).fetchall() == [(alice, "SELECT 1"), (alice, "SELECT 2")]
    with installed.role("app_admin").connect() as connection:
        assert len(connection.execute(mine, (alice, bob)).fetchall()) == 3


def test_nobody_reads_around_the_view(
    installed: Installation, control: Connection, superuser: Connection
) -> None:
    log_rows(control, "alice", "SELECT 1")
    partition = value(superuser, "SELECT tableoid::regclass::text FROM sluice.api_access_logs LIMIT 1")
    for role in ("app_rw", "app_ro", "app_admin", "sluice_control"):
        with installed.role(role).connect() as connection:
            # `pgsluice logs` reads as sluice_control, by the whole table alone.
            whole = () if role == "sluice_control" else ("sluice.api_access_logs",)
            for table in (partition, *whole):
                with pytest.raises(psycopg.errors.InsufficientPrivilege):
                    connection.execute(f"SELECT * FROM {table}".encode())
    # A leaky condition of the reader's own sees no row that the view hides.
    with installed.role("app_rw").connect() as connection:
        said: list[str] = []
        connection.add_notice_handler(lambda notice: said.append(notice.message_primary or ""))
        connection.execute(
            "CREATE FUNCTION pg_temp.leak(text) RETURNS boolean LANGUAGE plpgsql COST 0.0001"
            " AS $$ BEGIN RAISE NOTICE 'saw %', $1; RETURN true; END $$"
        )
        identify(connection, installed, "nobody in particular")
        assert (
            connection.execute("SELECT * FROM sluice.access_log WHERE pg_temp.leak(statement)").fetchall()
            == []
        )
        assert said == []


def test_partitions_stay_closed_when_default_privileges_open_tables(superuser: Connection) -> None:
    grants = "ALTER DEFAULT PRIVILEGES FOR ROLE sluice_owner {} SELECT ON TABLES {} sluice_readonly, PUBLIC"
    superuser.execute(grants.format("GRANT", "TO").encode())
    try:
        assert value(superuser, "SELECT sluice.ensure_partitions(days_ahead => 9)") >= 1
    finally:
        superuser.execute(grants.format("REVOKE", "FROM").encode())
    rows = superuser.execute("""
        SELECT c.relname, c.relrowsecurity, c.relforcerowsecurity, c.relacl::text, r.rolname
        FROM pg_inherits i JOIN pg_class c ON c.oid = i.inhrelid JOIN pg_roles r ON r.oid = c.relowner
        WHERE i.inhparent = 'sluice.api_access_logs'::regclass
    """).fetchall()
    assert len(rows) >= 10
    for name, enabled, forced, grants_made, owner in rows:
        assert enabled and forced and owner == "sluice_owner", name
        assert grants_made is None or set(grants_made.strip("{}").split(",")) == {
            next(part for part in grants_made.strip("{}").split(",") if part.startswith("sluice_owner="))
        }, name


def test_partitions_are_made_once_and_dropped_when_old(control: Connection, superuser: Connection) -> None:
    value(control, "SELECT sluice.ensure_partitions(7, 5)")
    assert value(control, "SELECT sluice.ensure_partitions(7, 5)") == 0
    old = (
        "INSERT INTO sluice.api_access_logs (id, at, event)"
        " VALUES (gen_random_uuid(), now() - interval '{}', 'login')"
    )
    for age in ("5 days", "3 days", "1 hour"):
        control.execute(old.format(age).encode())
    assert value(control, "SELECT sluice.cleanup_old_logs(4)") == 1
    kept = "SELECT count(*) FROM sluice.api_access_logs WHERE at < now() - interval '{}'"
    assert value(superuser, kept.format("4 days 1 hour")) == 0
    assert value(superuser, kept.format("2 days 23 hours")) >= 1
    assert value(control, "SELECT sluice.cleanup_old_logs(1)") == 3
    assert value(control, "SELECT sluice.cleanup_old_logs(1)") == 0
    for call in ("cleanup_old_logs(0)", "cleanup_old_logs(NULL)", "ensure_partitions(9999)"):
        with pytest.raises(psycopg.errors.InvalidParameterValue):
            control.execute(f"SELECT sluice.{call}".encode())


def test_a_replayed_row_is_kept_once(control: Connection) -> None:
    row = (uuid.uuid4(), datetime.now(UTC))
    insert = (
        "INSERT INTO sluice.api_access_logs (id, at, event) VALUES (%s, %s, 'login') ON CONFLICT DO NOTHING"
    )
    assert [control.execute(insert, row).rowcount for _ in range(2)] == [1, 0]


def test_uuid7_is_ordered_by_its_millisecond(superuser: Connection) -> None:
    before = time.time_ns() // 1_000_000
    made = [row[0] for row in superuser.execute("SELECT sluice.uuid7() FROM generate_series(1, 1000)")]
    after = time.time_ns() // 1_000_000
    assert len(set(made)) == 1000
    for each in made:
        assert (each.version, each.variant) == (7, uuid.RFC_4122)
        assert before - 1 <= each.int >> 80 <= after + 1
