"""Explain where SQL goes, as `pgsluice route` prints it: with PostgreSQL's own functions, or a database's."""

from __future__ import annotations

import asyncio

from proxy.config import Config, Database
from proxy.config.model import Routing
from proxy.errors import SluiceError, UpstreamUnavailable
from proxy.query import explain as pure
from proxy.query.functions import SNAPSHOT_QUERY, FunctionCatalog
from proxy.tunnel import way_to
from proxy.upstream.control import Control


def explain(sql: str, config: Config | None, name: str | None, *, each: bool) -> list[dict[str, object]]:
    """Return a description of `sql` as one message, or of each of its statements if `each`.

    With `config` the functions are those of its database `name`, or of its first one. Raises SluiceError
    where there is no such database, UpstreamUnavailable where it can't be reached.
    """
    if config is None:
        unknown = "it is none of PostgreSQL's own; -c FILE asks a database what it does"
        catalog = FunctionCatalog.builtin()
        return pure.explain(sql, catalog, Routing().max_parse_bytes, each=each, unknown=unknown)
    names = list(config.databases)
    if name is not None and name not in names:
        raise SluiceError(f"the configuration has no database {name}; it has {', '.join(names)}")
    database = config.databases[name or names[0]]
    return pure.explain(sql, asyncio.run(_catalog(database)), database.routing.max_parse_bytes, each=each)


async def _catalog(database: Database) -> FunctionCatalog:
    login = database.control or database.pools["readonly"]
    failure = UpstreamUnavailable()
    for host in database.hosts:
        control = Control(
            way_to(host),
            database.database or "postgres",
            login.user,
            login.password.get_secret_value(),
            database.pool_defaults.connect_timeout,
        )
        try:
            async with control.connection() as connection:
                rows = await connection.fetch(SNAPSHOT_QUERY)
        except UpstreamUnavailable as error:
            failure = error
            continue
        finally:
            await control.close()
        functions = [(row[0], row[1], row[2]) for row in rows]
        return FunctionCatalog.from_rows(functions, database.routing.safe_functions)
    raise failure
