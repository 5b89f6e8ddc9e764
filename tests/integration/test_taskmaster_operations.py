"""What runs beside the tasks: calls of integrations, logs, statistics, sample rows; and all of it through the proxy."""

from __future__ import annotations

import threading
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID, uuid4

import psycopg
import pytest
from psycopg.types.json import Jsonb

from proxy import migrate
from tests.integration.conftest import MakeKey
from tests.integration.databases import quiet
from tests.integration.support import DATABASE, Installation, Proxy, wait_until
from tests.integration.users import MakeUser, User

pytest_plugins = ["tests.integration.taskmaster"]

CALL = "SELECT taskmaster.log_api_call(%s, '/issues', 'post')"


@pytest.fixture
def integration(boss: User) -> Callable[..., UUID]:
    """Give a function that makes an integration."""

    def make(**values: object) -> UUID:
        return boss.insert(
            "external_integrations", integration_type="github", integration_name=f"hub {uuid4()}", **values
        )

    return make


# Integrations


def test_calls_are_counted_and_refused_over_the_limit(
    alice: User, bob: User, boss: User, integration: Callable[..., UUID]
) -> None:
    hub = integration(rate_limit_per_minute=3)
    for user in (alice, bob, boss):
        user.execute(CALL, hub)
    with pytest.raises(psycopg.errors.ConfigurationLimitExceeded, match="3 times in this minute") as refused:
        alice.execute(CALL, hub)
    assert refused.value.diag.message_detail == "RATE_LIMIT_EXCEEDED"
    assert "Try again in" in (refused.value.diag.message_hint or "")
    used = (
        "SELECT current_usage, last_used_at IS NOT NULL FROM taskmaster.external_integrations WHERE id = %s"
    )
    assert boss.value(used, hub) == (3, True)
    logged = "SELECT user_id, method FROM taskmaster.external_api_calls WHERE integration_id = %s"
    assert {row[0] for row in boss.execute(logged, hub)} == {alice.name, bob.name, boss.name}
    assert alice.execute(logged, hub) == [(alice.name, "POST")]
    boss.execute("UPDATE taskmaster.external_integrations SET usage_reset_at = now() WHERE id = %s", hub)
    alice.execute(CALL, hub)
    assert boss.value(used, hub) == (1, True)
    # Counting alone isn't worth a row of the audit.
    audited = "SELECT action FROM taskmaster.audit_logs WHERE entity_id = %s"
    assert boss.execute(audited, hub) == ["insert"]


