"""The command line: arguments only. Each command imports what it needs when it runs, so that help is quick.

Exit codes: 0 done; 1 something is wrong, told on standard error; 2 wrong arguments; 3 of `check`: the configuration is
wrong, and nothing else was looked at.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

import proxy
from proxy.cloudflare.command import cloudflare
from proxy.errors import SluiceError
from proxy.options import (
    AdminDsn,
    AsJson,
    BackupDirectory,
    ConfigFile,
    DatabaseName,
    DryRun,
    KeyId,
    KeysConfigFile,
    KeysDsn,
    NoBackup,
    OwnDirectory,
    PgDump,
    Schemas,
    chosen,
    configuration,
    place,
    told,
)

if TYPE_CHECKING:
    from proxy.config import Config, Problem
    from proxy.migrate import Backup

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
keys = typer.Typer(no_args_is_help=True, help="Make, list, show, revoke and rotate API keys.")
migrate = typer.Typer(
    no_args_is_help=True, help="Apply, list and undo the bundled SQL, and an application's own on top of it."
)

_WRONG_CONFIGURATION = 3


def main() -> None:
    """Run the command line."""
    app(prog_name="pgsluice")


def _version(wanted: bool) -> None:
    if wanted:
        build = "compiled" if proxy.compiled() else "interpreted"
        typer.echo(f"pgsluice {proxy.__version__} ({build}, Python {sys.version.split()[0]})")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show version and build.")
    ] = False,
) -> None:
    """Give PostgreSQL API keys, pooling, read routing and an identity that clients can't forge."""


@app.command()
def serve(config: ConfigFile = None) -> None:
    """Run the proxy. SIGTERM drains it."""
    with told():
        from proxy.app import run

        raise typer.Exit(run(chosen(config)))


