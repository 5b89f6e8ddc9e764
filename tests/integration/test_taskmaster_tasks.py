"""Tasks and workflows as applications use them: functions, statuses, dependencies, the audit."""

from __future__ import annotations

import threading
from datetime import timedelta
from itertools import product
from uuid import UUID, uuid4

import psycopg
import pytest
from psycopg.types.json import Jsonb

from tests.integration.users import KEY_ID, MakeUser, User

pytest_plugins = ["tests.integration.taskmaster"]

STATUSES = ("pending", "in_progress", "completed", "failed", "cancelled")
LEGAL = {
    ("pending", "in_progress"),
    ("pending", "cancelled"),
    ("in_progress", "completed"),
    ("in_progress", "failed"),
    ("in_progress", "cancelled"),
    ("in_progress", "pending"),
    ("failed", "pending"),
    ("failed", "cancelled"),
    ("cancelled", "pending"),
}
CHANGE = "SELECT (taskmaster.update_task_status(%s, %s)).status"


def change(user: User, task: UUID, *statuses: str) -> None:
    for status in statuses:
        assert user.value(CHANGE, task, status) == status


# Making


def test_create_task_makes_a_task_of_the_keys_user(alice: User) -> None:
    project = alice.insert("projects", name="a project")
    flow = alice.value("SELECT (taskmaster.create_workflow('a flow', project_id => %s)).id", project)
    first = alice.value("SELECT (taskmaster.create_task('first')).id")
    made = alice.value(
        "SELECT to_jsonb(taskmaster.create_task('second', 'a description', 'bug', 8, %s, %s, %s, %s, %s, %s, %s))",
        *(project, flow, first, alice.name, Jsonb(["a"]), Jsonb({"b": 1}), [first]),
    )
    wanted = {
        "title": "second",
        "description": "a description",
        "type": "bug",
        "priority": 8,
        "status": "pending",
        "project_id": str(project),
        "workflow_id": str(flow),
        "parent_task_id": str(first),
        "created_by": alice.name,
        "assigned_to": alice.name,
        "tags": ["a"],
        "metadata": {"b": 1},
    }
    assert {name: made[name] for name in wanted} == wanted
    assert alice.execute(
        "SELECT depends_on_id FROM taskmaster.dependencies WHERE task_id = %s", made["id"]
    ) == [first]
    assert alice.execute("SELECT user_id FROM taskmaster.users") == [alice.name]


@pytest.mark.parametrize(
    ("column", "value"),
    [
        ("title", ""),
        ("title", "x" * 256),
        ("status", "done"),
        ("priority", 11),
        ("priority", -1),
        ("complexity_score", 0),
        ("complexity_score", 11),
        ("tags", Jsonb({})),
        ("metadata", Jsonb([])),
        ("estimated_hours", -1),
    ],
)
def test_a_value_out_of_range_is_refused(alice: User, column: str, value: object) -> None:
    with pytest.raises(psycopg.errors.CheckViolation):
        alice.insert("tasks", **{"title": "a task", column: value})


def test_who_made_a_row_and_when_can_not_be_changed(alice: User) -> None:
    task = alice.task()
    for column, value in (("created_by", "'x'"), ("created_at", "now()"), ("id", "gen_random_uuid()")):
        with pytest.raises(psycopg.errors.InsufficientPrivilege):
            alice.execute(f"UPDATE taskmaster.tasks SET {column} = {value} WHERE id = %s", task)
    before = alice.value("SELECT updated_at FROM taskmaster.tasks WHERE id = %s", task)
    alice.execute("UPDATE taskmaster.tasks SET title = 'another' WHERE id = %s", task)
    assert alice.value("SELECT updated_at FROM taskmaster.tasks WHERE id = %s", task) > before


# Statuses


