"""`pgsluice migrate`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from proxy.options import AdminDsn, AsJson, BackupDirectory, DryRun, NoBackup, OwnDirectory, PgDump, told

if TYPE_CHECKING:
    from proxy.migrate import Backup

migrate = typer.Typer(
    no_args_is_help=True, help="Apply, list and undo the bundled SQL, and an application's own on top of it."
)


@migrate.command("up")
def migrate_up(
    dsn: AdminDsn = "",
    schema: Annotated[
        list[str] | None,
        typer.Option(
            "--schema",
            metavar="NAME",
            help="A branch; repeatable. [default: core, what --directory holds, and what was begun before]",
        ),
    ] = None,
    directory: OwnDirectory = None,
    dry_run: DryRun = False,
    no_backup: NoBackup = False,
    backup_directory: BackupDirectory = Path(),
    pg_dump: PgDump = "pg_dump",
    as_json: AsJson = False,
) -> None:
    """Apply what is missing, each migration in a transaction.

    Before steps that destroy data (DROP TABLE, TRUNCATE, DELETE without WHERE…) pg_dump makes a backup.

    \b
    Examples:
      pgsluice migrate up --schema core --schema taskmaster
      pgsluice migrate up --directory migrations
      pgsluice migrate up --dry-run > up.sql && psql -X -f up.sql
    """  # noqa: D301  \b keeps the lines as they are
    branches, backup = tuple(schema or ()), _backup(no_backup, backup_directory, pg_dump)
    _migrate(
        "up", dsn, branches=branches, directory=directory, backup=backup, dry_run=dry_run, as_json=as_json
    )


@migrate.command("status")
def migrate_status(dsn: AdminDsn = "", directory: OwnDirectory = None, as_json: AsJson = False) -> None:
    """List the migrations, applied and pending.

    \b
    Example:
      pgsluice migrate status --directory migrations --json
    """  # noqa: D301  \b keeps the lines as they are
    _migrate("status", dsn, directory=directory, as_json=as_json)


@migrate.command("validate")
def migrate_validate(dsn: AdminDsn = "", directory: OwnDirectory = None, as_json: AsJson = False) -> None:
    """Compare the files with what was applied; exits with 1 if they differ.

    Finds files that were changed, renamed or lost since, and an order that isn't theirs.

    \b
    Example:
      pgsluice migrate validate --directory migrations
    """  # noqa: D301  \b keeps the lines as they are
    _migrate("validate", dsn, directory=directory, as_json=as_json)


@migrate.command("rollback")
def migrate_rollback(
    version: Annotated[
        str,
        typer.Argument(
            metavar="VERSION", help="It stays; base leaves nothing, BRANCH@base nothing of a branch."
        ),
    ],
    dsn: AdminDsn = "",
    directory: OwnDirectory = None,
    dry_run: DryRun = False,
    no_backup: NoBackup = False,
    backup_directory: BackupDirectory = Path(),
    pg_dump: PgDump = "pg_dump",
    as_json: AsJson = False,
) -> None:
    """Undo what was applied after VERSION in its branch, and what depends on it; pg_dump makes a backup first.

    \b
    Examples:
      pgsluice migrate rollback core_0003
      pgsluice migrate rollback notes@base --directory migrations
      pgsluice migrate rollback base --backup-directory /var/backups
    """  # noqa: D301  \b keeps the lines as they are
    _migrate(
        "rollback",
        dsn,
        version=version,
        directory=directory,
        backup=_backup(no_backup, backup_directory, pg_dump),
        dry_run=dry_run,
        as_json=as_json,
    )


@migrate.command("create")
def migrate_create(
    name: Annotated[str, typer.Argument(metavar="NAME", help="What it does, in a few words.")],
    branch: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="Its branch, a directory; else the only one of --directory."),
    ] = None,
    directory: OwnDirectory = None,
    as_json: AsJson = False,
) -> None:
    """Make the two files of a new migration, to be filled in.

    \b
    Examples:
      pgsluice migrate create "first tables" --branch notes --directory migrations
      pgsluice migrate create "add a colour" --directory migrations
    """  # noqa: D301  \b keeps the lines as they are
    branches = (branch,) if branch else ()
    _migrate("create", "", name=name, branches=branches, directory=directory, as_json=as_json)


def _migrate(action: str, dsn: str, **arguments: Any) -> None:
    with told():
        from proxy.migrate import run

        raise typer.Exit(run(action, dsn, **arguments))


def _backup(left_out: bool, directory: Path, pg_dump: str) -> Backup | None:
    with told():
        from proxy.migrate import Backup

        return None if left_out else Backup(directory, pg_dump)