def test_calls_at_once_are_all_counted(
    make_user: MakeUser, boss: User, integration: Callable[..., UUID]
) -> None:
    hub = integration(rate_limit_per_minute=25)
    refused: list[str] = []

    def work(user: User) -> None:
        for _ in range(10):
            try:
                user.execute(CALL, hub)
            except psycopg.errors.ConfigurationLimitExceeded as problem:
                refused.append(str(problem))

    threads = [threading.Thread(target=work, args=(make_user(),)) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    logged = "SELECT count(*) FROM taskmaster.external_api_calls WHERE integration_id = %s"
    assert (boss.value(logged, hub), len(refused)) == (25, 5)


def test_a_calls_secrets_are_masked(alice: User, boss: User, integration: Callable[..., UUID]) -> None:
    hub = integration()
    made = alice.value(
        "SELECT taskmaster.log_api_call(%s, '/x', 'GET', %s, %s, 200, %s, %s, 12, 'a correlation')",
        *(
            hub,
            Jsonb({"Authorization": "Bearer S3CRET", "Accept": "*/*"}),
            Jsonb({"user": {"password": "S3CRET"}}),
        ),
        *(Jsonb({"Set-Cookie": "S3CRET"}), Jsonb([{"token": "S3CRET"}, {"id": 1}])),
    )
    row = alice.value(
        "SELECT request_headers, request_body, response_headers, response_body, response_time_ms"
        " FROM taskmaster.external_api_calls WHERE id = %s",
        made,
    )
    assert row == (
        {"Authorization": "***", "Accept": "*/*"},
        {"user": {"password": "***"}},
        {"Set-Cookie": "***"},
        [{"token": "***"}, {"id": 1}],
        12,
    )
    for wrong in (uuid4(), integration(status="inactive")):
        with pytest.raises(psycopg.errors.NoDataFound):
            alice.execute(CALL, wrong)
    with pytest.raises(psycopg.errors.InsufficientPrivilege):
        alice.execute("INSERT INTO taskmaster.external_api_calls (integration_id) VALUES (%s)", hub)


# Logs and statistics


def test_old_partitions_are_dropped(schema: Installation, superuser: User) -> None:
    with schema.role("sluice_control").connect() as control:
        control.execute("SELECT sluice.ensure_partitions(7, 6)")
        # Five tables, from 6 and 5 days ago.
        assert control.execute("SELECT taskmaster.cleanup_old_logs(4)").fetchone() == (10,)
        assert control.execute("SELECT taskmaster.cleanup_old_logs(4)").fetchone() == (0,)
        for wrong in ("0", "NULL"):
            with pytest.raises(psycopg.errors.InvalidParameterValue):
                control.execute(f"SELECT taskmaster.cleanup_old_logs({wrong})".encode())
        control.execute("SELECT sluice.cleanup_old_logs(2)")
        control.execute("SELECT taskmaster.cleanup_old_logs(2)")
    for table in ("error_logs", "logs", "audit_logs", "system_metrics", "external_api_calls"):
        oldest = superuser.value(
            "SELECT min(right(inhrelid::regclass::text, 8)) FROM pg_inherits WHERE inhparent = %s::regclass",
            f"taskmaster.{table}",
        )
        assert oldest >= f"{datetime.now(UTC) - timedelta(days=3):%Y%m%d}", table


def test_a_row_goes_to_the_partition_of_its_day(alice: User, superuser: User, make_user: MakeUser) -> None:
    meter = make_user("write:metrics")
    metric = meter.value("SELECT taskmaster.record_metric('m', 1)")
    where = "SELECT tableoid::regclass::text FROM taskmaster.system_metrics WHERE id = %s"
    assert superuser.value(where, metric) == f"taskmaster.system_metrics_{datetime.now(UTC):%Y%m%d}"


def test_statistics_are_refreshed_for_administrators(alice: User, boss: User) -> None:
    kind = f"kind {uuid4()}"
    for status in ("pending", "pending", "completed"):
        alice.task(type=kind, status=status)
    assert boss.value("SELECT taskmaster.refresh_materialized_views()") == 2
    daily = "SELECT status, tasks FROM taskmaster.task_statistics_daily WHERE type = %s ORDER BY status"
    assert boss.execute(daily, kind) == [("completed", 1), ("pending", 2)]
    for statement in (
        "SELECT * FROM taskmaster.task_statistics_daily",
        "SELECT * FROM taskmaster.access_statistics_hourly",
        "SELECT taskmaster.refresh_materialized_views()",
        "SELECT taskmaster.cleanup_old_logs(30)",
        "SELECT taskmaster.seed_demo('a', 'b')",
    ):
        with pytest.raises(psycopg.errors.InsufficientPrivilege):
            alice.execute(statement)


def test_statistics_are_refreshed_where_nobody_may_make_temporary_tables(
    superuser: User, boss: User, alice: User
) -> None:
    kind = f"kind {uuid4()}"
    superuser.execute(f"REVOKE TEMPORARY ON DATABASE {DATABASE} FROM PUBLIC")
    try:
        alice.task(type=kind)
        boss.execute("SELECT taskmaster.refresh_materialized_views()")
        daily = "SELECT tasks FROM taskmaster.task_statistics_daily WHERE type = %s"
        assert boss.execute(daily, kind) == [1]
    finally:
        superuser.execute(f"GRANT TEMPORARY ON DATABASE {DATABASE} TO PUBLIC")


def test_accesses_become_statistics_and_slow_statements(
    schema: Installation, alice: User, bob: User, boss: User
) -> None:
    with schema.role("sluice_control").connect() as control:
        control.execute("SELECT sluice.ensure_partitions()")
        for user, milliseconds in ((alice, 1500), (alice, 2500), (alice, 10), (bob, 5000)):
            control.execute(
                "INSERT INTO sluice.api_access_logs (id, at, event, key_id, user_id, pool, intent, fingerprint,"
                " statement, duration_us, rows) VALUES (gen_random_uuid(), now(), 'statement', %s, %s, 'primary',"
                " 'read', %s, 'SELECT slow', %s, 1)",
                (user.name[:16], user.name, f"f-{user.name}", milliseconds * 1000),
            )
    slow = (
        "SELECT fingerprint, statement, calls, average_ms::float8, slowest_ms::float8"
        " FROM taskmaster.get_slow_queries(1000, '1 hour', 1000)"
    )
    mine = (f"f-{alice.name}", "SELECT slow", 2, 2000.0, 2500.0)
    assert alice.execute(slow) == [mine]
    assert mine in boss.execute(slow) and len(boss.execute(slow)) >= 2
    boss.execute("SELECT taskmaster.refresh_materialized_views()")
    hourly = "SELECT sum(statements), max(user_id) FROM taskmaster.access_statistics_hourly WHERE key_id = %s"
    assert boss.execute(hourly, alice.name[:16]) == [(3, alice.name)]


# Sample rows, and the proxy


def test_sample_rows_are_made_once(make_user: MakeUser, boss: User) -> None:
    alice, bob = make_user(), make_user()
    seed = "SELECT taskmaster.seed_demo(%s, %s)"
    assert boss.execute(seed, alice.name, bob.name) == [12]
    assert boss.execute(seed, alice.name, bob.name) == [0]
    for user in (alice, bob):
        titles = user.execute("SELECT title FROM taskmaster.tasks ORDER BY title, created_by")
        assert len(titles) == 7 and titles.count("Review the search index") == 2
        assert user.execute("SELECT name FROM taskmaster.projects") == [
            f"Website of {user.name.partition('@')[0]}"
        ]
        assert user.execute("SELECT title FROM taskmaster.get_runnable_tasks() LIMIT 1") == [
            "Review the search index"
        ]
        assert [row[0] for row in user.execute("SELECT title, id FROM taskmaster.search_tasks('login')")] == [
            "Fix the login page"
        ]


@pytest.fixture(scope="module")
def tasks_proxy(installation: Installation, proxy: Proxy) -> Proxy:
    """Give the proxy in front of a database with taskmaster; the fixture `schema` would do it twice."""
    migrate.up(installation.cluster.primary.dsn(DATABASE), ["core", "taskmaster"], backup=None, say=quiet)
    installation.replicated()
    return proxy


def test_keys_use_it_through_the_proxy(
    tasks_proxy: Proxy, installation: Installation, make_key: MakeKey
) -> None:
    names = [f"{uuid4()}@example.com" for _ in range(2)]
    alice, bob = (tasks_proxy.login(*make_key(["read:tasks", "write:tasks"], name)) for name in names)
    reader = tasks_proxy.login(*make_key(["read:tasks"], names[0]))
    admin = tasks_proxy.login(*make_key(["admin"], "boss@example.com"))

    def rows(connection: psycopg.Connection[Any], query: str, *parameters: object) -> list[Any]:
        return connection.execute(query.encode(), parameters or None).fetchall()

    with (
        alice.connect() as mine,
        bob.connect() as theirs,
        reader.connect() as reading,
        admin.connect() as all_of_it,
    ):
        (made,) = rows(mine, "SELECT (taskmaster.create_task('through the proxy', priority => 9)).id")
        (other,) = rows(theirs, "SELECT (taskmaster.create_task('of the other')).id")
        rows(mine, "SELECT taskmaster.update_task_status(%s, 'in_progress', 'begun')", made[0])
        with pytest.raises(psycopg.errors.CheckViolation):
            rows(mine, "SELECT taskmaster.update_task_status(%s, 'in_progress2')", made[0])
        with pytest.raises(psycopg.errors.NoDataFound):
            rows(mine, "SELECT taskmaster.update_task_status(%s, 'cancelled')", other[0])
        titles = "SELECT title, status FROM taskmaster.active_tasks"
        assert rows(mine, titles) == [("through the proxy", "in_progress")]
        # A replica may answer the reader a moment later.
        wait_until(lambda: rows(reading, titles) == [("through the proxy", "in_progress")])
        assert rows(theirs, titles) == [("of the other", "pending")]
        assert rows(mine, "SELECT title FROM taskmaster.search_tasks('the proxy')") == [
            ("through the proxy",)
        ]
        assert rows(theirs, "SELECT title FROM taskmaster.search_tasks('the proxy')") == []
        with pytest.raises(psycopg.errors.InsufficientPrivilege):
            rows(reading, "INSERT INTO taskmaster.tasks (title) VALUES ('x') RETURNING id")
        all_of_it.execute("SET sluice.pool = 'admin'")
        audited = "SELECT action, user_id, key_id FROM taskmaster.audit_logs WHERE entity_id = %s ORDER BY id"
        assert rows(all_of_it, audited, made[0]) == [
            ("insert", names[0], alice.user),
            ("update", names[0], alice.user),
        ]