@pytest.mark.parametrize(
    ("before", "after"), [pair for pair in product(STATUSES, STATUSES) if len(set(pair)) == 2]
)
def test_only_legal_changes_of_status(alice: User, before: str, after: str) -> None:
    task = alice.task(status=before)
    if (before, after) in LEGAL:
        change(alice, task, after)
        return
    with pytest.raises(psycopg.errors.CheckViolation, match=f"from {before} to {after}") as refused:
        change(alice, task, after)
    assert refused.value.diag.constraint_name == "tasks_status_transition"
    with pytest.raises(psycopg.errors.CheckViolation):  # nor around the function
        alice.execute("UPDATE taskmaster.tasks SET status = %s WHERE id = %s", after, task)
    assert alice.value("SELECT status FROM taskmaster.tasks WHERE id = %s", task) == before


def test_next_statuses_says_what_is_legal(alice: User) -> None:
    said = {
        (before, after)
        for before in STATUSES
        for after in alice.value("SELECT taskmaster.next_statuses(%s)", before)
    }
    assert said == LEGAL


def test_an_unknown_task_or_status_is_refused(alice: User, bob: User) -> None:
    with pytest.raises(psycopg.errors.NoDataFound, match="there is no task"):
        change(alice, uuid4(), "cancelled")
    with pytest.raises(psycopg.errors.NoDataFound, match="there is no task"):
        change(alice, bob.task(), "cancelled")
    with pytest.raises(psycopg.errors.CheckViolation):
        change(alice, alice.task(), "done")
    with pytest.raises(psycopg.errors.CheckViolation):
        change(alice, alice.task(), "")


def test_times_follow_the_status(alice: User) -> None:
    task = alice.task()
    times = "SELECT started_at IS NOT NULL, completed_at IS NOT NULL, retry_count FROM taskmaster.tasks WHERE id = %s"
    expected = [
        ("in_progress", (True, False, 0)),
        ("failed", (True, True, 0)),
        ("pending", (True, False, 1)),
        ("in_progress", (True, False, 1)),
        ("completed", (True, True, 1)),
    ]
    for status, facts in expected:
        change(alice, task, status)
        assert alice.value(times, task) == facts, status


def test_a_failed_task_is_tried_again_so_many_times(alice: User) -> None:
    task = alice.task(max_retries=1)
    change(alice, task, "in_progress", "failed", "pending", "in_progress", "failed")
    with pytest.raises(psycopg.errors.CheckViolation, match="at most 1 times"):
        change(alice, task, "pending")
    change(alice, task, "cancelled")


def test_a_change_of_status_is_logged_with_its_reason(alice: User, bob: User) -> None:
    task = alice.task()
    with alice.connection.transaction():
        alice.execute("SELECT taskmaster.update_task_status(%s, 'in_progress', 'let''s go')", task)
        alice.execute("UPDATE taskmaster.tasks SET status = 'completed' WHERE id = %s", task)
    logged = "SELECT payload, actor FROM taskmaster.workflow_events WHERE task_id = %s ORDER BY id"
    assert alice.execute(logged, task) == [
        ({"from": "pending", "to": "in_progress", "reason": "let's go"}, alice.name),
        ({"from": "in_progress", "to": "completed"}, alice.name),
    ]
    assert bob.execute(logged, task) == []
    activity = "SELECT task_title, payload->>'to' FROM taskmaster.recent_activity ORDER BY id"
    assert alice.execute(activity) == [("a task", "in_progress"), ("a task", "completed")]


def test_two_changes_at_once_take_turns(make_user: MakeUser) -> None:
    alice = make_user()
    again = make_user(name=alice.name)
    task = alice.task()
    thread = threading.Thread(target=change, args=(again, task, "in_progress"))
    with alice.connection.transaction():
        change(alice, task, "in_progress")
        thread.start()
        thread.join(0.2)
    thread.join()
    # The second found nothing left to change.
    assert alice.value("SELECT count(*) FROM taskmaster.workflow_events WHERE task_id = %s", task) == 1


# Dependencies


