"""Fill the schema taskmaster for `tests.bench.tasks`: many users, each of whom sees a few thousand tasks."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import psycopg
from rich.progress import track

TASKS_PER_USER = 2500  # of their own; as many as a fifth of that are assigned to them by others
BATCH = 20_000

# Words for titles: a common one is in a twentieth of them, a rare one in a few hundred of a million.
_WORDS = (
    "login,page,search,index,cache,queue,worker,report,export,import,billing,invoice,mail,upload,parser,router,"
    "session,token,metric,backup"
)

_USERS = """
INSERT INTO taskmaster.users (user_id) SELECT taskmaster_bench_user(u) FROM generate_series(0, {users} - 1) AS u
"""
_PROJECTS = """
INSERT INTO taskmaster.projects (id, name, owner_id)
SELECT md5('project ' || n)::uuid, 'Project ' || n, taskmaster_bench_user(n / 5)
FROM generate_series(0, {users} * 5 - 1) AS n
"""
_WORKFLOWS = """
INSERT INTO taskmaster.workflows (id, name, status, definition, project_id, created_by)
SELECT md5('workflow ' || n)::uuid, 'Release ' || n, 'active', '{"steps": ["build", "test", "deploy"]}',
       md5('project ' || n)::uuid, taskmaster_bench_user(n / 5)
FROM generate_series(0, {users} * 5 - 1) AS n
"""
# Task n belongs to user n % users; every tenth is the parent of the nine that the user made next.
_TASKS = """
INSERT INTO taskmaster.tasks (id, title, description, type, status, priority, tags, metadata, project_id,
    parent_task_id, created_by, assigned_to, started_at, completed_at, created_at)
SELECT md5('task ' || n)::uuid,
       initcap(words[1 + hash % 20]) || ' ' || words[1 + hash / 20 % 20] || ' ' || n
           || CASE WHEN hash % 3000 = 7 THEN ' zeppelin' ELSE '' END,
       'About ' || words[1 + hash / 400 % 20] || ' and ' || words[1 + hash / 8000 % 20] || ', found in ' || hash,
       (ARRAY['bug', 'feature', 'docs', 'review'])[1 + hash % 4], status, hash / 7 % 11,
       jsonb_build_array('area-' || hash % 50, 'sprint-' || n / 2000),
       jsonb_build_object('ticket', n, 'team', hash % 40),
       CASE WHEN hash % 2 = 0 THEN md5('project ' || (n % {users}) * 5 + hash % 5)::uuid END,
       CASE WHEN turn % 10 <> 0 THEN md5('task ' || n - (turn % 10) * {users})::uuid END,
       taskmaster_bench_user(n % {users}),
       CASE WHEN hash % 5 = 0 THEN taskmaster_bench_user(hash / 5 % {users}) END,
       CASE WHEN status <> 'pending' THEN created_at + interval '1 hour' END,
       CASE WHEN status IN ('completed', 'failed', 'cancelled') THEN created_at + interval '5 hours' END, created_at
FROM (SELECT n, n / {users} AS turn, abs(hashint4(n)) AS hash, string_to_array('{words}', ',') AS words,
             now() - interval '300 days' * (1 - n / {tasks}::float8) AS created_at,
             CASE WHEN abs(hashint4(n + 1)) % 100 < 20 THEN 'pending'
                  WHEN abs(hashint4(n + 1)) % 100 < 25 THEN 'in_progress'
                  WHEN abs(hashint4(n + 1)) % 100 < 85 THEN 'completed'
                  WHEN abs(hashint4(n + 1)) % 100 < 93 THEN 'failed' ELSE 'cancelled' END AS status
      FROM generate_series({first}, {last}) AS n) AS numbered
"""
_CHILDREN = (
    """
INSERT INTO taskmaster.task_executions (task_id, agent_type, attempt, status, started_at, completed_at, created_at)
SELECT md5('task ' || n)::uuid, 'codegen', a, CASE WHEN a = 1 THEN 'failed' ELSE 'completed' END, now(), now(), now()
FROM generate_series({first}, {last}) AS n, generate_series(1, 1 + n % 2) AS a WHERE n % 4 < 2
""",
    """
INSERT INTO taskmaster.task_dependencies (task_id, depends_on_id, satisfied_at)
SELECT md5('task ' || n)::uuid, md5('task ' || n - {users})::uuid, CASE WHEN n % 3 = 0 THEN now() END
FROM generate_series(greatest({first}, {users}), {last}) AS n WHERE n % 5 = 0
""",
    """
INSERT INTO taskmaster.task_contexts (task_id, context_type, content)
SELECT md5('task ' || n)::uuid, 'files', jsonb_build_object('file', 'src/module' || n % 5000 || '.py', 'line', n % 97)
FROM generate_series({first}, {last}) AS n WHERE n % 5 = 1
""",
    """