@app.command()
def check(
    config: ConfigFile = None,
    config_only: Annotated[
        bool, typer.Option("--config-only", help="Look at the configuration alone; connect nowhere.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Look for errors in the configuration, then on the servers that it names.

    Tells the statement that mends each shortfall. Exits with 3 for errors in the configuration, with 1 for errors
    on the servers; warnings alone are no error.
    """
    from proxy.config import ConfigError
    from proxy.transport import tls

    problems: list[Problem] = []
    try:
        found = configuration(chosen(config))
        problems = tls.problems(found)
    except ConfigError as error:
        problems = error.problems
    if problems or config_only:
        if as_json:
            entries = [problem._asdict() for problem in problems]
            typer.echo(json.dumps({"ok": not problems, "problems": entries}, indent=2))
        elif problems:
            _print_problems(problems)
        else:
            _print_counts(found)
        raise typer.Exit(_WRONG_CONFIGURATION if problems else 0)
    with told():
        raise typer.Exit(_preflight(found, as_json))


def _preflight(config: Config, as_json: bool) -> int:
    import asyncio

    from proxy.migrate import Migrations
    from proxy.preflight import live, report

    bundled = Migrations().migrations
    found = asyncio.run(live.look(config, {each: bundled[each].sha256() for each in bundled}))
    if as_json:
        typer.echo(report.as_json(found))
    else:
        report.show(found)
    return 0 if found.sound else 1


@app.command()
def route(
    sql: Annotated[
        str | None, typer.Argument(metavar="[SQL]", help="What a client would send; else standard input.")
    ] = None,
    config: Annotated[
        Path | None,
        typer.Option(
            "--config", "-c", metavar="FILE", help="Ask the database there which functions only read."
        ),
    ] = None,
    database: DatabaseName = None,
) -> None:
    """Explain where SQL would be sent, and why.

    Prints a JSON line for SQL, taken as one message that may hold several statements, or one for each
    statement of standard input.
    """
    with told():
        from proxy import explain

        text = sql if sql is not None else sys.stdin.read()
        known = configuration(config) if config is not None else None
        for line in explain.explain(text, known, database, each=sql is None):
            typer.echo(json.dumps(line))


@app.command()
def logs(
    key: Annotated[str | None, typer.Option(metavar="KEY_ID", help="This key's alone.")] = None,
    user: Annotated[str | None, typer.Option(metavar="USER", help="This user's alone.")] = None,
    intent: Annotated[
        str | None, typer.Option(metavar="INTENT", help="read, write, ddl, transaction, session or unknown.")
    ] = None,
    event: Annotated[
        str | None,
        typer.Option(
            metavar="EVENT", help="statement, login, login_failed, denied, revoked, cancel or admin."
        ),
    ] = None,
    code: Annotated[
        str | None,
        typer.Option(metavar="CODE", help="Such as RATE_LIMIT_EXCEEDED; the proxy's own refusals."),
    ] = None,
    sqlstate: Annotated[
        str | None, typer.Option(metavar="STATE", help="Such as 42501, or two characters for a class.")
    ] = None,
    slower: Annotated[
        str | None, typer.Option(metavar="DURATION", help="What took so long or longer (250ms).")
    ] = None,
    since: Annotated[
        str | None, typer.Option(metavar="WHEN", help="So long ago (10m), or a time; else a day ago.")
    ] = None,
    until: Annotated[str | None, typer.Option(metavar="WHEN", help="Before so long ago, or a time.")] = None,
    limit: Annotated[
        int, typer.Option("--limit", "-n", metavar="NUMBER", min=0, help="The newest so many.")
    ] = 50,
    follow: Annotated[
        bool, typer.Option("--follow", "-f", help="Go on with what comes, until Ctrl-C.")
    ] = False,
    wide: Annotated[
        bool, typer.Option("--wide", help="Don't cut statements to the terminal's width.")
    ] = False,
    file: Annotated[
        Path | None,
        typer.Option(
            "--file",
            metavar="FILE",
            help="Read JSON lines, as on the proxy's standard output, instead of the table; - for standard input.",
        ),
    ] = None,
    config: KeysConfigFile = None,
    database: DatabaseName = None,
    dsn: KeysDsn = None,
    as_json: AsJson = False,
) -> None:
    """Show the access log: what keys did, the newest last.

    Followed, a statement is shown when it is over; one that took more than a minute only with --slower.

    \b
    Examples:
      pgsluice logs --user alice@example.com --since 1h
      pgsluice logs --follow --slower 250ms
      pgsluice logs --event denied --json | jq .reason
      pgsluice logs --file access.log --sqlstate 42
    """  # noqa: D301  \b keeps the lines as they are
    with told():
        from datetime import UTC, datetime

        from proxy import logreader

        wanted = logreader.wanted(
            datetime.now(UTC),
            key=key,
            user=user,
            intent=intent,
            event=event,
            code=code,
            sqlstate=sqlstate,
            slower=slower,
            since=since,
            until=until,
        )
        source = file if file is not None else place(config, database, dsn)
        raise typer.Exit(
            logreader.logs(source, wanted, limit=limit, follow=follow, wide=wide, as_json=as_json)
        )


app.add_typer(keys, name="keys")


@keys.command("create")
def keys_create(
    user: Annotated[str, typer.Option(metavar="USER", help="Whose key; what row-level security goes by.")],
    name: Annotated[str, typer.Option(metavar="TEXT", help="What it is for.")] = "pgsluice keys create",
    permission: Annotated[
        list[str] | None, typer.Option(metavar="VERB:AREA", help="Such as read:tasks, or admin; repeatable.")
    ] = None,
    pool: Annotated[str | None, typer.Option(metavar="NAME", help="The pool of its sessions.")] = None,
    address: Annotated[
        list[str] | None, typer.Option(metavar="CIDR", help="Where it may be used; repeatable.")
    ] = None,
    rate_limit: Annotated[
        int | None, typer.Option(metavar="NUMBER", min=1, help="Statements a minute.")
    ] = None,
    expires: Annotated[
        str | None, typer.Option(metavar="WHEN", help="After a duration (30d), or at a time (2027-01-01).")
    ] = None,
    config: KeysConfigFile = None,
    database: DatabaseName = None,
    dsn: KeysDsn = None,
    as_json: AsJson = False,
) -> None:
    """Make a key and print it; it can't be shown again."""
    with told():
        from proxy import keytool

        code = keytool.create(
            place(config, database, dsn, new_keys_file=True),
            name,
            user,
            permission or (),
            pool=pool,
            addresses=address or (),
            rate_limit=rate_limit,
            expires=expires,
            as_json=as_json,
        )
        raise typer.Exit(code)


@keys.command("list")
def keys_list(
    user: Annotated[str | None, typer.Option(metavar="USER", help="This user's alone.")] = None,
    config: KeysConfigFile = None,
    database: DatabaseName = None,
    dsn: KeysDsn = None,
    as_json: AsJson = False,
) -> None:
    """List keys, without their secrets."""
    with told():
        from proxy import keytool

        raise typer.Exit(keytool.show_all(place(config, database, dsn), user, as_json))


@keys.command("show")
def keys_show(
    key_id: KeyId,
    config: KeysConfigFile = None,
    database: DatabaseName = None,
    dsn: KeysDsn = None,
    as_json: AsJson = False,
) -> None:
    """Show a key's state, limits and use, without its secret."""
    with told():
        from proxy import keytool

        raise typer.Exit(keytool.show(place(config, database, dsn), key_id, as_json))


@keys.command("revoke")
def keys_revoke(
    key_id: KeyId,
    config: KeysConfigFile = None,
    database: DatabaseName = None,
    dsn: KeysDsn = None,
    as_json: AsJson = False,
) -> None:
    """End a key and its sessions at once."""
    with told():
        from proxy import keytool

        raise typer.Exit(keytool.revoke(place(config, database, dsn), key_id, as_json))


@keys.command("rotate")
def keys_rotate(
    key_id: KeyId,
    grace: Annotated[str, typer.Option(metavar="DURATION", help="How long the old key stays valid.")] = "1d",
    config: KeysConfigFile = None,
    database: DatabaseName = None,
    dsn: KeysDsn = None,
    as_json: AsJson = False,
) -> None:
    """Make a key like another, which stays valid for a while, and print it."""
    with told():
        from proxy import keytool

        raise typer.Exit(keytool.rotate(place(config, database, dsn), key_id, grace, as_json))


@keys.command("rotate-signing")
def keys_rotate_signing(
    now: Annotated[
        bool, typer.Option("--now", help="At once, with a gap of seconds: the key is known to others.")
    ] = False,
    config: KeysConfigFile = None,
    database: DatabaseName = None,
    dsn: KeysDsn = None,
    as_json: AsJson = False,
) -> None:
    """Exchange the key that signs identities for a new one."""
    with told():
        from proxy import keytool

        raise typer.Exit(keytool.rotate_signing(place(config, database, dsn), now, as_json))


@app.command()
def setup(
    dsn: AdminDsn = "",
    database: Annotated[
        str, typer.Option(metavar="NAME", help="The database; made if it is missing.")
    ] = "app",
    schema: Schemas = None,
    config: Annotated[
        Path,
        typer.Option("--config", "-c", metavar="FILE", help="Written if it is missing, for its owner alone."),
    ] = Path("pgsluice.yaml"),
    inline: Annotated[
        bool, typer.Option("--inline/--variables", help="Write passwords into it, or variables instead.")
    ] = True,
    harden: Annotated[
        bool,
        typer.Option(
            "--harden",
            help="Take from PUBLIC also: cancel and terminate, large objects, query_to_xml, ts_stat, ts_rewrite, "
            "plpgsql, temporary tables.",
        ),
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Make logins, apply the bundled SQL, make a first admin key, and write a configuration.

    Passwords are taken from PGSLUICE_CONTROL_PASSWORD, APP_RW_PASSWORD, APP_RO_PASSWORD and
    APP_ADMIN_PASSWORD where they are set, else made.
    """
    with told():
        from proxy.setup import run

        schemas = tuple(schema or ("core",))
        raise typer.Exit(
            run(
                dsn, database, schemas=schemas, config=config, inline=inline, hardened=harden, as_json=as_json
            )
        )


app.add_typer(cloudflare, name="cloudflare")
app.add_typer(migrate, name="migrate")


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


@app.command()
def top(
    url: Annotated[
        str | None,
        typer.Option("--url", metavar="URL", help="The HTTP port; else that of the configuration."),
    ] = None,
    key_file: Annotated[
        Path | None,
        typer.Option("--key-file", metavar="FILE", help="Holds the API key. [default: PGSLUICE_API_KEY]"),
    ] = None,
    interval: Annotated[str, typer.Option(metavar="DURATION", help="How often it asks.")] = "2s",
    once: Annotated[bool, typer.Option("--once", help="Print one frame, and end.")] = False,
    database: Annotated[
        str | None,
        typer.Option("--database", metavar="NAME", help="Of those that the key may see; else the first."),
    ] = None,
    config: ConfigFile = None,
    as_json: AsJson = False,
) -> None:
    """Show live what a running proxy does: pools, hosts, statements, keys, denials. Ctrl-C ends it.

    Needs a key with the permission admin or read:metrics, as the dashboard does.
    """
    with told():
        from proxy import top as terminal

        seconds = _duration(interval, "--interval")
        if url is None:
            path = chosen(config)
            named = path is not None or os.environ.get("DB_NAME")
            url = terminal.url_of(configuration(path)) if named else terminal.DEFAULT_URL
        source = terminal.Source(url, terminal.read_key(key_file), database)
        raise typer.Exit(terminal.run(source, seconds, once, as_json))


def _duration(text: str, option: str) -> float:
    """Return seconds, at least a tenth of one, so that nothing is asked without a pause."""
    from proxy.config.units import duration

    try:
        return max(duration(text), 0.1)
    except ValueError as error:
        raise SluiceError(f"{option}: {error}") from None


@app.command()
def demo(
    once: Annotated[bool, typer.Option("--once", help="Give the tour, check each step, and end.")] = False,
    port: Annotated[int, typer.Option(help="The proxy's port; another if it is taken.")] = 6432,
    http_port: Annotated[int, typer.Option(help="The port of metrics and health.")] = 9432,
    directory: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Keep the data there; without it nothing is kept.")
    ] = None,
) -> None:
    """Start a PostgreSQL with a replica and the proxy in front of it, to try things."""
    with told():
        from proxy.demo import main as show

        raise typer.Exit(show(once, port, http_port, directory))


def _print_problems(problems: list[Problem]) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False)
    table.add_column("key", no_wrap=True)
    table.add_column("line", justify="right")
    table.add_column("problem", overflow="fold")
    for path, line, message in problems:
        table.add_row(Text(path), str(line or ""), Text(message))
    # A pipe has no width: nothing is folded there.
    console = Console(width=None if sys.stdout.isatty() else 1000)
    console.print(table)
    console.print(_count(len(problems), "problem"), style="bold red", highlight=False)


def _print_counts(config: Config) -> None:
    pools = sum(len(database.pools) for database in config.databases.values())
    hosts = sum(len(database.hosts) for database in config.databases.values())
    counts = (len(config.databases), "database"), (hosts, "host"), (pools, "pool")
    typer.echo(f"sound: {', '.join(_count(*each) for each in counts)}")


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"