def test_a_circle_of_dependencies_is_refused(alice: User) -> None:
    first, second, third = (alice.task(f"task {n}") for n in range(3))
    alice.insert("task_dependencies", task_id=second, depends_on_id=first)
    alice.insert("task_dependencies", task_id=third, depends_on_id=second)
    for task, needed in ((first, third), (first, second), (second, third)):
        with pytest.raises(psycopg.errors.CheckViolation, match="would wait for itself") as refused:
            alice.insert("task_dependencies", task_id=task, depends_on_id=needed)
        assert refused.value.diag.constraint_name == "task_dependencies_no_cycle"
    with pytest.raises(psycopg.errors.CheckViolation):
        alice.insert("task_dependencies", task_id=first, depends_on_id=first)
    with pytest.raises(psycopg.errors.CheckViolation, match="would wait for itself"):
        alice.execute(
            "UPDATE taskmaster.task_dependencies SET task_id = %s, depends_on_id = %s WHERE task_id = %s",
            *(first, second, third),
        )
    with pytest.raises(psycopg.errors.UniqueViolation):
        alice.insert("task_dependencies", task_id=second, depends_on_id=first)
    assert alice.value("SELECT count(*) FROM taskmaster.dependencies") == 2


def test_two_halves_of_a_circle_at_once(make_user: MakeUser) -> None:
    alice = make_user()
    again = make_user(name=alice.name)
    first, second = alice.task(), alice.task()
    refused: list[str] = []

    def half() -> None:
        try:
            again.insert("task_dependencies", task_id=second, depends_on_id=first)
        except psycopg.errors.CheckViolation as problem:
            refused.append(str(problem))

    with alice.connection.transaction():
        alice.insert("task_dependencies", task_id=first, depends_on_id=second)
        thread = threading.Thread(target=half)
        thread.start()
        thread.join(0.2)
    thread.join()
    assert len(refused) == 1 and "would wait for itself" in refused[0]


def test_runnable_tasks_wait_for_no_other(alice: User, bob: User) -> None:
    runnable = "SELECT title FROM taskmaster.get_runnable_tasks()"
    low, high, waiting = (
        alice.task("low", priority=1),
        alice.task("high", priority=9),
        alice.task("waiting", priority=10),
    )
    told = alice.task("told", priority=0)
    alice.insert("task_dependencies", task_id=waiting, depends_on_id=low)
    alice.insert("task_dependencies", task_id=told, depends_on_id=low, dependency_type="relates_to")
    bob.task("bob's")
    assert alice.execute(runnable) == ["high", "low", "told"]
    assert alice.execute("SELECT title FROM taskmaster.get_runnable_tasks(1)") == ["high"]
    change(alice, low, "in_progress")
    assert alice.execute(runnable) == ["high", "told"]
    change(alice, low, "completed")
    assert alice.execute(runnable) == ["waiting", "high", "told"]
    assert alice.execute("SELECT title FROM taskmaster.get_runnable_tasks(project_id => %s)", uuid4()) == []
    # A dependency on what is done already is satisfied from the start, whatever the client says.
    late = alice.task("late", priority=10)
    alice.insert("task_dependencies", task_id=late, depends_on_id=low)
    alice.insert("task_dependencies", task_id=late, depends_on_id=high, satisfied_at="2020-01-01")
    satisfied = (
        "SELECT satisfied_at IS NOT NULL FROM taskmaster.dependencies WHERE task_id = %s ORDER BY created_at"
    )
    assert alice.execute(satisfied, late) == [True, False]


# Trees and numbers


