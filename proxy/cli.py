"""The command line: arguments only. Each command imports what it needs when it runs, so that help is quick.

Exit codes: 0 done; 1 something is wrong, told on standard error; 2 wrong arguments.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

import proxy
from proxy.errors import SluiceError

if TYPE_CHECKING:
    from proxy.config import Config, Problem

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)

ConfigFile = Annotated[
    Path | None,
    typer.Option("--config", "-c", metavar="FILE", help="The configuration; without it DB_* variables are."),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]


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
    with _told():
        from proxy.app import run

        raise typer.Exit(run(config))


@app.command()
def check(config: ConfigFile = None, as_json: AsJson = False) -> None:
    """Look for errors in the configuration; exits with 1 if there are any."""
    from proxy.config import ConfigError

    problems: list[Problem] = []
    try:
        found = _configuration(config)
    except ConfigError as error:
        problems = error.problems
    if as_json:
        entries = [problem._asdict() for problem in problems]
        typer.echo(json.dumps({"ok": not problems, "problems": entries}, indent=2))
    elif problems:
        _print_problems(problems)
    else:
        pools = sum(len(database.pools) for database in found.databases.values())
        hosts = sum(len(database.hosts) for database in found.databases.values())
        counts = (len(found.databases), "database"), (hosts, "host"), (pools, "pool")
        typer.echo(f"sound: {', '.join(_count(*each) for each in counts)}")
    raise typer.Exit(1 if problems else 0)


@app.command()
def route(
    sql: Annotated[str | None, typer.Argument(metavar="[SQL]", help="Standard input if not given.")] = None,
    config: Annotated[
        Path | None,
        typer.Option(
            "--config", "-c", metavar="FILE", help="Ask the database there which functions only read."
        ),
    ] = None,
    database: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="Which of the configuration's databases; else the first."),
    ] = None,
) -> None:
    """Explain where SQL would be sent, and why: one JSON line for each statement."""
    with _told():
        from proxy import explain

        text = sql if sql is not None else sys.stdin.read()
        for line in explain.explain(text, _configuration(config) if config is not None else None, database):
            typer.echo(json.dumps(line))


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
    with _told():
        from proxy.demo import main as show

        raise typer.Exit(show(once, port, http_port, directory))


def _configuration(path: Path | None) -> Config:
    from proxy.config import from_environment, load

    return load(path, os.environ) if path is not None else from_environment(os.environ)


@contextmanager
def _told() -> Iterator[None]:
    """Tell an error that was foreseen in a sentence, without a traceback, and exit with 1."""
    from proxy.config import ConfigError

    try:
        yield
    except ConfigError as error:
        for problem in error.problems:
            typer.echo(f"pgsluice: {problem}", err=True)
        raise typer.Exit(1) from None
    except (SluiceError, OSError) as error:
        typer.echo(f"pgsluice: {error}", err=True)
        for more in (getattr(error, "extra", ""), getattr(error, "hint", "")):
            if more:
                typer.echo(f"  {more}", err=True)
        raise typer.Exit(1) from None


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


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"
