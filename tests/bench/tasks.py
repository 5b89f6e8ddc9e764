"""Measure the schema taskmaster with a million tasks: python -m tests.bench.tasks --help.

Each query of sql/README.md runs through pgsluice as a user who sees 3,000 of them; the table names the indexes
that it scanned, and what it took.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import re
import subprocess
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median, quantiles
from tempfile import TemporaryDirectory
from typing import Any

import psycopg
from rich.console import Console
from rich.table import Table

from proxy.embedded import Cluster, bundled_bin_dir
from proxy.setup import setup
from tests.bench import rigs
from tests.bench.rigs import DATABASE, Rig
from tests.bench.taskdata import Size, load

TARGET_MS = 100.0
ROUNDS = 3
_SETTINGS = {
    "shared_buffers": "1GB",
    "max_wal_size": "8GB",
    "work_mem": "16MB",
    "maintenance_work_mem": "512MB",
}
_LIST = "id, title, status, priority, created_at"
# Task 10 * users belongs to user 0 and has nine children; {users} is filled in.
_TASK = "md5('task ' || {users} * 10)::uuid"

USER_QUERIES = {
    "a task": f"SELECT * FROM taskmaster.tasks WHERE id = {_TASK}",
    "active tasks, most urgent 50": (
        f"SELECT {_LIST} FROM taskmaster.active_tasks ORDER BY priority DESC, created_at LIMIT 50"
    ),
    "pending tasks, most urgent 50": (
        f"SELECT {_LIST} FROM taskmaster.tasks WHERE status = 'pending' ORDER BY priority DESC, created_at LIMIT 50"
    ),
    "failed tasks, newest 50": (
        f"SELECT {_LIST} FROM taskmaster.tasks WHERE status = 'failed' ORDER BY created_at DESC LIMIT 50"
    ),
    "newest 50 tasks": f"SELECT {_LIST} FROM taskmaster.tasks ORDER BY created_at DESC LIMIT 50",
    "all 3,000 tasks": f"SELECT {_LIST} FROM taskmaster.tasks",
    "tasks by status, counted": "SELECT status, count(*) FROM taskmaster.tasks GROUP BY status",
    "tasks of a project": (
        f"SELECT {_LIST} FROM taskmaster.tasks WHERE project_id = md5('project 2')::uuid"
        " ORDER BY priority DESC, created_at LIMIT 50"
    ),
    "tasks assigned to me": (
        f"SELECT {_LIST} FROM taskmaster.tasks WHERE assigned_to = 'bench@example.com' AND status = 'pending'"
    ),
    "get_runnable_tasks()": "SELECT * FROM taskmaster.get_runnable_tasks()",
    "get_task_hierarchy(task)": f"SELECT * FROM taskmaster.get_task_hierarchy({_TASK})",
    "calculate_task_completion(task)": f"SELECT taskmaster.calculate_task_completion({_TASK})",
    "get_task_statistics()": "SELECT * FROM taskmaster.get_task_statistics()",
    "get_task_statistics(project)": (
        "SELECT * FROM taskmaster.get_task_statistics(project_id => md5('project 2')::uuid)"
    ),
    "search_tasks, a rare word": "SELECT * FROM taskmaster.search_tasks('zeppelin')",
    "search_tasks, a common word": "SELECT * FROM taskmaster.search_tasks('billing')",
    "search_tasks_by_tags": "SELECT * FROM taskmaster.search_tasks_by_tags('[\"area-7\"]')",
    "search_task_contexts": ('SELECT * FROM taskmaster.search_task_contexts(\'{"file": "src/module1.py"}\')'),
    "search_workflows": "SELECT * FROM taskmaster.search_workflows('Release 3')",
    "contexts of a task": f"SELECT * FROM taskmaster.task_contexts WHERE task_id = {_TASK}",
    "what a task waits for": f"SELECT * FROM taskmaster.task_dependencies WHERE task_id = {_TASK}",
    "task_execution_summary of a task": (
        f"SELECT * FROM taskmaster.task_execution_summary WHERE task_id = {_TASK}"
    ),
    "task_execution_summary, all": "SELECT * FROM taskmaster.task_execution_summary",
    "pr_validation_summary, all": "SELECT * FROM taskmaster.pr_validation_summary",
    "recent_activity, newest 50": (
        "SELECT * FROM taskmaster.recent_activity ORDER BY created_at DESC LIMIT 50"
    ),
    "get_workflow_progress(run)": "SELECT * FROM taskmaster.get_workflow_progress(md5('run 0')::uuid)",
    "performance_monitoring": "SELECT * FROM taskmaster.performance_monitoring",
}
ADMIN_QUERIES = {
    "admin: tasks by day and status": (
        "SELECT day, status, sum(tasks) FROM taskmaster.task_statistics_daily GROUP BY 1, 2"
    ),
    "admin: access_statistics_hourly": "SELECT * FROM taskmaster.access_statistics_hourly",
    "admin: active tasks, most urgent 50": USER_QUERIES["active tasks, most urgent 50"],
    "admin: newest 50 tasks": USER_QUERIES["newest 50 tasks"],
    "admin: get_runnable_tasks()": USER_QUERIES["get_runnable_tasks()"],
    "admin: search_tasks, a rare word": USER_QUERIES["search_tasks, a rare word"],
    "admin: search_tasks, a common word": USER_QUERIES["search_tasks, a common word"],
    "admin: search_tasks_by_tags": USER_QUERIES["search_tasks_by_tags"],
    "admin: search_tasks_by_tags, a ticket": (
        "SELECT * FROM taskmaster.search_tasks_by_tags('[]', '{\"ticket\": 4711}')"
    ),
    "admin: error_summary": "SELECT * FROM taskmaster.error_summary",
}
# Partitions of a day count as their table.
_PARTITION = re.compile(r"_\d{8}(?=_|$)")
# Scans that this transaction, or an earlier one that wasn't reported yet, began.
_SCANS = """
    SELECT c.relname, c.relkind, pg_catalog.pg_stat_get_xact_numscans(c.oid)
    FROM pg_catalog.pg_class c
    WHERE c.relnamespace = 'taskmaster'::regnamespace AND c.relkind IN ('i', 'r', 'm')
