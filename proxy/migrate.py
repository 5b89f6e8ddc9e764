"""Apply the bundled SQL: plain `.sql` files, each with its rollback, run by Alembic.

A migration is `sql/BRANCH/NNNN_name.sql` with `NNNN_name.rollback.sql` beside it; its revision is
`BRANCH_NNNN`. Within a branch the numbers give the order; a first line `-- depends: BRANCH_NNNN` ties it to
another branch.

Each migration, Alembic's version row and the file's checksum commit in one transaction, on one connection,
under an advisory lock. Alembic keeps the graph and the versions; its revisions are made from the files in
memory, so nothing is written beside them.
"""

from __future__ import annotations

import hashlib
import io
import json
import re
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Final, cast

import psycopg
from alembic.runtime.migration import MigrationContext, RevisionStep
from alembic.script import Script, ScriptDirectory
from alembic.util import CommandError
from pglast import split
from pglast.parser import ParseError
from sqlalchemy import Connection, create_engine
from sqlalchemy.exc import DBAPIError
from sqlalchemy.pool import NullPool

from proxy.errors import SluiceError
from proxy.resources import sql_directory

Say = Callable[[str], None]
# From the versions that a database has to the steps that it needs.
Steps = Callable[[Sequence[str]], list[RevisionStep]]
# Runs a migration forward (True) or back (False).
Execute = Callable[["Migration", bool], None]

_VERSIONS: Final = "schema_version"
_CHECKSUMS: Final = "sluice.schema_checksums"
_SCHEMA: Final = "CREATE SCHEMA sluice"
_DONE: Final = {True: "applied", False: "rolled back"}
_LOCK: Final = 0x706773_6C756963  # "pgsluic": any number that others don't use
_FILE_NAME: Final = re.compile(r"([a-z]+)/(\d{4})_([0-9a-z_]+)\.sql")
_DEPENDS: Final = re.compile(r"-- depends: ([a-z]+_\d{4})\s*\n")
# A filtered statement must fail, not touch nothing; and names may mean nothing but PostgreSQL's own.
_SETTINGS: Final = "-c row_security=off -c search_path=pg_catalog,pg_temp -c client_min_messages=notice"


class MigrationError(SluiceError):
    """A migration that failed or can't be run; the message names its file and line where there is one."""


@dataclass(frozen=True)
class Migration:
    """One `.sql` file and its rollback."""

    branch: str
    number: int
    name: str
    path: Path

    @property
    def revision(self) -> str:
        """Return the version that `rollback` takes and `status` shows."""
        return f"{self.branch}_{self.number:04d}"

    @property
    def rollback_path(self) -> Path:
        """Return the file that undoes it."""
        return self.path.with_suffix(".rollback.sql")

    def sha256(self) -> str:
        """Return the hexadecimal checksum of the file as it is now."""
        return hashlib.sha256(self.path.read_bytes()).hexdigest()

    def scripts(self, forward: bool) -> tuple[Path, str]:
        """Return the file to run, and the statement that keeps the checksums in step with it."""
        if not forward:
            return self.rollback_path, f"DELETE FROM {_CHECKSUMS} WHERE revision = '{self.revision}'"
        # None of the three can hold a quote: _find sees to it.
        values = f"'{self.revision}', '{self.path.name}', '{self.sha256()}'"
        return self.path, f"INSERT INTO {_CHECKSUMS} (revision, file, sha256) VALUES ({values})"


@dataclass(frozen=True)
class Status:
    """What is known of one migration; `applied_at` is None while it is pending."""

    revision: str
    name: str
    applied_at: datetime | None
    problem: str

    def __str__(self) -> str:
        when = f"{self.applied_at:%Y-%m-%d %H:%M:%S%z}" if self.applied_at else "pending"
        return f"{self.revision:16} {self.name:24} {when} {self.problem}".rstrip()


