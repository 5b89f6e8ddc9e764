"""The catalogue of the schema taskmaster: what every table, function, policy and partition must have."""

from __future__ import annotations

import psycopg
import pytest

from proxy import migrate
from proxy.embedded import Cluster
from proxy.setup import setup
from tests.integration.databases import database, quiet
from tests.integration.support import Installation
from tests.integration.users import User

pytest_plugins = ["tests.integration.taskmaster"]

TABLES = {
    *("users", "projects", "workflows", "tasks", "task_contexts", "task_dependencies", "task_executions"),
    *("workflow_executions", "workflow_states", "workflow_events", "pull_requests", "validations"),
    *("agent_configurations", "components", "deployment_scripts", "webhook_events", "external_integrations"),
    *("external_api_calls", "configuration_settings", "error_logs", "logs", "audit_logs", "system_metrics"),
    "idempotency_keys",
}
VIEWS = {
    *("active_tasks", "task_execution_summary", "pr_validation_summary", "error_summary", "recent_activity"),
    *("system_health_dashboard", "performance_monitoring", "performance_metrics", "pr_validations"),
    *("system_config", "configurations", "dependencies"),
}
MATERIALIZED = {"task_statistics_daily", "access_statistics_hourly"}
FUNCTIONS = {
    *("create_task", "update_task_status", "get_task_hierarchy", "calculate_task_completion"),
    *("get_task_statistics", "get_runnable_tasks", "create_workflow", "update_workflow_step"),
    *("get_workflow_progress", "record_metric", "log_api_call", "cleanup_old_logs"),
    *("claim_request", "answer_request"),
    *("refresh_materialized_views", "get_slow_queries", "search_tasks", "search_tasks_by_tags"),
    *("search_task_contexts", "search_workflows", "next_statuses", "visible_tasks", "seed_demo"),
}
# What is called by triggers and other functions alone.
INNER = {
    "touch",
    "check_links",
    "check_creator",
    "change_status",
    "add_user",
    "log_status",
    "check_dependency",
    "audit",
} | {
    "mask_sensitive",
    "like_pattern",
    "find_tasks",
}
SCHEMA = "'taskmaster'::regnamespace"


def relations(superuser: User, kinds: str) -> set[str]:
    return set(
        superuser.execute(
            f"SELECT relname FROM pg_class WHERE relnamespace = {SCHEMA} AND relkind = ANY (%s)"
            " AND NOT relispartition",
            list(kinds),
        )
    )


def test_everything_is_there(superuser: User) -> None:
    assert relations(superuser, "rp") == TABLES
    assert relations(superuser, "v") == VIEWS
    assert relations(superuser, "m") == MATERIALIZED
    own = f"""
        SELECT proname FROM pg_proc p WHERE pronamespace = {SCHEMA}
        AND NOT EXISTS (SELECT FROM pg_depend d WHERE d.objid = p.oid AND d.deptype = 'e')
    """
    assert set(superuser.execute(own)) == FUNCTIONS | INNER


def test_every_table_view_and_function_is_described(superuser: User) -> None:
    assert (
        superuser.execute(f"""
        SELECT relname FROM pg_class WHERE relnamespace = {SCHEMA} AND relkind IN ('r', 'p', 'v', 'm')
        AND NOT relispartition AND obj_description(oid, 'pg_class') IS NULL
    """)
        == []
    )
    assert (
        superuser.execute(f"""
        SELECT proname FROM pg_proc p WHERE pronamespace = {SCHEMA} AND obj_description(oid, 'pg_proc') IS NULL
        AND NOT EXISTS (SELECT FROM pg_depend d WHERE d.objid = p.oid AND d.deptype = 'e')
    """)
        == []
    )


def test_every_table_has_the_three_columns(superuser: User) -> None:
    for name in TABLES:
        columns = superuser.execute(
            "SELECT column_name FROM information_schema.columns WHERE table_schema = 'taskmaster'"
            " AND table_name = %s",
            name,
        )
        assert {"id", "created_at", "updated_at"} <= set(columns), name


def test_row_level_security_is_forced_everywhere(superuser: User) -> None:
    assert (
        superuser.execute(f"""
        SELECT relname FROM pg_class WHERE relnamespace = {SCHEMA} AND relkind IN ('r', 'p')
        AND NOT (relrowsecurity AND relforcerowsecurity AND relowner = 'sluice_owner'::regrole)
    """)
        == []
    )


