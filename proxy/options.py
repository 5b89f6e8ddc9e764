"""What commands have in common: their options, how a configuration is found, how an error is told."""

from __future__ import annotations

import os
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from proxy.errors import SluiceError

if TYPE_CHECKING:
    from proxy.config import Config
    from proxy.keytool import Place

_TRACEBACK = "PGSLUICE_TRACEBACK"
_WITHOUT_IT = "Without it: ./pgsluice.yaml where that exists and DB_NAME isn't set, else the DB_* variables."
ConfigFile = Annotated[
    Path | None,
    typer.Option("--config", "-c", metavar="FILE", help=f"The configuration. {_WITHOUT_IT}"),
]
KeysConfigFile = Annotated[
    Path | None,
    typer.Option(
        "--config",
        "-c",
        metavar="FILE",
        help=f"The configuration whose control login is used. {_WITHOUT_IT}",
    ),
]
DatabaseName = Annotated[
    str | None,
    typer.Option(
        "--database", metavar="NAME", help="Which of the configuration's databases; else the first."
    ),
]
KeysDsn = Annotated[
    str | None,
    typer.Option("--dsn", metavar="DSN", help="Connect this way instead; PGHOST… fill in the rest."),
]
KeyId = Annotated[str, typer.Argument(metavar="KEY_ID", help="Such as ctm_ab12cd34ef56.")]
AdminDsn = Annotated[
    str,
    typer.Option(
        "--dsn",
        metavar="DSN",
        envvar="PGSLUICE_ADMIN_DSN",
        help="How a superuser reaches PostgreSQL; PGHOST, PGUSER… fill in the rest.",
    ),
]
Schemas = Annotated[
    list[str] | None,
    typer.Option("--schema", metavar="NAME", help="A part of the bundled SQL; repeatable. [default: core]"),
]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Print the SQL instead of running it.")]
OwnDirectory = Annotated[
    Path | None,
    typer.Option(
        "--directory", metavar="DIR", help="An application's own migrations, DIR/BRANCH/NNNN_name.sql."
    ),
]
NoBackup = Annotated[bool, typer.Option("--no-backup", help="Go on without a backup.")]
BackupDirectory = Annotated[
    Path, typer.Option("--backup-directory", metavar="DIR", help="Where a backup is written. [default: here]")
]
PgDump = Annotated[
    str,
    typer.Option(
        "--pg-dump", metavar="FILE", envvar="PGSLUICE_PG_DUMP", help="pg_dump, not older than the server."
    ),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]


def chosen(path: Path | None) -> Path | None:
    """Return the configuration's file, None for the environment; a file that wasn't named is told."""
    beside = Path("pgsluice.yaml")
    if path is not None or os.environ.get("DB_NAME") or not beside.exists():
        return path
    typer.echo(f"pgsluice: reading {beside}", err=True)
    return beside


def configuration(path: Path | None, *, new_keys_file: bool = False) -> Config:
    """Return what the file or else the environment says; raises ConfigError with all that is wrong."""
    from proxy.config import from_environment, load

    if path is not None:
        return load(path, os.environ, new_keys_file=new_keys_file)
    return from_environment(os.environ, new_keys_file=new_keys_file)


def place(
    config: Path | None, database: str | None, dsn: str | None, *, new_keys_file: bool = False
) -> Place:
    """Return where keys and the access log are: behind `dsn`, or where the configuration says."""
    from proxy.keytool import Place

    if dsn is not None:
        return Place(dsn=dsn)
    return Place(config=configuration(chosen(config), new_keys_file=new_keys_file), name=database)


@contextmanager
def told() -> Iterator[None]:
    """Tell an error that was foreseen in a sentence, without a traceback, and exit with 1."""
    from proxy.config import ConfigError

    try:
        yield
    except ConfigError as error:
        for problem in error.problems:
            typer.echo(f"pgsluice: {problem}", err=True)
        raise typer.Exit(1) from None
    except (typer.Exit, BrokenPipeError):
        # Whoever read what is printed has enough of it: click ends without a word.
        raise
    except Exception as error:
        # Importing both drivers to name their errors would slow each command down.
        if not isinstance(error, SluiceError | OSError) and _package(error) not in ("asyncpg", "psycopg"):
            if os.environ.get(_TRACEBACK):
                raise
            typer.echo(f"pgsluice: {_unforeseen(error)}", err=True)
            raise typer.Exit(1) from None
        # Without PostgreSQL's DETAIL, which may show a row.
        typer.echo(f"pgsluice: {getattr(error, 'message', None) or error}", err=True)
        for more in (getattr(error, "extra", ""), getattr(error, "hint", "")):
            if more:
                typer.echo(f"  {more}", err=True)
        raise typer.Exit(1) from None


def _unforeseen(error: Exception) -> str:
    """Return what a report of a bug has to begin with: the error's kind and place. Its text may hold a secret."""
    *_, last = traceback.extract_tb(error.__traceback__)
    place = f"{Path(last.filename).name}:{last.lineno}"
    return f"a bug: {type(error).__name__} at {place}; {_TRACEBACK}=1 shows where it comes from, please report it"


def _package(error: Exception) -> str:
    return type(error).__module__.partition(".")[0]
