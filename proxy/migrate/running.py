"""Apply migrations and undo them: each file with its bookkeeping in one transaction."""

from __future__ import annotations

import time
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Final

import psycopg
from alembic.runtime.migration import RevisionStep
from sqlalchemy import Connection
from sqlalchemy.exc import DBAPIError

from proxy.migrate.backup import Backup
from proxy.migrate.checksums import Applied, applied, bookkeeping, disorder, drift, foreign
from proxy.migrate.database import SETTINGS, check_rights, locked, server
from proxy.migrate.errors import MigrationError, at
from proxy.migrate.files import Migration
from proxy.migrate.graph import VERSIONS, Migrations, context
from proxy.migrate.progress import Done, Progress, Say
from proxy.migrate.statements import Statement, statements

_DONE: Final = {True: "applied", False: "rolled back"}


def up(
    dsn: str,
    branches: Sequence[str] = ("core",),
    *,
    directories: Sequence[Path] = (),
    backup: Backup | None = Backup(),  # noqa: B008  never changed
    say: Say = print,
    progress: Progress | None = None,
) -> list[str]:
    """Apply what is missing of `branches`, and what they depend on; return the revisions applied.

    A backup is made first if a step destroys data; None makes none. Raises MigrationError; what was applied
    before the failing migration stays.
    """
    migrations = Migrations(directories)
    progress = progress or Progress(say)
    with locked(dsn, progress) as connection:
        recorded = applied(connection)
        refuse_disorder(migrations, recorded)
        for revision, problem in drift(migrations, recorded).items():
            progress.say(f"warning: {revision}: {problem}")
        steps = migrations.upgrade(branches, recorded)
        if steps:
            check_rights(connection, [step.revision.revision for step in steps])
            connection.rollback()
            # Looked for in any case: files that are no SQL are refused before anything is applied.
            destroys = destructive(migrations, steps, forward=True)
            if backup is not None and destroys:
                _back_up(dsn, connection, backup, destroys, progress)
            # IF NOT EXISTS would ask for CREATE on the database, where it is there too.
            if connection.exec_driver_sql("SELECT to_regnamespace('sluice')").scalar() is None:
                connection.exec_driver_sql("CREATE SCHEMA sluice")
            connection.commit()
        return _run(migrations, connection, steps, progress)


def rollback(
    dsn: str,
    version: str,
    *,
    directories: Sequence[Path] = (),
    backup: Backup | None = Backup(),  # noqa: B008  never changed
    say: Say = print,
    progress: Progress | None = None,
) -> list[str]:
    """Undo what was applied after `version` in its branch, and what depends on that; `version` stays.

    "base" undoes everything, "BRANCH@base" all of a branch. Returns what was undone. A backup is made first;
    None makes none. Raises MigrationError.
    """
    migrations = Migrations(directories)
    progress = progress or Progress(say)
    with locked(dsn, progress) as connection:
        recorded = applied(connection)
        refuse_rollback(migrations, recorded)
        steps = migrations.downgrade(version, recorded)
        if steps:
            check_rights(connection, ())
            connection.rollback()
            destroys = destructive(migrations, steps, forward=False)
            if backup is not None:
                _back_up(dsn, connection, backup, destroys, progress)
        undone = _run(migrations, connection, steps, progress)
        if version == "base":
            connection.exec_driver_sql(f"DROP TABLE IF EXISTS sluice.{VERSIONS}")
            connection.exec_driver_sql("DROP SCHEMA IF EXISTS sluice")
            connection.commit()
        return undone


def refuse_disorder(migrations: Migrations, recorded: Mapping[str, Applied]) -> None:
    """Raise MigrationError where what is applied doesn't fit the files' order.

    Branches whose directory isn't named are left alone.
    """
    others = foreign(migrations, recorded)
    for revision, problem in disorder(migrations, recorded).items():
        if revision not in others:
            raise MigrationError(f"{revision}: {problem}")