def test_a_tables_policies_verify_three_times_at_most(superuser: User) -> None:
    counted = superuser.execute("""
        SELECT tablename::text, sum(regexp_count(concat(qual, ' ', with_check), '(current_user_id|has_permission)[(]'))
        FROM pg_policies WHERE schemaname = 'taskmaster' GROUP BY tablename
    """)
    assert {name for name, _ in counted} == TABLES
    assert [(name, count) for name, count in counted if count > 3] == []
    assert max(count for _, count in counted) == 3


def test_policies_refer_downward(superuser: User) -> None:
    order = ["users", "projects", "workflows", "tasks", "workflow_executions"]
    for table, text in superuser.execute(
        "SELECT tablename::text, concat(qual, ' ', with_check) FROM pg_policies WHERE schemaname = 'taskmaster'"
    ):
        for place, other in enumerate(order):
            if f"FROM taskmaster.{other} " in text:
                assert table not in order[: place + 1], (table, other)


def test_every_policy_names_its_roles(superuser: User) -> None:
    roles = superuser.execute(
        "SELECT DISTINCT unnest(roles)::text FROM pg_policies WHERE schemaname = 'taskmaster'"
    )
    assert set(roles) == {"sluice_readwrite", "sluice_readonly", "sluice_admin", "sluice_definer"}
    # USING (true) is for administrators, the functions' owner, and the restrictive half of `write`.
    assert (
        superuser.execute("""
        SELECT tablename::text, policyname::text FROM pg_policies
        WHERE schemaname = 'taskmaster' AND qual = 'true' AND permissive = 'PERMISSIVE'
        AND roles && '{sluice_readwrite,sluice_readonly,sluice_owner,public}'::name[]
    """)
        == []
    )


def test_partitions_belong_to_nobody_else(superuser: User) -> None:
    partitions = superuser.execute(f"""
        SELECT relname::text, array_to_string(relacl, ' ') FROM pg_class
        WHERE relnamespace = {SCHEMA} AND relispartition AND relkind = 'r'
    """)
    assert len(partitions) >= 5 * 9
    for name, grants in partitions:
        assert not grants or all(each.startswith("sluice_owner=") for each in grants.split()), name
    policies = "SELECT tablename FROM pg_policies WHERE schemaname = 'taskmaster' AND tablename ~ '[0-9]{8}$'"
    assert superuser.execute(policies) == []


def test_functions_are_nobodys_by_default_and_pinned_to_the_catalogue(superuser: User) -> None:
    found = superuser.execute(f"""
        SELECT proname::text, prosecdef, proowner::regrole::text, proconfig,
               EXISTS (SELECT FROM aclexplode(coalesce(proacl, acldefault('f', proowner))) WHERE grantee = 0)
        FROM pg_proc p WHERE pronamespace = {SCHEMA} AND prokind = 'f'
        AND NOT EXISTS (SELECT FROM pg_depend d WHERE d.objid = p.oid AND d.deptype = 'e')
    """)
    for name, definer, owner, settings, public in found:
        assert not public, name
        if name != "next_statuses":
            assert "search_path=pg_catalog, pg_temp" in settings, name
        if definer:
            assert owner == ("sluice_owner" if name == "cleanup_old_logs" else "sluice_definer"), name
            assert "client_min_messages=notice" in settings, name
    assert superuser.execute("SELECT has_schema_privilege('sluice_definer', 'taskmaster', 'CREATE')") == [
        False
    ]


def test_views_run_as_their_reader(superuser: User) -> None:
    assert (
        superuser.execute(f"""
        SELECT relname::text FROM pg_class WHERE relnamespace = {SCHEMA} AND relkind = 'v'
        AND NOT coalesce(reloptions @> '{{security_invoker=true}}', false)
    """)
        == []
    )


def test_every_foreign_key_has_an_index(superuser: User) -> None:
    assert (
        superuser.execute(f"""
        SELECT c.conrelid::regclass::text, a.attname::text
        FROM pg_constraint c JOIN pg_attribute a ON a.attrelid = c.conrelid AND a.attnum = c.conkey[1]
        WHERE c.contype = 'f' AND c.connamespace = {SCHEMA} AND NOT EXISTS (
            SELECT FROM pg_index i WHERE i.indrelid = c.conrelid AND i.indkey[0] = c.conkey[1])
    """)
        == []
    )