def test_a_hierarchy_and_its_completion(alice: User, bob: User) -> None:
    root = alice.task("root")
    left, right = alice.task("left", parent_task_id=root), alice.task("right", parent_task_id=root)
    leaves = [alice.task(f"leaf {n}", parent_task_id=left) for n in range(3)]
    tree = "SELECT title, depth FROM taskmaster.get_task_hierarchy(%s)"
    found = alice.execute(tree, root)
    assert found[0] == ("root", 0)
    assert sorted(found) == [
        ("leaf 0", 2),
        ("leaf 1", 2),
        ("leaf 2", 2),
        ("left", 1),
        ("right", 1),
        ("root", 0),
    ]
    assert alice.execute("SELECT path FROM taskmaster.get_task_hierarchy(%s) WHERE depth = 2", root)[0][
        :2
    ] == [
        root,
        left,
    ]
    assert len(alice.execute("SELECT * FROM taskmaster.get_task_hierarchy(%s, 1)", root)) == 3
    assert bob.execute(tree, root) == []
    completion = "SELECT taskmaster.calculate_task_completion(%s)::float8"
    assert alice.value(completion, root) == 0
    change(alice, leaves[0], "in_progress", "completed")
    assert alice.value(completion, root) == 25
    change(alice, leaves[1], "cancelled")
    assert alice.value(completion, root) == pytest.approx(33.3)
    change(alice, right, "in_progress", "completed")
    assert alice.value(completion, leaves[0]) == 100
    assert bob.value(completion, root) is None
    # A circle of parents doesn't keep it busy for ever.
    alice.execute("UPDATE taskmaster.tasks SET parent_task_id = %s WHERE id = %s", leaves[2], root)
    assert len(alice.execute(tree, root)) == 6


def test_statistics_count_ones_own(alice: User, bob: User) -> None:
    project = alice.insert("projects", name="a project")
    alice.task(status="failed", priority=3)
    alice.task(status="failed", priority=6, project_id=project)
    alice.task()
    bob.task()
    numbers = "SELECT status, tasks, average_priority::float8 FROM taskmaster.get_task_statistics({})"
    assert alice.execute(numbers.format("")) == [("failed", 2, 4.5), ("pending", 1, 5.0)]
    assert alice.execute(numbers.format("%s"), project) == [("failed", 1, 6.0)]
    assert alice.execute(numbers.format("since => now() + interval '1 hour'")) == []


def test_active_tasks_and_execution_summary(alice: User, bob: User) -> None:
    task, done = alice.task("active"), alice.task("done", status="completed")
    assert alice.execute("SELECT title FROM taskmaster.active_tasks") == ["active"]
    for attempt, status in ((1, "failed"), (2, "completed")):
        alice.insert("task_executions", task_id=task, agent_type="codegen", attempt=attempt, status=status)
    summary = (
        "SELECT task_id, executions, completed, failed, last_status FROM taskmaster.task_execution_summary"
    )
    assert alice.execute(summary) == [(task, 2, 1, 1, "completed")]
    assert bob.execute(summary) == []
    with pytest.raises(psycopg.errors.CheckViolation):
        alice.insert("task_executions", task_id=done, agent_type="another")


def test_pull_requests_and_their_validations(alice: User, bob: User) -> None:
    task = alice.task()
    pull = alice.insert("pull_requests", task_id=task, repository="a/b", pr_number=7, head_sha="0123abc")
    run = alice.insert("task_executions", task_id=task, agent_type="validation-engine")
    for kind, status, score in (("tests", "passed", 90), ("lint", "failed", 40), ("types", "running", None)):
        alice.insert(
            "validations",
            task_id=task,
            pull_request_id=pull,
            execution_id=run,
            validation_type=kind,
            status=status,
            score=score,
        )
    summary = (
        "SELECT pr_number, validations, passed, failed, open, average_score::float8"
        " FROM taskmaster.pr_validation_summary"
    )
    assert alice.execute(summary) == [(7, 3, 1, 1, 1, 65.0)]
    older = "SELECT validation_type, repository FROM taskmaster.pr_validations ORDER BY 1"
    assert alice.execute(older) == [("lint", "a/b"), ("tests", "a/b"), ("types", "a/b")]
    assert bob.execute(summary) == bob.execute(older) == []
    # The same pull request of another tenant is another row.
    bob.insert("pull_requests", task_id=bob.task(), repository="a/b", pr_number=7)