class Migrations(ScriptDirectory):
    """Alembic's graph of revisions, made from a directory of plain SQL files."""

    def __init__(self, directory: Path) -> None:
        self.migrations: Final = {found.revision: found for found in _find(directory)}
        super().__init__(directory)

    def _load_revisions(self) -> Iterator[Script]:
        previous: dict[str, str] = {}
        for migration in self.migrations.values():
            depends = _DEPENDS.match(migration.path.read_text())
            module = ModuleType(migration.revision, migration.name.replace("_", " "))
            vars(module).update(
                revision=migration.revision,
                down_revision=previous.get(migration.branch),
                branch_labels=None if migration.branch in previous else (migration.branch,),
                depends_on=depends[1] if depends else None,
                **_steps(migration),
            )
            previous[migration.branch] = migration.revision
            yield Script(module, migration.revision, migration.path)

    def upgrade(self, branches: Sequence[str], heads: Sequence[str]) -> list[RevisionStep]:
        """Return the steps from `heads` to the newest migration of each of `branches`."""
        steps: dict[str, RevisionStep] = {}
        for branch in branches:
            for step in self._upgrade_revs(f"{branch}@head", _as_revision(heads)):
                steps.setdefault(step.revision.revision, step)
        return list(steps.values())

    def downgrade(self, version: str, heads: Sequence[str]) -> list[RevisionStep]:
        """Return the steps from `heads` down to `version`, which stays; "base" leaves nothing."""
        return self._downgrade_revs(version, _as_revision(heads)) if heads else []


def up(
    dsn: str, branches: Sequence[str] = ("core",), *, directory: Path | None = None, say: Say = print
) -> list[str]:
    """Apply what is missing of `branches`, and what they depend on; return the revisions applied.

    Raises MigrationError; what was applied before the failing migration stays.
    """
    migrations = Migrations(directory or sql_directory())
    with _locked(dsn, say) as connection:
        if connection.exec_driver_sql("SELECT to_regnamespace('sluice')").scalar() is None:
            connection.exec_driver_sql(_SCHEMA)
        connection.commit()
        return _run(migrations, connection, partial(migrations.upgrade, branches), say)


def rollback(dsn: str, version: str, *, directory: Path | None = None, say: Say = print) -> list[str]:
    """Undo what was applied after `version`, which stays; "base" undoes everything. Return what was undone.

    What depends on an undone migration is undone before it. Raises MigrationError.
    """
    migrations = Migrations(directory or sql_directory())
    with _locked(dsn, say) as connection:
        undone: list[str] = []
        if _heads(connection):
            undone = _run(migrations, connection, partial(migrations.downgrade, version), say)
        if not _heads(connection):
            connection.exec_driver_sql(f"DROP TABLE IF EXISTS sluice.{_VERSIONS}")
            connection.exec_driver_sql("DROP SCHEMA IF EXISTS sluice")
            connection.commit()
        return undone


def plan(
    dsn: str, branches: Sequence[str] = ("core",), version: str = "", *, directory: Path | None = None
) -> str:
    """Return the SQL that `up`, or with `version` `rollback`, would run now; change nothing."""
    migrations = Migrations(directory or sql_directory())
    with _connection(dsn, _quiet) as connection:
        heads = _heads(connection)
    text = io.StringIO()
    offline = {"as_sql": True, "output_buffer": text, "starting_rev": _as_revision(heads)}
    steps = partial(migrations.downgrade, version) if version else partial(migrations.upgrade, branches)
    context = _context(None, migrations, steps, **offline)

    def write(migration: Migration, forward: bool) -> None:
        file, bookkeeping = migration.scripts(forward)
        script = f"{file.read_text()}\nRESET ROLE;\n"
        context.impl.static_output(f"{script}{bookkeeping};" if forward else f"{bookkeeping};\n\n{script}")

    with _refusals():
        context.run_migrations(execute=write)
    sql = text.getvalue()
    return sql if heads or not sql else f"{_SCHEMA};\n\n{sql}"


def status(dsn: str, *, directory: Path | None = None) -> list[Status]:
    """Return every migration, in order, with what is wrong with it since it was applied."""
    migrations = Migrations(directory or sql_directory()).migrations
    with _connection(dsn, _quiet) as connection:
        recorded = _recorded(connection)
    found: list[Status] = []
    for migration in migrations.values():
        sha256, applied_at = recorded.pop(migration.revision, ("", None))
        changed = applied_at is not None and sha256 != migration.sha256()
        problem = "changed since it was applied" if changed else ""
        found.append(Status(migration.revision, migration.name, applied_at, problem))
    return found + [
        Status(revision, "", applied_at, "applied, but its file is missing")
        for revision, (_, applied_at) in recorded.items()
    ]


