"""What is kept up behind the keys: how they were used, their limits, and the exchange of the keys that sign."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from typing import Any

import psycopg
import pytest
from typer.testing import CliRunner

from proxy.cli import app
from tests.integration.conftest import MakeKey
from tests.integration.support import Installation, Proxy, wait_until

PERMISSIONS = ["read:tasks", "write:tasks"]
ALICE = "alice@example.com"


def used(installation: Installation, key_id: str) -> tuple[int, float]:
    """Return how many statements the table knows of, and for how many seconds the last one has been over."""
    with installation.superuser().connect() as superuser:
        row = superuser.execute(
            "SELECT use_count, extract(epoch FROM clock_timestamp() - last_used_at)::float8"
            " FROM sluice.api_keys WHERE id = %s",
            (key_id,),
        ).fetchone()
    assert row is not None
    return row[0], row[1]


# Usage


@pytest.mark.long
def test_uses_of_several_sessions_and_proxies_add_up(
    proxy: Proxy, start_proxy: Callable[..., Proxy], make_key: MakeKey, installation: Installation
) -> None:
    key_id, key = make_key()
    other = start_proxy()
    with proxy.login(key_id, key).connect() as first, other.login(key_id, key).connect() as second:
        for connection in (first, second):
            for _ in range(30):
                connection.execute("SELECT 1")
        with proxy.login(key_id, key).connect() as third:
            third.execute("SELECT 1")
        wait_until(lambda: used(installation, key_id)[0] == 61, message="the uses of both proxies")
        assert used(installation, key_id)[1] < 60
        second.execute("SELECT 1")
    # What is left when it ends is written then.
    other.stop()
    assert used(installation, key_id)[0] == 62


def test_a_login_is_a_use_without_a_statement(
    proxy: Proxy, make_key: MakeKey, installation: Installation
) -> None:
    key_id, key = make_key()
    with proxy.login(key_id, key).connect():
        wait_until(lambda: used(installation, key_id)[1] is not None, message="the login")
        assert used(installation, key_id)[0] == 0


@pytest.mark.long
def test_a_proxy_that_is_killed_loses_what_it_had_not_written_yet_and_no_more(
    start_proxy: Callable[..., Proxy], make_key: MakeKey, installation: Installation
) -> None:
    key_id, key = make_key()
    running = start_proxy()
    with running.login(key_id, key).connect() as connection:
        for _ in range(10):
            connection.execute("SELECT 1")
        wait_until(lambda: used(installation, key_id)[0] == 10, message="the first ten")
        connection.execute("SELECT 1")
        running.kill()
    assert used(installation, key_id)[0] in (10, 11)


@pytest.mark.long
def test_a_key_that_somebody_holds_keeps_nobody_else_from_being_written(
    start_proxy: Callable[..., Proxy], make_key: MakeKey, installation: Installation
) -> None:
    running = start_proxy()
    held, other = make_key(), make_key()
    with installation.superuser().connect() as superuser:
        with superuser.transaction():
            superuser.execute("SELECT FROM sluice.api_keys WHERE id = %s FOR UPDATE", (held[0],))
            for key_id, key in (held, other):
                with running.login(key_id, key).connect() as connection:
                    connection.execute("SELECT 1")
            wait_until(lambda: used(installation, other[0])[0] == 1, message="the other key's use")
            assert used(installation, held[0])[0] == 0
        wait_until(lambda: used(installation, held[0])[0] == 1, message="the held key's use")


# Rate limits


def test_a_limit_that_changes_counts_in_open_sessions(
    proxy: Proxy, make_key: MakeKey, installation: Installation
) -> None:
    key_id, key = make_key()
    change = "UPDATE sluice.api_keys SET rate_limit_per_minute = {} WHERE id = '{}'"
    with proxy.login(key_id, key).connect() as connection:
        connection.execute("SELECT 1")
        installation.execute(change.format(1, key_id))

        def refused() -> bool:
            try:
                connection.execute("SELECT 1")
            except psycopg.errors.ConfigurationLimitExceeded as error:
                assert error.diag.message_hint is not None
                assert error.diag.message_hint.startswith("Try again in ")
                return True
            return False

        wait_until(refused, message="the new limit")
        installation.execute(change.format("NULL", key_id))
        wait_until(lambda: not refused(), message="no limit any more")


def test_over_its_rate_a_client_leaves_its_transaction_and_goes_on(
    start_proxy: Callable[..., Proxy], make_key: MakeKey, installation: Installation
) -> None:
    key_id, key = make_key()
    installation.execute(f"UPDATE sluice.api_keys SET rate_limit_per_minute = 4 WHERE id = '{key_id}'")
    with start_proxy().login(key_id, key).connect() as connection:
        connection.execute("BEGIN")
        connection.execute("SELECT pg_current_xact_id()")
        with pytest.raises(psycopg.errors.ConfigurationLimitExceeded):
            for _ in range(9):
                connection.execute("SELECT 1")
        assert status(connection) == psycopg.pq.TransactionStatus.INERROR
        connection.execute("ROLLBACK")
        assert status(connection) == psycopg.pq.TransactionStatus.IDLE
        with pytest.raises(psycopg.errors.ConfigurationLimitExceeded), connection.pipeline():
            connection.execute("SELECT 1")
            connection.execute("SELECT 2")
        installation.execute(f"UPDATE sluice.api_keys SET rate_limit_per_minute = NULL WHERE id = '{key_id}'")

        def allowed() -> bool:
            try:
                return connection.execute("SELECT 1").fetchone() == (1,)
            except psycopg.errors.ConfigurationLimitExceeded:
                return False

        assert wait_until(allowed)


def status(connection: psycopg.Connection[Any]) -> psycopg.pq.TransactionStatus:
    return connection.info.transaction_status


# What a key carries


def test_an_open_session_ends_with_its_keys_grace(
    proxy: Proxy, make_key: MakeKey, installation: Installation
) -> None:
    key_id, key = make_key()
    with proxy.login(key_id, key).connect() as connection:
        made = installation_value(installation, "SELECT sluice.rotate_api_key(%s, '2 seconds')", key_id)
        assert connection.execute("SELECT 'in grace'").fetchone() == ("in grace",)
        with proxy.login(made["id"], made["api_key"]).connect() as newer:

            def ended() -> bool:
                try:
                    connection.execute("SELECT 1")
                except psycopg.OperationalError:
                    return True
                return False

            assert wait_until(ended)
            assert newer.execute("SELECT 'goes on'").fetchone() == ("goes on",)
    with pytest.raises(psycopg.OperationalError, match="expired or revoked"):
        proxy.login(key_id, key).connect()


def test_sessions_use_their_keys_default_pool(
    start_proxy: Callable[..., Proxy], make_key: MakeKey, installation: Installation
) -> None:
    key_id, key = make_key()
    installation.execute(f"UPDATE sluice.api_keys SET default_pool = 'background' WHERE id = '{key_id}'")
    # With one connection, which may not be pinned: that says which pool it is.
    running = start_proxy({"databases": {"app": {"pools": {"background": {"min": 0, "max": 1}}}}})
    listen = "LISTEN anything"
    with running.login(key_id, key).connect() as connection:
        with pytest.raises(psycopg.errors.TooManyConnections, match="pool=background"):
            connection.execute(listen)
        connection.execute("SET sluice.pool = 'primary'")
        connection.execute(listen)


# Addresses


def test_a_session_whose_address_is_taken_off_the_list_is_closed(
    proxy: Proxy, make_key: MakeKey, installation: Installation
) -> None:
    key_id, key = make_key()
    change = "UPDATE sluice.api_keys SET allowed_addresses = '{}' WHERE id = '{}'"
    with proxy.login(key_id, key).connect() as connection:
        installation.execute(change.format("{127.0.0.0/8,10.0.0.0/8}", key_id))
        for _ in range(20):
            assert connection.execute("SELECT pg_sleep(0.05), 1").fetchone()
        installation.execute(change.format("{10.0.0.0/8}", key_id))

        def closed() -> bool:
            try:
                connection.execute("SELECT 1")
            except psycopg.OperationalError:
                return True
            return False

        assert wait_until(closed)
    with pytest.raises(psycopg.OperationalError, match="may not be used from this address"):
        proxy.login(key_id, key).connect()


# Signing keys


@pytest.fixture
def one_key(installation: Installation) -> Iterator[str]:
    """Give the kid of the only signing key; what a test added goes when it is over."""
    kids = "SELECT kid FROM sluice.signing_keys ORDER BY created_at DESC"
    with installation.superuser().connect() as superuser:
        ((kid,),) = superuser.execute(kids).fetchall()
        yield kid
        newest = superuser.execute(kids).fetchone()
        superuser.execute("DELETE FROM sluice.signing_keys WHERE kid <> %s", newest)
    installation.replicated()


def kid_and_user(connection: psycopg.Connection[Any]) -> tuple[str, str | None, bool]:
    """Return which key signed for this connection, as whom the server knows it, and whether that is a replica."""
    row = connection.execute(
        "SELECT substr(current_setting('sluice.identity'), 65, 4), sluice.current_user_id(), pg_is_in_recovery()"
    ).fetchone()
    assert row is not None
    kid, user, on_replica = row
    return kid, user, on_replica


def rotate(running: Proxy, *options: str) -> str:
    done = CliRunner().invoke(app, ["keys", "rotate-signing", "-c", str(running.config), "--json", *options])
    assert done.exit_code == 0, done.output
    kid: str = json.loads(done.stdout)["kid"]
    return kid


@pytest.mark.long
def test_signing_keys_are_exchanged_without_a_gap(
    start_proxy: Callable[..., Proxy], make_key: MakeKey, installation: Installation, one_key: str
) -> None:
    running = start_proxy({"identity": {"token_ttl": "2s"}})
    login = running.login(*make_key(PERMISSIONS, ALICE))
    replica = installation.superuser(installation.cluster.replicas[0])
    seen: set[bool] = set()

    def look() -> set[str]:
        """Ask both hosts who is asking; nowhere may it be nobody, at any time."""
        with writing.transaction():
            writing.execute("SELECT pg_current_xact_id()")
            asked = [kid_and_user(writing)]
        asked += [kid_and_user(writing), kid_and_user(reading)]
        assert {user for _, user, _ in asked} == {ALICE}
        seen.update(on_replica for _, _, on_replica in asked)
        return {kid for kid, _, _ in asked}

    with (
        login.connect() as writing,
        login.connect() as reading,
        replica.connect() as replaying,
        installation.superuser().connect() as old,
    ):
        assert look() == {one_key}
        replaying.execute("SELECT pg_wal_replay_pause()")
        try:
            old.execute("BEGIN ISOLATION LEVEL REPEATABLE READ")
            old.execute("SELECT count(*) FROM sluice.signing_keys")
            new = rotate(running)
            # Longer than the proxy's look at the keys, and than a claim lives.
            until = time.monotonic() + 7
            while time.monotonic() < until:
                assert look() == {one_key}
                time.sleep(0.05)
        finally:
            replaying.execute("SELECT pg_wal_replay_resume()")
        installation.replicated()
        until = time.monotonic() + 7
        while time.monotonic() < until:
            assert look() == {one_key}, "a transaction on the primary is older than the key"
            time.sleep(0.05)
        old.execute("COMMIT")
        wait_until(lambda: look() == {new}, message="the new key signs")
        assert seen == {False, True}

        # The old one goes when the proxies' claims by it are over, and transactions that began before that too.
        count = "SELECT count(*) FROM sluice.signing_keys WHERE kid = %s"
        with installation.role("sluice_control").connect() as control:
            assert control.execute("SELECT sluice.retire_signing_key(%s)", (one_key,)).fetchone() == (False,)
        with replica.connect() as standing:
            standing.execute("BEGIN")
            standing.execute("SELECT 1")
            installation.execute(
                "UPDATE sluice.signing_keys SET signed_until = now() - interval '1 s'"
                f" WHERE kid = '{one_key}'"
            )
            time.sleep(7)
            assert installation_value(installation, count, one_key) == 1
            standing.execute("COMMIT")
        wait_until(
            lambda: installation_value(installation, count, one_key) == 0, message="the old key is gone"
        )
        assert look() == {new}


@pytest.mark.long
def test_signing_keys_are_exchanged_at_once_where_one_is_known_to_others(
    start_proxy: Callable[..., Proxy], make_key: MakeKey, installation: Installation, one_key: str
) -> None:
    running = start_proxy()
    with running.login(*make_key(PERMISSIONS, ALICE)).connect() as connection:
        assert kid_and_user(connection)[:2] == (one_key, ALICE)
        new = rotate(running, "--now")
        wait_until(lambda: kid_and_user(connection)[:2] == (new, ALICE), message="the new key signs")
        assert installation_value(installation, "SELECT count(*) FROM sluice.signing_keys") == 1


def test_one_exchange_of_signing_keys_at_a_time(
    proxy: Proxy, installation: Installation, one_key: str
) -> None:
    rotate(proxy)
    again = CliRunner().invoke(app, ["keys", "rotate-signing", "-c", str(proxy.config)])
    assert again.exit_code == 1
    assert again.stderr.startswith("pgsluice: the last rotation of the signing keys is not over\n")


def test_a_key_that_signs_or_has_no_successor_stays(installation: Installation, one_key: str) -> None:
    with installation.role("sluice_control").connect() as control:
        for kid in (one_key, "zzzz"):
            assert control.execute("SELECT sluice.retire_signing_key(%s)", (kid,)).fetchone() == (False,)


def installation_value(installation: Installation, statement: str, *arguments: object) -> Any:
    with installation.superuser().connect() as superuser:
        row = superuser.execute(statement.encode(), arguments).fetchone()
    assert row is not None
    return row[0]
