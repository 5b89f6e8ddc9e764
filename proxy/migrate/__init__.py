"""Apply the bundled SQL, and an application's own: plain `.sql` files, each with its rollback, run by Alembic.

A migration is `BRANCH/NNNN_name.sql` with `NNNN_name.rollback.sql` beside it; its revision is `BRANCH_NNNN`.
Within a branch the numbers give the order; a first line `-- depends: BRANCH_NNNN` ties it to another branch.

Each migration, Alembic's version row and the file's checksum commit in one transaction, on one connection,
under an advisory lock. Alembic keeps the graph and the versions; its revisions are made from the files in
memory, so nothing is written beside them.

    files        the migrations that directories hold; making new ones
    graph        their order, by Alembic
    statements   a file's statements, and which of them destroy what a rollback can't bring back
    database     the connection, its lock, and what the role may not do
    checksums    what was applied, and how the files differ from it
    backup       pg_dump before anything is destroyed
    running      up and rollback
    planning     the same as a script for psql
    command      what `pgsluice migrate` prints
"""

from __future__ import annotations

from proxy.migrate.backup import Backup
from proxy.migrate.checksums import Status, status, validate
from proxy.migrate.command import run
from proxy.migrate.errors import MigrationError
from proxy.migrate.files import create
from proxy.migrate.graph import Migrations
from proxy.migrate.planning import plan
from proxy.migrate.progress import Progress, Say
from proxy.migrate.running import rollback, up

__all__ = [
    "Backup",
    "MigrationError",
    "Migrations",
    "Progress",
    "Say",
    "Status",
    "create",
    "plan",
    "rollback",
    "run",
    "status",
    "up",
    "validate",
]
