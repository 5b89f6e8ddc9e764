"""What would run, as a script for psql."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path

from proxy.migrate.checksums import applied, bookkeeping
from proxy.migrate.database import LOCK, SETTINGS, connected
from proxy.migrate.files import Migration
from proxy.migrate.graph import VERSIONS, Migrations, context
from proxy.migrate.progress import Progress, quiet
from proxy.migrate.running import refuse_disorder, refuse_rollback

# Given to psql with another database, or again, the script must stop before it does anything.
_HEADER = """\
-- pgsluice migrate: for psql, and for a database where {state} is applied
\\set ON_ERROR_STOP on
SET client_encoding = 'UTF8';
DO $$
DECLARE
    found text[];
BEGIN
    PERFORM pg_catalog.pg_advisory_lock({lock});
    IF pg_catalog.to_regclass('sluice.{versions}') IS NOT NULL THEN
        EXECUTE 'SELECT array_agg(version_num::text ORDER BY version_num::text COLLATE "C") FROM sluice.{versions}'
            INTO found;
    END IF;
    IF coalesce(found, '{{}}') <> '{{{heads}}}' THEN
        RAISE EXCEPTION 'this script was made for a database in another state (% is applied)', found;
    END IF;
    -- Of a rollback that was cut short an empty table may be left.
    IF found IS NULL AND pg_catalog.to_regclass('sluice.{versions}') IS NOT NULL THEN
        DROP TABLE sluice.{versions};
    END IF;
END
$$;
"""


def plan(
    dsn: str,
    branches: Sequence[str] = ("core",),
    version: str = "",
    *,
    directories: Sequence[Path] = (),
) -> str:
    """Return the script that does what `up`, or with `version` `rollback`, would do now; change nothing.

    It is "" where nothing is to do. It holds no backup. Raises MigrationError.
    """
    migrations = Migrations(directories)
    with connected(dsn, Progress(quiet)) as connection:
        recorded = applied(connection)
        heads = context(connection).get_current_heads()
    if version:
        refuse_rollback(migrations, recorded)
        steps = migrations.downgrade(version, recorded)
    else:
        refuse_disorder(migrations, recorded)
        steps = migrations.upgrade(branches, recorded)
    if not steps:
        return ""
    text = io.StringIO()
    alembic = context(None, migrations, steps, as_sql=True, output_buffer=text, starting_rev=heads)

    def write(migration: Migration, forward: bool) -> None:
        alembic.impl.static_output(_script(migration, forward))

    alembic.run_migrations(execute=write)
    state = ", ".join(sorted(heads))
    header = _HEADER.format(
        state=state or "nothing", lock=LOCK, versions=VERSIONS, heads=",".join(sorted(heads))
    )
    if not heads:
        header += "CREATE SCHEMA IF NOT EXISTS sluice;\n"
    # Older versions of Alembic write the first of these two themselves.
    gone = f"DROP TABLE IF EXISTS sluice.{VERSIONS};\nDROP SCHEMA IF EXISTS sluice;\n"
    footer = gone if version == "base" else ""
    return f"{header}\n{text.getvalue()}{footer}"


def _script(migration: Migration, forward: bool) -> str:
    booked = f"{bookkeeping(migration, forward)};\n"
    script = migration.text(forward).rstrip()
    # On a line of its own: the last one may be a comment.
    script = f"{SETTINGS};\n\n{script}\n;\nRESET ROLE;\n"
    return f"{script}{booked}" if forward else f"{booked}\n{script}"