# Workflows


def test_a_workflow_runs_step_by_step(alice: User, bob: User) -> None:
    steps = Jsonb({"steps": ["build", "test"]})
    flow = alice.value("SELECT (taskmaster.create_workflow('release', %s, status => 'active')).id", steps)
    run = alice.insert("workflow_executions", workflow_id=flow)
    step = "SELECT (taskmaster.update_workflow_step(%s, %s, %s, %s)).status"
    progress = (
        "SELECT status, current_step, steps_completed, percent::float8, open_steps"
        " FROM taskmaster.get_workflow_progress(%s)"
    )
    assert alice.value(progress, run) == ("initialized", None, 0, None, [])
    for name, status, after in (
        ("build", "running", ("running", "build", 0, 0.0, ["build"])),
        ("build", "completed", ("running", "build", 1, 50.0, [])),
        ("test", "running", ("running", "test", 1, 50.0, ["test"])),
        ("test", "failed", ("running", "test", 1, 50.0, [])),
        ("test", "running", ("running", "test", 1, 50.0, ["test"])),
        ("test", "completed", ("completed", "test", 2, 100.0, [])),
    ):
        assert alice.value(step, run, name, status, Jsonb({"n": 1})) == after[0]
        assert alice.value(progress, run) == after
    with pytest.raises(psycopg.errors.CheckViolation, match="is completed"):
        alice.execute(step, run, "test", "running", Jsonb({}))
    with pytest.raises(psycopg.errors.NoDataFound):
        bob.execute(step, run, "test", "running", Jsonb({}))
    assert bob.execute(progress, run) == []
    kept = (
        "SELECT retry_count, jsonb_array_length(error_log) FROM taskmaster.workflow_executions WHERE id = %s"
    )
    assert alice.value(kept, run) == (1, 1)
    events = "SELECT count(*) FROM taskmaster.workflow_events WHERE workflow_execution_id = %s AND actor = %s"
    assert alice.value(events, run, alice.name) == 6


def test_a_workflow_fails_once_it_has_no_more_retries(alice: User) -> None:
    flow = alice.insert("workflows", name="a flow", max_retries=1)
    run = alice.insert("workflow_executions", workflow_id=flow, total_steps=2)
    step = "SELECT (taskmaster.update_workflow_step(%s, 'build', 'failed')).status"
    assert [alice.value(step, run) for _ in range(2)] == ["running", "failed"]
    ended = "SELECT completed_at IS NOT NULL FROM taskmaster.workflow_executions WHERE id = %s"
    assert alice.value(ended, run) is True


# Audit

ENTRIES = (
    "SELECT action, old_values, new_values, user_id, key_id FROM taskmaster.audit_logs"
    " WHERE entity_type = %s AND entity_id = %s ORDER BY id"
)


def test_the_audit_has_what_changed_and_who_did_it(alice: User, boss: User) -> None:
    task = alice.task("before")
    alice.execute("UPDATE taskmaster.tasks SET title = 'after', priority = 7 WHERE id = %s", task)
    alice.execute("UPDATE taskmaster.tasks SET title = 'after' WHERE id = %s", task)
    boss.execute("DELETE FROM taskmaster.tasks WHERE id = %s", task)
    made, changed, gone = boss.execute(ENTRIES, "tasks", task)
    assert made[0] == "insert" and made[1] is None and made[3:] == (alice.name, KEY_ID)
    assert (made[2]["title"], made[2]["created_by"]) == ("before", alice.name)
    assert changed == (
        "update",
        {"title": "before", "priority": 5},
        {"title": "after", "priority": 7},
        alice.name,
        KEY_ID,
    )
    assert gone[0] == "delete" and gone[1]["title"] == "after" and gone[2] is None
    assert gone[3:] == (boss.name, KEY_ID)
    assert boss.value(
        "SELECT DISTINCT session_role FROM taskmaster.audit_logs WHERE user_id = %s", alice.name
    ) == ("app_rw")