def refuse_rollback(migrations: Migrations, recorded: Mapping[str, Applied]) -> None:
    """Raise MigrationError where a rollback could take away what unknown migrations stand on."""
    for revision, problem in disorder(migrations, recorded).items():
        hint = "; name its --directory" if revision in foreign(migrations, recorded) else ""
        raise MigrationError(f"{revision}: {problem}{hint}")


def destructive(migrations: Migrations, steps: Collection[RevisionStep], forward: bool) -> list[str]:
    """Return, with its place, each statement of `steps` that destroys data; raises MigrationError."""
    found: list[str] = []
    for step in steps:
        file = migrations.migrations[step.revision.revision].file(forward)
        place = f"{file.parent.name}/{file.name}"
        found.extend(f"{place}:{each.line}: {each.destroys}" for each in statements(file) if each.destroys)
    return found


def _back_up(
    dsn: str, connection: Connection, backup: Backup, destroys: Sequence[str], progress: Progress
) -> None:
    backup.check(server(connection))
    for statement in destroys:
        progress.say(f"destroys data: {statement}")
    backup.take(dsn, server(connection), progress)


def _run(
    migrations: Migrations, connection: Connection, steps: Sequence[RevisionStep], progress: Progress
) -> list[str]:
    begun: list[tuple[Migration, bool, float]] = []
    done: list[str] = []

    def tell() -> None:
        """Tell of the migration that has committed."""
        for migration, forward, started in begun:
            milliseconds = round((time.monotonic() - started) * 1000)
            done.append(migration.revision)
            progress.done.append(Done(migration.revision, milliseconds))
            progress.say(f"{migration.revision} {migration.name}: {_DONE[forward]} in {milliseconds} ms")
        begun.clear()

    def execute(migration: Migration, forward: bool) -> None:
        # Alembic commits behind this function's back: the one before has done so by now.
        tell()
        started = time.monotonic()
        connection.exec_driver_sql(SETTINGS)
        if not forward:  # the last rollback drops the table
            connection.exec_driver_sql(bookkeeping(migration, forward))
        _run_file(connection, migration, forward, progress)
        if forward:
            connection.exec_driver_sql(bookkeeping(migration, forward))
        begun.append((migration, forward, started))

    try:
        if steps:
            context(connection, migrations, steps).run_migrations(execute=execute)
            tell()
    finally:
        progress.clear()
    return done


def _run_file(connection: Connection, migration: Migration, forward: bool, progress: Progress) -> None:
    """Run the statements of a file one by one: an error has a line then, even where the server names none."""
    file, text = migration.file(forward), migration.text(forward)
    parts = statements(file)
    for number, part in enumerate(parts, 1):
        which = f"statement {number} of {len(parts)}"
        progress.at_work(f"{migration.revision}: {which}, line {part.line}: {part.text[:200]}")
        _execute(connection, part, file, text, which)
    # Deferred constraints and triggers would fail at COMMIT, where no file could be named.
    last = Statement("SET CONSTRAINTS ALL IMMEDIATE", len(text.rstrip()), 0, "")
    _execute(connection, last, file, text, "constraints at its end")
    connection.exec_driver_sql("RESET ROLE")


def _execute(connection: Connection, part: Statement, file: Path, text: str, which: str) -> None:
    try:
        # Without parameters the text goes out as it is: a percent sign in it means nothing.
        connection.exec_driver_sql(part.text, execution_options={"no_parameters": True})
    except DBAPIError as problem:
        raise _located(problem, part, file, text, which) from problem


def _located(problem: DBAPIError, part: Statement, file: Path, text: str, which: str) -> MigrationError:
    """Return the error with its file and line; the server's position counts characters from 1."""
    assert isinstance(problem.orig, psycopg.Error)
    facts = problem.orig.diag
    position = part.start + int(facts.statement_position or 1) - 1
    if facts.statement_position:
        which += f", column {position - text.rfind(chr(10), 0, position)}"
    more = {"DETAIL": facts.message_detail, "HINT": facts.message_hint, "CONTEXT": facts.context}
    lines = [
        f"{facts.message_primary or problem.orig} ({which})",
        *(f"{name}: {value}" for name, value in more.items() if value),
    ]
    return at(file, text, position, "\n".join(lines))
