"""Whose rows a user sees and changes in taskmaster: every table, two users, three kinds of keys."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any
from uuid import UUID, uuid4

import psycopg
import pytest
from psycopg.types.json import Jsonb

from tests.integration.users import MakeUser, User

pytest_plugins = ["tests.integration.taskmaster"]

# How many rows of each table `furnish` makes for a user, so that a test that sees nothing means something.
OWN = {
    "users": 1,
    "projects": 1,
    "workflows": 1,
    "tasks": 2,
    "task_contexts": 1,
    "task_dependencies": 1,
    "workflow_executions": 1,
    "task_executions": 1,
    "workflow_states": 1,
    "workflow_events": 2,
    "pull_requests": 1,
    "validations": 1,
    "external_api_calls": 1,
    "logs": 1,
}
VIEWS = {
    "active_tasks": 2,
    "task_execution_summary": 1,
    "pr_validation_summary": 1,
    "recent_activity": 2,
    "pr_validations": 1,
    "dependencies": 1,
}
CHANGED = [name for name in OWN if name not in {"workflow_events", "external_api_calls", "logs"}]


@dataclass(frozen=True)
class Furniture:
    """The ids of the rows that a user has, by table."""

    ids: dict[str, list[UUID]]

    def __getitem__(self, table: str) -> UUID:
        return self.ids[table][0]


def furnish(user: User, integration: UUID) -> Furniture:
    """Make rows of the user in every table that holds users' rows."""
    project = user.insert("projects", name="a project")
    flow = user.insert("workflows", name="a workflow", project_id=project)
    task, other = user.task("a task", project_id=project, workflow_id=flow), user.task("another")
    run = user.insert("workflow_executions", workflow_id=flow, task_id=task)
    execution = user.insert(
        "task_executions", task_id=task, workflow_execution_id=run, agent_type="claude-code"
    )
    pull = user.insert("pull_requests", task_id=task, repository="a/b", pr_number=1)
    user.execute("UPDATE taskmaster.users SET display_name = 'me' WHERE user_id = %s", user.name)
    call = "SELECT taskmaster.log_api_call(%s, '/issues', 'GET', task_id => %s)"
    ids = {
        "users": [user.value("SELECT id FROM taskmaster.users")],
        "projects": [project],
        "workflows": [flow],
        "tasks": [task, other],
        "task_contexts": [user.insert("task_contexts", task_id=task, context_type="files")],
        "task_dependencies": [user.insert("task_dependencies", task_id=task, depends_on_id=other)],
        "workflow_executions": [run],
        "task_executions": [execution],
        "workflow_states": [user.insert("workflow_states", workflow_execution_id=run, step="build")],
        "workflow_events": [
            user.insert("workflow_events", task_id=task, event_type="noted"),
            user.insert("workflow_events", workflow_execution_id=run, event_type="noted"),
        ],
        "pull_requests": [pull],
        "validations": [
            user.insert(
                "validations",
                task_id=task,
                execution_id=execution,
                pull_request_id=pull,
                validation_type="tests",
            )
        ],
        "external_api_calls": [user.value(call, integration, task)],
    }
    # INSERT … RETURNING is not needed anywhere above, so logs and errors work the same way.
    ids["logs"] = [user.insert("logs", component_name="builder", message="built", workflow_execution_id=run)]
    user.insert(
        "error_logs", task_id=task, execution_id=execution, error_type="network", error_message="reset"
    )
    return Furniture(ids)


@pytest.fixture
def integration(boss: User) -> UUID:
    return boss.insert("external_integrations", integration_type="github", integration_name=f"hub {uuid4()}")


def seen(user: User, relation: str) -> list[Any]:
    return user.execute(f"SELECT * FROM taskmaster.{relation}")


def test_nobody_sees_a_foreign_row(make_user: MakeUser, alice: User, bob: User, integration: UUID) -> None:
    furnish(alice, integration)
    theirs = furnish(bob, integration)
    readers = [alice, make_user("read:tasks", role="app_ro", name=alice.name)]
    for user in readers:
        for table, count in OWN.items():
            assert len(seen(user, table)) == count, table
            assert (
                user.execute(f"SELECT FROM taskmaster.{table} WHERE id = ANY (%s)", theirs.ids[table]) == []
            ), table
        for view, count in VIEWS.items():
            assert len(seen(user, view)) == count, view
        assert seen(user, "error_logs") == seen(user, "error_summary") == []


