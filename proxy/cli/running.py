"""`pgsluice serve`, `setup` and `demo`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from proxy.options import AdminDsn, AsJson, ConfigFile, Schemas, chosen, told


def serve(config: ConfigFile = None) -> None:
    """Run the proxy.

    \b
    SIGTERM, SIGINT  take no more clients, let transactions finish, and end
    SIGHUP           read the configuration again
    SIGUSR2          start a new process that takes all new clients, and end
                     with the last one here

    \b
    Examples:
      pgsluice serve -c pgsluice.yaml
      DB_HOST=10.0.0.5 DB_NAME=app DB_USER=app_rw DB_PASSWORD=… pgsluice serve
      kill -HUP $(pidof pgsluice)    # take over a changed configuration
      kill -USR2 $(pidof pgsluice)   # a new version, without dropping a client
    """  # noqa: D301  \b keeps the lines as they are
    with told():
        from proxy.serving import run

        raise typer.Exit(run(chosen(config)))


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

    Passwords are taken from PGSLUICE_CONTROL_PASSWORD, APP_RW_PASSWORD,
    APP_RO_PASSWORD and APP_ADMIN_PASSWORD where they are set, else made.

    \b
    Examples:
      pgsluice setup --dsn 'host=10.0.0.5 user=postgres' --database app
      pgsluice setup --schema core --schema taskmaster --variables
    """  # noqa: D301  \b keeps the lines as they are
    with told():
        from proxy.setup import run

        schemas = tuple(schema or ("core",))
        raise typer.Exit(
            run(
                dsn, database, schemas=schemas, config=config, inline=inline, hardened=harden, as_json=as_json
            )
        )


def demo(
    once: Annotated[bool, typer.Option("--once", help="Give the tour, check each step, and end.")] = False,
    port: Annotated[int, typer.Option(help="The proxy's port; another if it is taken.")] = 6432,
    http_port: Annotated[int, typer.Option(help="The port of metrics and health.")] = 9432,
    directory: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Keep the data there; without it nothing is kept.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Start a PostgreSQL with a replica and the proxy in front of it, to try things.

    \b
    Examples:
      pgsluice demo
      pgsluice demo --once
      pgsluice demo --directory ./demo --port 7432
    """  # noqa: D301  \b keeps the lines as they are
    with told():
        from proxy.demo import main as show

        raise typer.Exit(show(once, port, http_port, directory, as_json))
