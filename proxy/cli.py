"""The command line: arguments only, each command hands over to the module that does the work."""

from __future__ import annotations

import typer

import proxy

app = typer.Typer(no_args_is_help=True, add_completion=False)


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"pgsluice {proxy.__version__} ({'compiled' if proxy.compiled() else 'interpreted'})")
        raise typer.Exit


@app.callback()
def _options(
    version: bool = typer.Option(False, "--version", callback=_version, is_eager=True, help="Show it."),
) -> None:
    """Give PostgreSQL API keys, pooling, read routing and an identity that clients can't forge."""


def main() -> None:
    """Run the command line."""
    app()
