"""`pgsluice route`, `logs` and `top`: what would be done, what was done, and what is being done."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Annotated

import typer

from proxy.errors import SluiceError
from proxy.options import (
    AsJson,
    ConfigFile,
    DatabaseName,
    KeysConfigFile,
    KeysDsn,
    chosen,
    configuration,
    place,
    told,
)


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

    Prints a JSON line for SQL, taken as one message that may hold several
    statements, or one for each statement of standard input.

    \b
    Examples:
      pgsluice route 'SELECT * FROM tasks FOR UPDATE'
      pgsluice route -c pgsluice.yaml < queries.sql | jq .target
    """  # noqa: D301  \b keeps the lines as they are
    with told():
        from proxy import explain

        text = sql if sql is not None else sys.stdin.read()
        known = configuration(config) if config is not None else None
        for line in explain.explain(text, known, database, each=sql is None):
            typer.echo(json.dumps(line))


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

    \b
    Examples:
      PGSLUICE_API_KEY=ctm_… pgsluice top
      pgsluice top --url http://10.0.0.7:9432 --key-file key --once --json
    """  # noqa: D301  \b keeps the lines as they are
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