def test_the_audit_masks_what_is_sensitive(alice: User, boss: User) -> None:
    nested = {
        "steps": [{"name": "deploy", "api_key": "S3CRET"}],
        "note": "see https://joe:S3CRET@example.com/",
    }
    task = alice.task(
        environment=Jsonb({"PATH": "S3CRET", "N": 1}),
        parameters=Jsonb({**nested, "Password": "S3CRET", "token": None}),
        metadata=Jsonb({"header": "Bearer S3CRET", "key": "ctm_0123456789ab_S3CRET"}),
        command="curl -H 'Authorization: Bearer S3CRET'",
    )
    alice.execute(
        "UPDATE taskmaster.tasks SET environment = %s WHERE id = %s", Jsonb({"PATH": "S3CRET2"}), task
    )
    made, changed = boss.execute(ENTRIES, "tasks", task)
    assert "S3CRET" not in str(made) + str(changed)
    assert made[2]["environment"] == {"PATH": "***", "N": "***"}
    assert made[2]["parameters"] == {
        "steps": [{"name": "deploy", "api_key": "***"}],
        "note": "***",
        "Password": "***",
        "token": None,
    }
    assert made[2]["metadata"] == {"header": "***", "key": "***"}
    assert made[2]["command"] == "***"
    assert changed[1:3] == (
        {"environment": {"PATH": "***", "N": "***"}},
        {"environment": {"PATH": "***"}},
    )
    key = f"key-{uuid4()}"
    setting = boss.insert(
        "configuration_settings", key=key, value=Jsonb("S3CRET"), is_sensitive=True, description="why"
    )
    boss.execute("UPDATE taskmaster.configurations SET value = '\"S3CRET2\"' WHERE id = %s", setting)
    boss.execute("UPDATE taskmaster.system_config SET is_sensitive = false WHERE id = %s", setting)
    boss.execute("DELETE FROM taskmaster.configuration_settings WHERE id = %s", setting)
    rows = boss.execute(ENTRIES, "configuration_settings", setting)
    assert [row[0] for row in rows] == ["insert", "update", "update", "delete"]
    assert "S3CRET" not in str(rows[:3])
    assert rows[0][2]["value"] == "***" and rows[0][2]["description"] == "why"
    assert rows[1][1:3] == ({"value": "***"}, {"value": "***"})


def test_the_audit_is_for_administrators(alice: User, boss: User, superuser: User) -> None:
    task = alice.task()
    with pytest.raises(psycopg.errors.InsufficientPrivilege):
        alice.execute("SELECT * FROM taskmaster.audit_logs")
    for statement in (
        "INSERT INTO taskmaster.audit_logs DEFAULT VALUES",
        "DELETE FROM taskmaster.audit_logs",
    ):
        for user in (alice, boss):
            with pytest.raises(psycopg.errors.InsufficientPrivilege):
                user.execute(statement)
    assert len(boss.execute(ENTRIES, "tasks", task)) == 1
    # Not through a key: the login is what is known.
    superuser.execute("UPDATE taskmaster.tasks SET title = 'changed' WHERE id = %s", task)
    assert boss.execute(ENTRIES, "tasks", task)[1][3:] == (None, None)


def test_events_are_only_ever_added(alice: User, boss: User) -> None:
    task = alice.task()
    event = alice.insert("workflow_events", task_id=task, event_type="noted")
    with pytest.raises(psycopg.errors.InsufficientPrivilege):
        alice.insert("workflow_events", task_id=task, event_type="noted", actor="somebody else")
    for user in (alice, boss):
        for statement in (
            "UPDATE taskmaster.workflow_events SET actor = 'x'",
            "DELETE FROM taskmaster.workflow_events",
        ):
            with pytest.raises(psycopg.errors.InsufficientPrivilege):
                user.execute(f"{statement} WHERE id = %s", event)