def validate(dsn: str, *, directory: Path | None = None) -> list[str]:
    """Return how the files differ from what was applied, one line each; nothing if all is well."""
    found = status(dsn, directory=directory)
    return [f"{each.revision}: {each.problem}" for each in found if each.problem]


def create(name: str, branch: str, *, directory: Path | None = None) -> tuple[Path, Path]:
    """Make the two files of a new last migration of `branch`; return their paths.

    Raises MigrationError for a name without letters or digits.
    """
    slug = re.sub(r"[^0-9a-z]+", "_", name.lower()).strip("_")
    if not slug:
        raise MigrationError(f"a migration's name needs letters or digits, not {name!r}")
    folder = (directory or sql_directory()) / branch
    folder.mkdir(exist_ok=True)
    number = 1 + max((found.number for found in _find(folder.parent) if found.branch == branch), default=0)
    path = folder / f"{number:04d}_{slug}.sql"
    made = path, path.with_suffix(".rollback.sql")
    for file, text in zip(made, (name, f"Undo: {name}"), strict=True):
        file.write_text(f"-- {text}\n\nSET LOCAL ROLE sluice_owner;\n")
    return made


def run(
    action: str,
    dsn: str,
    *,
    branches: Sequence[str] = ("core",),
    version: str = "",
    name: str = "",
    dry_run: bool = False,
    as_json: bool = False,
) -> int:
    """Do what `pgsluice migrate ACTION` asks for, print it, and return the exit code."""
    say = _quiet if as_json else print
    actions: dict[str, Callable[[], Sequence[object]]] = {
        "up": lambda: up(dsn, branches, say=say),
        "rollback": lambda: rollback(dsn, version, say=say),
        "status": lambda: status(dsn),
        "validate": lambda: validate(dsn),
        "create": lambda: create(name, branches[0]),
    }
    if dry_run:
        print(plan(dsn, branches, version if action == "rollback" else ""))
        return 0
    result = actions[action]()
    if as_json:
        print(json.dumps(result, default=lambda each: vars(each) if isinstance(each, Status) else str(each)))
    elif action not in {"up", "rollback"}:
        print(*result or ["every file is as it was applied"], sep="\n")
    return 1 if action == "validate" and result else 0


def _run(migrations: Migrations, connection: Connection, steps: Steps, say: Say) -> list[str]:
    done: list[str] = []

    def execute(migration: Migration, forward: bool) -> None:
        started = time.monotonic()
        file, bookkeeping = migration.scripts(forward)
        if not forward:  # the last rollback drops the table
            connection.exec_driver_sql(bookkeeping)
        _run_file(connection, file)
        if forward:
            connection.exec_driver_sql(bookkeeping)
        done.append(migration.revision)
        milliseconds = (time.monotonic() - started) * 1000
        say(f"{migration.revision} {migration.name}: {_DONE[forward]} in {milliseconds:.0f} ms")

    with _refusals():
        _context(connection, migrations, steps).run_migrations(execute=execute)
    return done


def _run_file(connection: Connection, file: Path) -> None:
    """Run the statements of `file` one by one: an error has a line then, even where the server names none."""
    text = file.read_text()
    try:
        slices = split(text, only_slices=True)
    except ParseError as problem:
        message, position = problem.args
        raise MigrationError(f"{_place(file, text, position)}: {message}") from problem
    for part in slices:
        try:
            # Without parameters the text goes out as it is: a percent sign in it means nothing.
            connection.exec_driver_sql(text[part], execution_options={"no_parameters": True})
        except DBAPIError as problem:
            raise _located(problem, file, text, part.start) from problem
    connection.exec_driver_sql("RESET ROLE")


def _located(problem: DBAPIError, file: Path, text: str, start: int) -> MigrationError:
    """Return the error with its file and line; the server's position counts characters from 1."""
    assert isinstance(problem.orig, psycopg.Error)
    facts = problem.orig.diag
    position = start + int(facts.statement_position or 1) - 1
    more = {"DETAIL": facts.message_detail, "HINT": facts.message_hint, "CONTEXT": facts.context}
    lines = [facts.message_primary or str(problem.orig), *(f"{k}: {v}" for k, v in more.items() if v)]
    return MigrationError(f"{_place(file, text, position)}: " + "\n".join(lines))


