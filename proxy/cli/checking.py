"""`pgsluice check`."""

from __future__ import annotations

import json
import sys
from typing import TYPE_CHECKING, Annotated

import typer

from proxy.options import AsJson, ConfigFile, chosen, configuration, told

if TYPE_CHECKING:
    from proxy.config import Config, Problem

_WRONG_CONFIGURATION = 3


def check(
    config: ConfigFile = None,
    config_only: Annotated[
        bool, typer.Option("--config-only", help="Look at the configuration alone; connect nowhere.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Look for errors in the configuration, then on the servers that it names.

    Tells the statement that mends each shortfall. Exits with 3 for errors in
    the configuration, with 1 for errors on the servers; warnings alone are no
    error.

    \b
    Examples:
      pgsluice check -c pgsluice.yaml
      pgsluice check --config-only
      pgsluice check --json | jq -r '.findings[].mend'
    """  # noqa: D301  \b keeps the lines as they are
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