"""


@dataclass(frozen=True)
class Measured:
    """One query: rows of its result, indexes and whole tables that it scanned, milliseconds as the client has them."""

    query: str
    rows: int
    indexes: list[str]
    tables: list[str]
    p50_ms: float
    p95_ms: float


@dataclass(frozen=True)
class Throughput:
    """A protected query in transactions per second, with the policies and without them."""

    query: str
    protected: float
    bare: float


def main() -> None:
    """Load, measure, print; exits with 1 if a query of users has its p95 over the target."""
    parser = argparse.ArgumentParser(prog="python -m tests.bench.tasks", description=__doc__)
    parser.add_argument("--tasks", type=int, default=1_000_000, help="how many tasks there are (1000000)")
    parser.add_argument("--runs", type=int, default=100, help="how often each query runs (100)")
    parser.add_argument("--seconds", type=int, default=5, help="for each of 12 runs of pgbench (5)")
    parser.add_argument("--only", default="", help="queries whose name has this")
    parser.add_argument("--data", type=Path, help="keep the data here, and use what is there")
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.add_argument("--readme", action="store_true", help="print Markdown")
    options = parser.parse_args()
    size = Size(options.tasks)
    with _stage(options.data, size) as (user, admin, superuser):
        found = [
            measured
            for rig, queries in ((user, USER_QUERIES), (admin, ADMIN_QUERIES))
            for measured in _measure(rig, queries, size, options.runs, options.only)
        ]
        throughput = [] if options.only else _throughput(user, superuser, size, options.seconds)
        machine = (
            f"{_processor()}, {os.cpu_count()} processors; {user.version}; PostgreSQL {_version(superuser)}"
        )
    if options.json:
        results = {"machine": machine, "tasks": size.tasks, "queries": [asdict(each) for each in found]}
        print(json.dumps({**results, "throughput": [asdict(each) for each in throughput]}, indent=2))
    elif options.readme:
        _print_markdown(found, throughput, machine)
    else:
        _print(found, throughput, machine)
    if slow := [each.query for each in found if each.p95_ms > TARGET_MS]:
        raise SystemExit(f"p95 over {TARGET_MS:.0f} ms: {', '.join(slow)}")


@contextmanager
def _stage(data: Path | None, size: Size) -> Iterator[tuple[Rig, Rig, str]]:
    """Give the user's and the administrator's way through pgsluice, and the superuser's connection URI."""
    with ExitStack() as stack:
        directory = data or Path(stack.enter_context(TemporaryDirectory(prefix="pgsluice-tasks-")))
        directory.mkdir(parents=True, exist_ok=True)
        directory.chmod(0o755)
        cluster = stack.enter_context(Cluster(directory / "postgresql", replicas=0, settings=_SETTINGS))
        logins = ("sluice_control", "app_rw", "app_ro", "app_admin")
        superuser = cluster.primary.dsn(DATABASE)
        result = setup(superuser, DATABASE, ("core", "taskmaster"), {login: login for login in logins})
        load(superuser, size)
        scratch = Path(stack.enter_context(TemporaryDirectory(prefix="pgsluice-tasks-")))
        rig = stack.enter_context(rigs.pgsluice(cluster, scratch, dict(result.passwords), 8))
        with psycopg.connect(superuser) as connection:
            row = connection.execute(
                "SELECT sluice.generate_api_key('benchmark', 'boss@example.com',"
                ' \'["admin", "read:tasks"]\')'
            ).fetchone()
        assert row is not None
        key = str(row[0]["api_key"])
        # A second login of the same proxy; the first one's process is measured, if any.
        admin = Rig("pgsluice", rig.port, key.rpartition("_")[0], key, rig.process, rig.version)
        yield rig, admin, superuser