@pytest.mark.parametrize("role", ["app_rw", "app_ro", "app_admin"])
def test_inner_functions_and_partitions_are_refused(schema: Installation, superuser: User, role: str) -> None:
    partition = superuser.execute(
        "SELECT inhrelid::regclass::text FROM pg_inherits WHERE inhparent = 'taskmaster.system_metrics'::regclass"
    )[0]
    with schema.role(role).connect() as connection:
        for statement in (
            f"SELECT * FROM {partition}",
            "SELECT taskmaster.mask_sensitive('{}')",
            "SELECT taskmaster.like_pattern('abc')",
            "SELECT taskmaster.find_tasks('true', NULL, NULL, NULL, NULL, 1, 0)",
            "CREATE TABLE taskmaster.mine ()",
            "TRUNCATE taskmaster.tasks",
            "ALTER TABLE taskmaster.tasks DISABLE ROW LEVEL SECURITY",
            "ALTER TABLE taskmaster.tasks DISABLE TRIGGER audit",
            "UPDATE taskmaster.audit_logs SET user_id = 'nobody'",
            "DELETE FROM taskmaster.workflow_events",
        ):
            with pytest.raises((psycopg.errors.InsufficientPrivilege, psycopg.errors.ReadOnlySqlTransaction)):
                connection.execute(statement.encode())


# Up and down: each migration's rollback is tried in test_migrate_catalogue.py


def up(dsn: str, *branches: str) -> list[str]:
    return migrate.up(dsn, branches, backup=None, say=quiet)


def down(dsn: str, version: str) -> list[str]:
    return migrate.rollback(dsn, version, backup=None, say=quiet)


def test_rows_do_not_keep_it_from_coming_down(empty_cluster: Cluster) -> None:
    dsn = empty_cluster.primary.dsn("tasks")
    setup(dsn, "tasks", ("core", "taskmaster"))
    with psycopg.connect(dsn, autocommit=True) as superuser:
        row = superuser.execute("SELECT taskmaster.seed_demo('a@example.com', 'b@example.com')").fetchone()
        assert row == (12,)
    down(dsn, "taskmaster@base")
    with psycopg.connect(dsn) as superuser:
        assert superuser.execute("SELECT to_regnamespace('taskmaster')").fetchone() == (None,)


def test_trigrams_of_another_schema_are_used_and_kept(empty_cluster: Cluster) -> None:
    dsn = database(empty_cluster, "tasks")
    with psycopg.connect(dsn, autocommit=True) as superuser:
        superuser.execute("CREATE EXTENSION pg_trgm")
        up(dsn, "taskmaster")
        assert superuser.execute("SELECT to_regclass('taskmaster.tasks_title_trgm_idx')").fetchone() != (
            None,
        )
        down(dsn, "taskmaster@base")
        assert superuser.execute("SELECT FROM pg_extension WHERE extname = 'pg_trgm'").fetchone() is not None


def test_without_trigrams_text_is_searched_all_the_same(empty_cluster: Cluster) -> None:
    dsn = database(empty_cluster, "tasks")
    said: list[str] = []
    with psycopg.connect(dsn, autocommit=True) as superuser:
        # What CREATE EXTENSION says where the package is missing.
        superuser.execute("""
            CREATE FUNCTION public.refuse() RETURNS event_trigger LANGUAGE plpgsql AS $$
            BEGIN RAISE undefined_file USING MESSAGE = 'could not open extension control file'; END $$
        """)
        superuser.execute(
            "CREATE EVENT TRIGGER refuse ON ddl_command_start WHEN TAG IN ('CREATE EXTENSION')"
            " EXECUTE FUNCTION public.refuse()"
        )
        migrate.up(dsn, ["taskmaster"], backup=None, say=said.append)
        assert any("pg_trgm is left out" in line for line in said)
        assert superuser.execute("SELECT to_regclass('taskmaster.tasks_title_trgm_idx')").fetchone() == (
            None,
        )
        superuser.execute("SELECT taskmaster.seed_demo('a@example.com', 'b@example.com')")
        found = superuser.execute("SELECT title FROM taskmaster.search_tasks('LOGIN')").fetchall()
        assert found == [("Fix the login page",)] * 2
    down(dsn, "taskmaster@base")
