"""The program `pgsluice`: its commands, in the order of its help."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

import proxy
from proxy.cli.checking import check
from proxy.cli.cloudflare import cloudflare
from proxy.cli.keys import keys
from proxy.cli.looking import logs, route, top
from proxy.cli.migrations import migrate
from proxy.cli.running import demo, serve, setup

_EXIT_CODES = """
\b
Exit codes:
  0  done
  1  something is wrong, and told on standard error
  2  wrong arguments
  3  the configuration is wrong, and nothing else was looked at (check, cloudflare check)
"""

app = typer.Typer(
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    epilog=_EXIT_CODES,
)
for command in (demo, serve, check, route, logs, top, setup):
    app.command()(command)
app.add_typer(keys, name="keys")
app.add_typer(migrate, name="migrate")
app.add_typer(cloudflare, name="cloudflare")


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