def _measure(rig: Rig, queries: dict[str, str], size: Size, runs: int, only: str) -> Iterator[Measured]:
    chosen = {name: text for name, text in queries.items() if only in name}
    if not chosen:
        return
    with rig.connect() as connection:
        if queries is ADMIN_QUERIES:
            connection.execute("SET sluice.pool = 'admin'")
        for name, text in chosen.items():
            query = text.replace("{users}", str(size.users)).encode()
            indexes, tables, rows = _scanned(connection, query)
            times: list[float] = []
            for _ in range(runs):
                started = time.perf_counter()
                connection.execute(query).fetchall()
                times.append((time.perf_counter() - started) * 1000)
            cuts = quantiles(times, n=20)
            yield Measured(name, rows, indexes, tables, round(cuts[9], 2), round(cuts[18], 2))


def _scanned(
    connection: psycopg.Connection[tuple[Any, ...]], query: bytes
) -> tuple[list[str], list[str], int]:
    """Run a query; return the indexes and the tables that it scanned, also within functions, and its rows."""
    with connection.transaction():
        before = connection.execute(_SCANS).fetchall()
        rows = len(connection.execute(query).fetchall())
        after = connection.execute(_SCANS).fetchall()
    scanned = {(_PARTITION.sub("", name), kind) for name, kind, _ in set(after) - set(before)}
    indexes = sorted(name for name, kind in scanned if kind == "i")
    return indexes, sorted(name for name, kind in scanned if kind != "i"), rows