def _place(file: Path, text: str, position: int) -> str:
    return f"{file.parent.name}/{file.name}:{text.count(chr(10), 0, position) + 1}"


def _find(directory: Path) -> list[Migration]:
    """Return the migrations below `directory`, by branch and number; raises MigrationError."""
    found: list[Migration] = []
    for path in sorted(directory.glob("*/*.sql")):
        if path.name.endswith(".rollback.sql"):
            continue
        name = _FILE_NAME.fullmatch(f"{path.parent.name}/{path.name}")
        if name is None:
            raise MigrationError(f"{path}: a migration is called BRANCH/NNNN_name.sql, in lower case")
        migration = Migration(name[1], int(name[2]), name[3], path)
        if not migration.rollback_path.exists():
            raise MigrationError(f"{path}: its rollback, {migration.rollback_path.name}, is missing")
        if found and found[-1].revision == migration.revision:
            raise MigrationError(f"{path}: there is another migration {migration.revision}")
        found.append(migration)
    return found


def _steps(migration: Migration) -> dict[str, Callable[..., None]]:
    """Return the functions that Alembic looks for in a revision's module, and whose names it shows."""

    def upgrade(*, execute: Execute) -> None:
        execute(migration, True)

    def downgrade(*, execute: Execute) -> None:
        execute(migration, False)

    return {"upgrade": upgrade, "downgrade": downgrade}


def _context(
    connection: Connection | None,
    migrations: Migrations | None = None,
    steps: Steps | None = None,
    **options: object,
) -> MigrationContext:
    options.update(
        script=migrations,
        transaction_per_migration=True,
        version_table=_VERSIONS,
        version_table_schema="sluice",
    )
    if steps is not None:
        options["fn"] = lambda heads, _: steps(heads)
    return MigrationContext.configure(connection, dialect_name="postgresql", opts=options)


def _as_revision(heads: Sequence[str]) -> str:
    """Return `heads` as Alembic's annotations want them: it passes the same tuple where they say str."""
    return cast(str, tuple(heads))


def _heads(connection: Connection) -> tuple[str, ...]:
    heads = _context(connection).get_current_heads()
    connection.rollback()
    return heads


def _recorded(connection: Connection) -> dict[str, tuple[str, datetime | None]]:
    """Return checksum and time of each applied migration, in the order of their application."""
    if connection.exec_driver_sql(f"SELECT to_regclass('{_CHECKSUMS}')").scalar() is None:
        return {}
    columns = "revision, sha256, applied_at"
    rows = connection.exec_driver_sql(f"SELECT {columns} FROM {_CHECKSUMS} ORDER BY applied_at, revision")
    return {row.revision: (row.sha256, row.applied_at) for row in rows}


@contextmanager
def _refusals() -> Iterator[None]:
    """Raise MigrationError for what Alembic refuses: an unknown version, a broken graph."""
    try:
        yield
    except CommandError as problem:
        raise MigrationError(str(problem)) from problem


@contextmanager
def _connection(dsn: str, say: Say) -> Iterator[Connection]:
    def connect() -> psycopg.Connection:
        connection = psycopg.connect(dsn, application_name="pgsluice migrate", options=_SETTINGS)
        connection.add_notice_handler(lambda notice: say(f"{notice.severity}: {notice.message_primary}"))
        return connection

    engine = create_engine("postgresql+psycopg://", creator=connect, poolclass=NullPool)
    try:
        with engine.connect() as connection:
            yield connection
    except DBAPIError as problem:
        raise MigrationError(str(problem.orig).strip()) from problem
    finally:
        engine.dispose()


@contextmanager
def _locked(dsn: str, say: Say) -> Iterator[Connection]:
    """Open a connection that holds the lock of migrations until it closes, or dies."""
    with _connection(dsn, say) as connection:
        if not connection.exec_driver_sql(f"SELECT pg_try_advisory_lock({_LOCK})").scalar():
            say("waiting for another migration to end")
            connection.exec_driver_sql(f"SELECT pg_advisory_lock({_LOCK})")
        connection.commit()
        yield connection


def _quiet(_: str) -> None:
    """Say nothing."""
