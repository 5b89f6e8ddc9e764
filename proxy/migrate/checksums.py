"""What was applied, and how the files differ from it now."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Final, NamedTuple

from sqlalchemy import Connection

from proxy.migrate.database import check_rights, connected
from proxy.migrate.files import Migration
from proxy.migrate.graph import Migrations
from proxy.migrate.graph import context as alembic_context
from proxy.migrate.progress import Progress, quiet

CHECKSUMS: Final = "sluice.schema_checksums"
# NULL where there is no such table.
_READABLE: Final = """
SELECT has_schema_privilege(n.oid, 'USAGE') AND has_table_privilege(c.oid, 'SELECT')
FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
WHERE n.nspname = 'sluice' AND c.relname = 'schema_checksums'
"""


class Applied(NamedTuple):
    """What the database knows of a migration; `position` counts from the first that was applied."""

    file: str
    sha256: str
    applied_at: datetime
    position: int


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


def status(dsn: str, *, directories: Sequence[Path] = ()) -> list[Status]:
    """Return every migration, in order, with what is wrong with it since it was applied."""
    migrations = Migrations(directories)
    with connected(dsn, Progress(quiet)) as connection:
        recorded = applied(connection)
        problems = {**drift(migrations, recorded), **disorder(migrations, recorded)}
        if not problems:
            problems = _misbooked(connection, migrations, recorded)
    names = {revision: each.name for revision, each in migrations.migrations.items()}
    return [
        Status(
            revision,
            names.get(revision, ""),
            recorded[revision].applied_at if revision in recorded else None,
            problems.get(revision, ""),
        )
        for revision in dict.fromkeys((*names, *recorded, *problems))
    ]


def validate(dsn: str, *, directories: Sequence[Path] = ()) -> list[Status]:
    """Return the migrations that aren't as they were applied; nothing if all is well."""
    return [each for each in status(dsn, directories=directories) if each.problem]


def applied(connection: Connection) -> dict[str, Applied]:
    """Return what was applied, by revision, in the order of application.

    Raises MigrationError with the statements that are missing where the role may not read it.
    """
    rows: Sequence[tuple[str, str, str, datetime]] = []
    readable = connection.exec_driver_sql(_READABLE).scalar()
    if readable is False:
        check_rights(connection, pending=())
    if readable is not None:
        found = connection.exec_driver_sql(
            f"SELECT revision, file, sha256, applied_at FROM {CHECKSUMS} ORDER BY applied_at, revision"
        )
        rows = [tuple(row) for row in found]
    connection.rollback()
    return {row[0]: Applied(*row[1:], position) for position, row in enumerate(rows)}


def bookkeeping(migration: Migration, forward: bool) -> str:
    """Return the statement that keeps the checksums in step with a migration, or its rollback."""
    if not forward:
        return f"DELETE FROM {CHECKSUMS} WHERE revision = '{migration.revision}'"
    # None of the three can hold a quote: the files' names are checked.
    values = f"'{migration.revision}', '{migration.path.name}', '{migration.sha256()}'"
    return f"INSERT INTO {CHECKSUMS} (revision, file, sha256) VALUES ({values})"


def drift(migrations: Migrations, recorded: Mapping[str, Applied]) -> dict[str, str]:
    """Return by revision how the file of an applied migration isn't what it was."""
    found: dict[str, str] = {}
    for revision, was in recorded.items():
        migration = migrations.migrations.get(revision)
        if migration is None:
            continue
        if was.sha256 != migration.sha256():
            found[revision] = "changed since it was applied"
        elif was.file != migration.path.name:
            found[revision] = f"its file was called {was.file} when it was applied"
    return found


def disorder(migrations: Migrations, recorded: Mapping[str, Applied]) -> dict[str, str]:
    """Return by revision what stands in the way of going on: missing files, and what was left out below."""
    found: dict[str, str] = {}
    for revision, was in recorded.items():
        if revision not in migrations.migrations:
            found[revision] = "applied, but its file is missing"
            continue
        for needed in migrations.needs[revision]:
            if needed not in recorded:
                found[revision] = f"applied without {needed}, which comes before it"
            elif recorded[needed].position > was.position:
                found[revision] = f"applied before {needed}, which it needs"
    return found


def foreign(migrations: Migrations, recorded: Mapping[str, Applied]) -> list[str]:
    """Return what was applied of branches that these directories don't hold at all."""
    return [revision for revision in recorded if revision.rpartition("_")[0] not in migrations.branches]


def _misbooked(
    connection: Connection, migrations: Migrations, recorded: Mapping[str, Applied]
) -> dict[str, str]:
    """Return by revision where Alembic's version table tells otherwise than the checksums."""
    heads = set(alembic_context(connection).get_current_heads())
    connection.rollback()
    ends = set(migrations.ends(recorded))
    return dict.fromkeys(sorted(heads ^ ends), "not what sluice.schema_version says")