def _throughput(rig: Rig, superuser: str, size: Size, seconds: int) -> list[Throughput]:
    """Measure queries of the user's own rows with pgbench, then again with the policies switched off."""
    own = f"\\set n random(0, {size.tasks // size.users - 1}) * {size.users}\n"
    scripts = {
        "a task of one's own": own
        + "SELECT id, title, status FROM taskmaster.tasks WHERE id = md5('task ' || :n)::uuid;",
        "its executions": own
        + "SELECT id, status FROM taskmaster.task_executions WHERE task_id = md5('task ' || :n)::uuid;",
    }
    runs: dict[tuple[str, bool], list[float]] = {}
    with psycopg.connect(superuser, autocommit=True) as connection, TemporaryDirectory() as directory:
        try:
            # In turns: a machine is not the same machine a minute later.
            for protected in (True, False) * ROUNDS:
                _switch(connection, "ENABLE" if protected else "DISABLE")
                for name, text in scripts.items():
                    run = _pgbench(rig, text, Path(directory) / "script.sql", seconds)
                    runs.setdefault((name, protected), []).append(run)
        finally:
            _switch(connection, "ENABLE")
    return [
        Throughput(name, round(median(runs[name, True])), round(median(runs[name, False])))
        for name in scripts
    ]


def _switch(connection: psycopg.Connection[tuple[Any, ...]], how: str) -> None:
    for table in ("users", "projects", "tasks", "task_executions"):
        connection.execute(f"ALTER TABLE taskmaster.{table} {how} ROW LEVEL SECURITY".encode())


def _pgbench(rig: Rig, text: str, script: Path, seconds: int) -> float:
    script.write_text(text + "\n")
    command = [str(bundled_bin_dir() / "pgbench"), "-n", "-M", "prepared", "-c", "8", "-T", str(seconds)]
    done = subprocess.run(
        [*command, "-f", str(script)], capture_output=True, text=True, env=rig.environment()
    )
    tps = re.search(r"^tps = ([\d.]+)", done.stdout, re.MULTILINE)
    if done.returncode or tps is None:
        raise SystemExit(f"pgbench failed: {done.stdout}{done.stderr[-4000:]}")
    return float(tps[1])


def _print(found: Sequence[Measured], throughput: Sequence[Throughput], machine: str) -> None:
    console = Console(width=150)
    console.print(machine)
    table = Table("query", "rows", "indexes scanned; [tables scanned whole]", "p50 ms", "p95 ms")
    for each in found:
        scanned = ", ".join([*each.indexes, *(f"\\[{name}]" for name in each.tables)])
        table.add_row(each.query, f"{each.rows:,}", scanned, f"{each.p50_ms:.1f}", f"{each.p95_ms:.1f}")
    console.print(table)
    if throughput:
        table = Table("8 clients, prepared", "tps", "tps without policies", "of it")
        for run in throughput:
            share = run.protected / run.bare
            table.add_row(run.query, f"{run.protected:,.0f}", f"{run.bare:,.0f}", f"{share:.0%}")
        console.print(table)


def _print_markdown(found: Sequence[Measured], throughput: Sequence[Throughput], machine: str) -> None:
    print(f"{machine}\n")
    print(
        "| query | rows | indexes scanned; *tables scanned whole* | p50 ms | p95 ms |\n|---|--:|---|--:|--:|"
    )
    for each in found:
        scanned = ", ".join([*each.indexes, *(f"*{name}*" for name in each.tables)])
        print(f"| {each.query} | {each.rows:,} | {scanned} | {each.p50_ms:.1f} | {each.p95_ms:.1f} |")
    print("\n| 8 clients, prepared | tps | without policies | of it |\n|---|--:|--:|--:|")
    for run in throughput:
        print(f"| {run.query} | {run.protected:,} | {run.bare:,} | {run.protected / run.bare:.0%} |")


def _version(superuser: str) -> str:
    with psycopg.connect(superuser) as connection:
        row = connection.execute("SHOW server_version").fetchone()
    return str(row[0]) if row else ""


def _processor() -> str:
    try:
        found = re.search(r"^model name\s*: (.*)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
    except OSError:
        found = None
    return found[1] if found else platform.processor()


if __name__ == "__main__":
    main()