INSERT INTO taskmaster.workflow_events (task_id, event_type, actor, created_at)
SELECT md5('task ' || n)::uuid, 'task_status_changed', taskmaster_bench_user(n % {users}),
       now() - interval '60 days' * (1 - n / {tasks}::float8)
FROM generate_series({first}, {last}) AS n WHERE n % 2 = 0
""",
    """
INSERT INTO taskmaster.pull_requests (id, task_id, repository, pr_number, title)
SELECT md5('pull request ' || n)::uuid, md5('task ' || n)::uuid, 'example/shop', n + 1, 'Change ' || n
FROM generate_series({first}, {last}) AS n WHERE n % 20 = 3
""",
    """
INSERT INTO taskmaster.validations (task_id, pull_request_id, validation_type, status, score)
SELECT md5('task ' || n)::uuid, md5('pull request ' || n)::uuid, 'tests', 'passed', n % 101
FROM generate_series({first}, {last}) AS n WHERE n % 20 = 3
""",
)
_EXECUTIONS = """
WITH made AS (
    INSERT INTO taskmaster.workflow_executions (id, workflow_id, status, total_steps, steps_completed, started_at)
    SELECT md5('run ' || n)::uuid, md5('workflow ' || n % ({users} * 5))::uuid, 'running', 3, 1, now()
    FROM generate_series(0, {users} * 50 - 1) AS n RETURNING id)
INSERT INTO taskmaster.workflow_states (workflow_execution_id, step, status, entered_at, left_at)
SELECT id, step, CASE step WHEN 'build' THEN 'completed' ELSE 'running' END, now(),
       CASE step WHEN 'build' THEN now() END
FROM made, unnest('{build,test}'::text[]) AS step
"""
_OTHERS = (
    """
INSERT INTO taskmaster.error_logs (task_id, error_type, error_message)
SELECT md5('task ' || n)::uuid, 'network', 'reset by peer' FROM generate_series(1, 20000) AS n
""",
    """
INSERT INTO taskmaster.system_metrics (metric_name, metric_value, component, recorded_at)
SELECT 'metric_' || n % 20, n, 'scheduler', now() - interval '1 second' * n FROM generate_series(1, 50000) AS n
""",
)


@dataclass(frozen=True)
class Size:
    """How much there is; `user` is the number of the one who is measured."""

    tasks: int
    user: int = 0

    @property
    def users(self) -> int:
        """Return how many users share the tasks."""
        return max(2, self.tasks // TASKS_PER_USER)


def user_name(number: int) -> str:
    """Return what `taskmaster_bench_user` returns: number 0 is the one whose key the rig has."""
    return "bench@example.com" if number == 0 else f"user{number}@example.com"


def load(superuser: str, size: Size) -> None:
    """Insert the rows in batches, with progress; triggers stand still meanwhile. Nothing if they are there."""
    with psycopg.connect(superuser, autocommit=True) as connection:
        if connection.execute("SELECT FROM taskmaster.tasks LIMIT 1").fetchone() is not None:
            return
        # The triggers would check and audit a million rows one by one.
        connection.execute("SET session_replication_role = replica")
        _user_function(connection)
        values = {"users": size.users, "tasks": size.tasks, "words": _WORDS}
        for statement in (_USERS, _PROJECTS, _WORKFLOWS, _EXECUTIONS, *_OTHERS):
            connection.execute(_filled(statement, values))
        batches = list(_batches(size.tasks))
        for first, last in track(batches, description=f"{size.tasks:,} tasks"):
            span = {**values, "first": first, "last": last}
            for statement in (_TASKS, *_CHILDREN):
                connection.execute(_filled(statement, span))
        connection.execute("DROP FUNCTION public.taskmaster_bench_user(integer)")
        connection.execute("VACUUM (ANALYZE)")
        connection.execute("SELECT taskmaster.refresh_materialized_views()")
        connection.execute("CHECKPOINT")


def _user_function(connection: psycopg.Connection[tuple[object, ...]]) -> None:
    connection.execute(
        "CREATE FUNCTION public.taskmaster_bench_user(n integer) RETURNS text LANGUAGE sql IMMUTABLE AS"
        " $$ SELECT CASE n WHEN 0 THEN 'bench@example.com' ELSE 'user' || n || '@example.com' END $$"
    )


def _filled(statement: str, values: Mapping[str, object]) -> bytes:
    """Return the statement with its {names} filled in: percent signs and braces of SQL stay as they are."""
    for name, value in values.items():
        statement = statement.replace(f"{{{name}}}", str(value))
    return statement.encode()


def _batches(tasks: int) -> Iterator[tuple[int, int]]:
    for first in range(0, tasks, BATCH):
        yield first, min(first + BATCH, tasks) - 1