# Search


def test_search_finds_text_tags_and_contexts(alice: User, bob: User) -> None:
    found = alice.task("Fix the ZEPPELIN page", tags=Jsonb(["a", "b"]), metadata=Jsonb({"team": {"id": 7}}))
    hidden = alice.task("another", description="100% of the zeppelins_x", status="completed")
    alice.insert(
        "task_contexts", task_id=found, context_type="files", content=Jsonb({"files": ["a.py", "b.py"]})
    )
    foreign = bob.task("A zeppelin of bob's", tags=Jsonb(["a"]), metadata=Jsonb({"team": {"id": 7}}))
    bob.insert("task_contexts", task_id=foreign, context_type="files", content=Jsonb({"files": ["a.py"]}))
    search = "SELECT id FROM taskmaster.search_tasks(%s, %s)"
    assert set(alice.execute(search, "zeppelin", None)) == {found, hidden}
    assert alice.execute(search, "zeppelin", ["completed"]) == [hidden]
    assert alice.execute(search, "100% of", None) == alice.execute(search, "ns_x", None) == [hidden]
    assert alice.execute(search, "1%f", None) == alice.execute(search, "z_ppelin", None) == []
    assert alice.execute(search, "\\zeppelin", None) == []
    for call in ("search_tasks(%s)", "search_workflows(%s)"):
        for text in ("", "ab", None, "x" * 201):
            with pytest.raises(psycopg.errors.InvalidParameterValue):
                alice.execute(f"SELECT * FROM taskmaster.{call}", text)
    tags = "SELECT id FROM taskmaster.search_tasks_by_tags(%s, %s)"
    assert alice.execute(tags, Jsonb(["a"]), Jsonb({})) == [found]
    assert alice.execute(tags, Jsonb([]), Jsonb({"team": {"id": 7}})) == [found]
    assert alice.execute(tags, Jsonb(["a", "c"]), Jsonb({})) == []
    contexts = "SELECT task_id FROM taskmaster.search_task_contexts(%s)"
    assert alice.execute(contexts, Jsonb({"files": ["a.py"]})) == [found]
    assert bob.execute(contexts, Jsonb({"files": ["a.py"]})) == [foreign]
    alice.insert("workflows", name="Zeppelin release")
    assert alice.execute("SELECT name FROM taskmaster.search_workflows('zepp')") == ["Zeppelin release"]
    assert bob.execute("SELECT name FROM taskmaster.search_workflows('zepp')") == []


def test_search_shows_what_the_policies_show(make_user: MakeUser, alice: User, bob: User, boss: User) -> None:
    word = uuid4().hex
    project = alice.insert("projects", name="a project")
    bob.task("makes bob known")
    shared = alice.task(f"{word} for bob", assigned_to=bob.name)
    alice.task(f"{word} in a project", project_id=project)
    bob.task(f"{word} of bob")
    search = f"SELECT id FROM taskmaster.search_tasks('{word}') ORDER BY id"
    direct = f"SELECT id FROM taskmaster.tasks WHERE title LIKE '{word}%%' ORDER BY id"
    for user, count in ((alice, 2), (bob, 2), (boss, 3)):
        assert user.execute(search) == user.execute(direct.replace("%%", "%"))
        assert len(user.execute(search)) == count
    assert shared in bob.execute(search)
    for stranger in (
        make_user(),
        make_user("write:tasks", name=alice.name),
        make_user("admin", name=alice.name),
    ):
        assert stranger.execute(search) == []
    assert len(make_user("read:tasks", role="app_ro", name=alice.name).execute(search)) == 2


def test_dates_are_kept_in_order(alice: User) -> None:
    task = alice.task(status="in_progress", started_at="2099-01-01T00:00:00Z")
    change(alice, task, "completed")
    took = alice.value("SELECT completed_at - started_at FROM taskmaster.tasks WHERE id = %s", task)
    assert took == timedelta(0)
