"""`pgsluice cloudflare …`: arguments only, as in proxy.cli."""

from __future__ import annotations

import json

import typer

from proxy.options import AsJson, ConfigFile, chosen, configuration, told

cloudflare = typer.Typer(no_args_is_help=True, help="Databases behind Cloudflare tunnels.")

_WRONG_CONFIGURATION = 3


@cloudflare.command("check")
def check(config: ConfigFile = None, as_json: AsJson = False) -> None:
    """Go the way to each host with `transport: cloudflare` step by step, and tell what to do where it ends.

    Exits with 1 where a step failed, and with 3 for errors in the configuration.
    """
    from proxy.config import ConfigError

    try:
        found = configuration(chosen(config))
    except ConfigError as error:
        if as_json:
            entries = [problem._asdict() for problem in error.problems]
            typer.echo(json.dumps({"ok": False, "problems": entries, "hosts": []}, indent=2))
        else:
            for problem in error.problems:
                typer.echo(f"pgsluice: {problem}", err=True)
        raise typer.Exit(_WRONG_CONFIGURATION) from None
    with told():
        from proxy.cloudflare import checking

        raise typer.Exit(checking.run(found, as_json))