def test_a_claim_is_needed(
    make_user: MakeUser, schema: Any, alice: User, bob: User, integration: UUID
) -> None:
    furnish(alice, integration)
    without_permission = make_user("read:metrics", name=alice.name)
    admin_elsewhere = make_user("admin", name=alice.name)
    with schema.role("app_rw").connect() as connection:
        for user in (User("", connection), without_permission, admin_elsewhere):
            for relation in (*OWN, *VIEWS):
                assert seen(user, relation) == [], relation
            assert user.execute("SELECT * FROM taskmaster.get_runnable_tasks()") == []
            assert user.execute("SELECT * FROM taskmaster.visible_tasks()") == []
        with pytest.raises(psycopg.errors.InsufficientPrivilege):
            connection.execute("INSERT INTO taskmaster.tasks (title) VALUES ('nobody''s')")
        with pytest.raises(psycopg.errors.InsufficientPrivilege):
            connection.execute(
                "INSERT INTO taskmaster.tasks (title, created_by) VALUES ('x', %s)", (alice.name,)
            )


@pytest.mark.parametrize("table", CHANGED)
def test_foreign_rows_are_not_changed(
    alice: User, bob: User, superuser: User, integration: UUID, table: str
) -> None:
    furnish(alice, integration)
    theirs = furnish(bob, integration)
    before = superuser.execute(f"SELECT * FROM taskmaster.{table} WHERE id = ANY (%s)", theirs.ids[table])
    assert len(before) == OWN[table]
    column = superuser.value(
        "SELECT column_name FROM information_schema.columns WHERE table_schema = 'taskmaster' AND table_name = %s"
        " AND column_name IN ('display_name', 'description', 'source', 'dependency_type', 'current_step', 'output',"
        " 'step', 'title', 'validation_type') ORDER BY column_name LIMIT 1",
        table,
    )
    value = "relates_to" if column == "dependency_type" else "taken"
    update = f"UPDATE taskmaster.{table} SET {column} = '{value}'"
    assert alice.count(update + " WHERE id = ANY (%s)", theirs.ids[table]) == 0
    assert alice.count(update) == OWN[table]  # without WHERE, which no SELECT policy guards
    if table != "users":
        assert alice.count(f"DELETE FROM taskmaster.{table} WHERE id = ANY (%s)", theirs.ids[table]) == 0
        assert alice.count(f"DELETE FROM taskmaster.{table}") == OWN[table]
    else:
        with pytest.raises(psycopg.errors.InsufficientPrivilege):
            alice.execute("DELETE FROM taskmaster.users")
    rows = superuser.execute(f"SELECT * FROM taskmaster.{table} WHERE id = ANY (%s)", theirs.ids[table])
    assert rows == before


@pytest.mark.parametrize(
    ("table", "column", "target", "rest"),
    [
        ("tasks", "project_id", "projects", {"title": "x"}),
        ("tasks", "workflow_id", "workflows", {"title": "x"}),
        ("tasks", "parent_task_id", "tasks", {"title": "x"}),
        ("workflows", "project_id", "projects", {"name": "x"}),
        ("workflows", "parent_workflow_id", "workflows", {"name": "x"}),
        ("task_contexts", "task_id", "tasks", {"context_type": "x"}),
        ("task_dependencies", "depends_on_id", "tasks", {"task_id": "tasks"}),
        ("task_dependencies", "task_id", "tasks", {"depends_on_id": "tasks"}),
        ("workflow_executions", "workflow_id", "workflows", {}),
        ("workflow_executions", "task_id", "tasks", {"workflow_id": "workflows"}),
        ("task_executions", "task_id", "tasks", {"agent_type": "codegen"}),
        (
            "task_executions",
            "workflow_execution_id",
            "workflow_executions",
            {"task_id": "tasks", "agent_type": "codegen"},
        ),
        ("workflow_states", "workflow_execution_id", "workflow_executions", {"step": "x"}),
        ("workflow_events", "task_id", "tasks", {"event_type": "x"}),
        (
            "workflow_events",
            "workflow_execution_id",
            "workflow_executions",
            {"event_type": "x", "task_id": "tasks"},
        ),
        ("pull_requests", "task_id", "tasks", {"repository": "a/b", "pr_number": 9}),
        ("validations", "task_id", "tasks", {"validation_type": "x"}),
        ("validations", "execution_id", "task_executions", {"validation_type": "x", "task_id": "tasks"}),
        ("validations", "pull_request_id", "pull_requests", {"validation_type": "x", "task_id": "tasks"}),
        ("error_logs", "task_id", "tasks", {"error_type": "api", "error_message": "x"}),
        ("error_logs", "execution_id", "task_executions", {"error_type": "api", "error_message": "x"}),
        ("logs", "workflow_execution_id", "workflow_executions", {"component_name": "x", "message": "x"}),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_nothing_is_hung_on_a_foreign_row(
    alice: User, bob: User, integration: UUID, table: str, column: str, target: str, rest: dict[str, Any]
) -> None:
    mine, theirs = furnish(alice, integration), furnish(bob, integration)
    fill = {name: mine.ids[value][-1] if value in OWN else value for name, value in rest.items()}
    refusals = (psycopg.errors.ForeignKeyViolation, psycopg.errors.InsufficientPrivilege)
    with pytest.raises(refusals) as foreign:
        alice.insert(table, **{**fill, column: theirs[target]})
    with pytest.raises(refusals) as missing:
        alice.insert(table, **{**fill, column: uuid4()})
    # What isn't mine can't be told from what isn't there.
    assert type(foreign.value) is type(missing.value)
    if table == "task_dependencies":
        fill = {name: alice.task() for name in fill}
    alice.insert(table, **{**fill, column: mine[target]})


def test_nothing_is_made_in_anothers_name(alice: User, bob: User, boss: User, integration: UUID) -> None:
    project = furnish(alice, integration)["projects"]
    bob.task()
    # The arms of assignee and project would let these pass.
    with pytest.raises(psycopg.errors.InsufficientPrivilege):
        alice.task(created_by=bob.name, assigned_to=alice.name)
    with pytest.raises(psycopg.errors.InsufficientPrivilege):
        alice.task(created_by=bob.name, project_id=project)
    with pytest.raises(psycopg.errors.InsufficientPrivilege):
        alice.insert("workflows", name="x", created_by=bob.name, project_id=project)
    with pytest.raises(psycopg.errors.InsufficientPrivilege):
        alice.insert("projects", name="x", owner_id=bob.name)
    with pytest.raises(psycopg.errors.InsufficientPrivilege):
        alice.insert("users", user_id=f"{uuid4()}@example.com")
    alice.task(created_by=alice.name)
    boss.task(created_by=bob.name)
    assert len(seen(bob, "tasks")) == 2


def test_links_are_not_moved_to_foreign_rows(alice: User, bob: User, integration: UUID) -> None:
    mine, theirs = furnish(alice, integration), furnish(bob, integration)
    for table, column, target in (
        ("tasks", "project_id", "projects"),
        ("task_executions", "task_id", "tasks"),
        ("workflow_states", "workflow_execution_id", "workflow_executions"),
        ("validations", "pull_request_id", "pull_requests"),
    ):
        with pytest.raises((psycopg.errors.ForeignKeyViolation, psycopg.errors.InsufficientPrivilege)):
            alice.execute(
                f"UPDATE taskmaster.{table} SET {column} = %s WHERE id = %s", theirs[target], mine[table]
            )
    with pytest.raises(psycopg.errors.ForeignKeyViolation):
        alice.value(
            "SELECT taskmaster.log_api_call(%s, '/x', 'GET', task_id => %s)", integration, theirs["tasks"]
        )


def test_an_assignee_and_a_projects_owner_see_the_task(alice: User, bob: User, make_user: MakeUser) -> None:
    bob.task("makes bob known")
    shared = alice.task("for bob", assigned_to=bob.name)
    context = alice.insert("task_contexts", task_id=shared, context_type="files")
    titles = "SELECT title FROM taskmaster.tasks ORDER BY title"
    assert bob.execute(titles) == ["for bob", "makes bob known"]
    assert bob.execute("SELECT id FROM taskmaster.task_contexts") == [context]
    assert (
        bob.value("SELECT (taskmaster.update_task_status(%s, 'in_progress')).status", shared) == "in_progress"
    )
    bob.insert("task_executions", task_id=shared, agent_type="codegen")
    assert alice.value("SELECT count(*) FROM taskmaster.task_executions") == 1
    # The owner of a project sees what an assignee made in it, once the assignee is given the project.
    project = alice.insert("projects", name="alice's")
    with pytest.raises(psycopg.errors.ForeignKeyViolation):
        bob.task("smuggled in", project_id=project)
    alice.execute("UPDATE taskmaster.tasks SET project_id = %s WHERE id = %s", project, shared)
    bob.execute("UPDATE taskmaster.tasks SET description = 'done' WHERE id = %s", shared)
    # Who hands the task on no longer sees it, so an assignee can't: the creator does.
    carol = make_user()
    carol.task()
    with pytest.raises(psycopg.errors.InsufficientPrivilege):
        bob.execute("UPDATE taskmaster.tasks SET assigned_to = %s WHERE id = %s", carol.name, shared)
    alice.execute("UPDATE taskmaster.tasks SET assigned_to = %s WHERE id = %s", carol.name, shared)
    assert bob.execute(titles) == ["makes bob known"]
    assert carol.execute(titles) == ["a task", "for bob"]


def test_reading_alone_changes_nothing(make_user: MakeUser, alice: User, integration: UUID) -> None:
    mine = furnish(alice, integration)
    # In the pool of writers too: the key may hold write:metrics, and the proxy lets it pass.
    reader = make_user("read:tasks", "write:metrics", name=alice.name)
    for table in CHANGED:
        if table != "users":
            assert reader.count(f"DELETE FROM taskmaster.{table}") == 0, table
        with pytest.raises(psycopg.errors.InsufficientPrivilege):
            reader.execute(f"UPDATE taskmaster.{table} SET updated_at = now()")
    for call in (
        "taskmaster.create_task('x')",
        "taskmaster.create_workflow('x')",
        f"taskmaster.update_task_status('{mine['tasks']}', 'cancelled')",
        f"taskmaster.update_workflow_step('{mine['workflow_executions']}', 'x', 'running')",
        f"taskmaster.log_api_call('{integration}', '/x', 'GET')",
    ):
        with pytest.raises(psycopg.errors.InsufficientPrivilege):
            reader.execute(f"SELECT {call}")
    assert {table: len(seen(alice, table)) for table in OWN} == OWN


def test_an_administrator_sees_and_changes_everything(
    alice: User, bob: User, boss: User, integration: UUID
) -> None:
    both = [furnish(user, integration) for user in (alice, bob)]
    for table, count in OWN.items():
        ids = [made for each in both for made in each.ids[table]]
        found = boss.execute(f"SELECT id FROM taskmaster.{table} WHERE id = ANY (%s)", ids)
        assert len(found) == count * 2, table
    errors = "SELECT count(*) FROM taskmaster.error_logs WHERE task_id = ANY (%s) AND NOT resolved"
    tasks = [each["tasks"] for each in both]
    assert boss.value(errors, tasks) == 2
    boss.execute("UPDATE taskmaster.error_logs SET resolved = true WHERE task_id = ANY (%s)", tasks)
    assert boss.value(errors, tasks) == 0
    assert sum(row[2] for row in seen(boss, "error_summary") if row[1] == "network") >= 2
    assert boss.count("DELETE FROM taskmaster.projects WHERE id = %s", both[0]["projects"]) == 1
    assert alice.value("SELECT project_id FROM taskmaster.tasks WHERE title = 'a task'") is None


# What belongs to no user


def test_components_and_metrics_need_read_metrics(make_user: MakeUser, alice: User, boss: User) -> None:
    name = f"part {uuid4()}"
    boss.insert("components", name=name, health_status="healthy", last_health_check="now")
    boss.insert("agent_configurations", agent_type="codegen", name=name)
    boss.insert("external_integrations", integration_type="other", integration_name=name)
    health = (
        "SELECT kind, health_status, stale FROM taskmaster.system_health_dashboard WHERE name = %s ORDER BY 1"
    )
    expected = [("agent", "unknown", True), ("component", "healthy", False), ("integration", "unknown", True)]
    watcher = make_user("read:metrics", role="app_ro")
    assert watcher.execute(health, name) == boss.execute(health, name) == expected
    assert alice.execute(health, name) == []
    with pytest.raises(psycopg.errors.InsufficientPrivilege):
        watcher.execute("SELECT configuration FROM taskmaster.external_integrations")
    for table in ("components", "agent_configurations", "external_integrations"):
        for user in (alice, make_user("read:metrics", "write:metrics")):
            with pytest.raises(psycopg.errors.InsufficientPrivilege):
                user.execute(f"UPDATE taskmaster.{table} SET updated_at = now()")


def test_metrics_are_written_with_write_metrics(make_user: MakeUser, alice: User) -> None:
    meter, watcher = make_user("write:metrics"), make_user("read:metrics", role="app_ro")
    name = f"metric {uuid4()}"
    record = "SELECT taskmaster.record_metric(%s, %s, 'timer', 'ms', 'builder', %s)"
    for value in range(1, 101):
        meter.execute(record, name, value, Jsonb({"n": value}))
    for user in (alice, watcher):
        with pytest.raises(psycopg.errors.InsufficientPrivilege):
            user.execute(record, name, 1, Jsonb({}))
    monitored = (
        "SELECT component, metric_unit, samples, average, least, most, round(p95)"
        " FROM taskmaster.performance_monitoring WHERE metric_name = %s"
    )
    assert watcher.execute(monitored, name) == [("builder", "ms", 100, 50.5, 1, 100, 95)]
    older = "SELECT count(*) FROM taskmaster.performance_metrics WHERE metric_name = %s"
    assert watcher.value(older, name) == 100
    assert alice.value(older, name) == meter.value(older, name) == 0


def test_sensitive_settings_are_for_administrators(alice: User, boss: User) -> None:
    plain, secret = f"plain {uuid4()}", f"secret {uuid4()}"
    boss.insert("configuration_settings", key=plain, value=Jsonb(1), value_type="number")
    boss.insert("configuration_settings", key=secret, value=Jsonb("x"), is_sensitive=True)
    with pytest.raises(psycopg.errors.CheckViolation):
        boss.insert("configuration_settings", key="wrong", value=Jsonb("x"), value_type="number")
    for name in ("configuration_settings", "system_config", "configurations"):
        found = f"SELECT key FROM taskmaster.{name} WHERE key = ANY (%s)"
        assert alice.execute(found, [plain, secret]) == [plain]
        assert sorted(boss.execute(found, [plain, secret])) == [plain, secret]
        with pytest.raises(psycopg.errors.InsufficientPrivilege):
            alice.execute(f"UPDATE taskmaster.{name} SET value = '2'")


@pytest.mark.parametrize("table", ["deployment_scripts", "webhook_events", "audit_logs"])
def test_what_is_for_administrators_alone(alice: User, boss: User, table: str) -> None:
    with pytest.raises(psycopg.errors.InsufficientPrivilege):
        alice.execute(f"SELECT * FROM taskmaster.{table}")
    boss.execute(f"SELECT * FROM taskmaster.{table} LIMIT 1")


def test_a_delivery_is_taken_once(boss: User) -> None:
    delivery = {"source": "github", "event_type": "push", "delivery_id": str(uuid4())}
    boss.insert("webhook_events", **delivery)
    with pytest.raises(psycopg.errors.UniqueViolation):
        boss.insert("webhook_events", **delivery)
    script = boss.insert("deployment_scripts", name=f"deploy {uuid4()}", script="make deploy")
    assert boss.count("UPDATE taskmaster.deployment_scripts SET status = 'active' WHERE id = %s", script) == 1
