"""The migrations that directories hold: `BRANCH/NNNN_name.sql`, each with its rollback."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from proxy.migrate.errors import MigrationError
from proxy.resources import sql_directory

CORE: Final = "core"
# Alembic gives these a meaning of its own.
_RESERVED: Final = {"base", "head", "heads", "current"}
_BRANCH: Final = re.compile(r"[a-z][a-z0-9_]*")
_FILE_NAME: Final = re.compile(r"([a-z][a-z0-9_]*)/(\d{4})_([0-9a-z_]+)\.sql")
_DEPENDS: Final = re.compile(r"-- depends: ([a-z][a-z0-9_]*_\d{4}(?:,? +[a-z][a-z0-9_]*_\d{4})*)\s*\n")

_TEMPLATE: Final = """\
{depends}-- {name}

-- All of this file is one transaction, run with search_path = pg_catalog, pg_temp: write each name with its
-- schema. The role below owns what is made; sluice_readwrite, sluice_readonly and sluice_admin are the clients'.
{schema}SET LOCAL ROLE sluice_owner;

-- CREATE TABLE {branch}.things (
--     id uuid PRIMARY KEY DEFAULT gen_random_uuid(),
--     owner text NOT NULL DEFAULT sluice.current_user_id(),
--     created_at timestamptz NOT NULL DEFAULT now()
-- );
-- GRANT SELECT, INSERT, UPDATE, DELETE ON {branch}.things TO sluice_readwrite;
-- ALTER TABLE {branch}.things ENABLE ROW LEVEL SECURITY, FORCE ROW LEVEL SECURITY;
-- CREATE POLICY own ON {branch}.things TO sluice_readwrite, sluice_readonly
--     USING (owner = (SELECT sluice.current_user_id('read:things')))
--     WITH CHECK (owner = (SELECT sluice.current_user_id('write:things')));
"""
_SCHEMA: Final = """\
-- CREATE SCHEMA {branch} AUTHORIZATION sluice_owner;
-- GRANT USAGE ON SCHEMA {branch} TO authenticated_users;
"""
_ROLLBACK_TEMPLATE: Final = """\
-- Undo: {name}
-- It has to leave the database as it was before {file}; `pgsluice migrate rollback` makes a backup first.

SET LOCAL ROLE sluice_owner;

-- DROP TABLE {branch}.things;
"""


@dataclass(frozen=True)
class Migration:
    """One `.sql` file and its rollback."""

    branch: str
    number: int
    name: str
    path: Path

    @property
    def revision(self) -> str:
        """Return the version that `rollback` takes and `status` shows."""
        return f"{self.branch}_{self.number:04d}"

    @property
    def rollback_path(self) -> Path:
        """Return the file that undoes it."""
        return self.path.with_suffix(".rollback.sql")

    def file(self, forward: bool) -> Path:
        """Return the file to run."""
        return self.path if forward else self.rollback_path

    def text(self, forward: bool = True) -> str:
        """Return the SQL to run."""
        return self.file(forward).read_text(encoding="utf-8")

    def depends(self) -> tuple[str, ...]:
        """Return the revisions of other branches that the first line names."""
        found = _DEPENDS.match(self.text())
        return tuple(re.split(r",? +", found[1])) if found else ()

    def sha256(self) -> str:
        """Return the hexadecimal checksum of the file as it is now."""
        return hashlib.sha256(self.path.read_bytes()).hexdigest()


def find(directories: Sequence[Path]) -> list[Migration]:
    """Return the migrations below `directories`, by branch and number; raises MigrationError."""
    found: list[Migration] = []
    home: dict[str, Path] = {}
    for directory in directories:
        for path in sorted(directory.glob("*/*.sql")):
            if path.name.endswith(".rollback.sql"):
                continue
            migration = _migration(path)
            if home.setdefault(migration.branch, directory) != directory:
                raise MigrationError(
                    f"{path}: {home[migration.branch]} holds the branch {migration.branch} already"
                )
            if found and found[-1].revision == migration.revision:
                raise MigrationError(f"{path}: there is another migration {migration.revision}")
            found.append(migration)
    return found


def create(name: str, branch: str, *, directories: Sequence[Path] = ()) -> tuple[Path, Path]:
    """Make the two files of a new last migration of `branch`; return their paths.

    They go to the last of `directories`, without any to the bundled SQL of a source tree. Raises
    MigrationError for names that files and versions can't have, and where the bundled SQL is an installed one.
    """
    slug = re.sub(r"[^0-9a-z]+", "_", name.lower()).strip("_")
    if not slug:
        raise MigrationError(f"a migration's name needs letters or digits, not {name!r}")
    _check_branch(branch, branch)
    where = directories or (sql_directory(),)
    if where[-1] == sql_directory() and where[-1].name == "_sql":
        raise MigrationError("the bundled SQL is not yours to add to: name a --directory of your own")
    where[-1].mkdir(parents=True, exist_ok=True)
    others = find(where)
    folder = where[-1] / branch
    if any(each.branch == branch and each.path.parent != folder for each in others):
        raise MigrationError(f"the branch {branch} is bundled: give your own another name, by --branch")
    folder.mkdir(exist_ok=True)
    number = 1 + max((each.number for each in others if each.branch == branch), default=0)
    path = folder / f"{number:04d}_{slug}.sql"
    base = [each.revision for each in others if each.branch == CORE]
    first = number == 1 and branch != CORE
    depends = f"-- depends: {base[-1]}\n" if first and base else ""
    schema = _SCHEMA.format(branch=branch) if first else ""
    facts = {"name": " ".join(name.split()), "branch": "sluice" if branch == CORE else branch}
    made = path, path.with_suffix(".rollback.sql")
    made[0].write_text(_TEMPLATE.format(depends=depends, schema=schema, **facts), encoding="utf-8")
    made[1].write_text(_ROLLBACK_TEMPLATE.format(file=path.name, **facts), encoding="utf-8")
    return made


def _migration(path: Path) -> Migration:
    name = _FILE_NAME.fullmatch(f"{path.parent.name}/{path.name}")
    if name is None:
        raise MigrationError(f"{path}: a migration is called BRANCH/NNNN_name.sql, in lower case")
    _check_branch(name[1], str(path))
    migration = Migration(name[1], int(name[2]), name[3], path)
    if not migration.rollback_path.exists():
        raise MigrationError(f"{path}: its rollback, {migration.rollback_path.name}, is missing")
    return migration


def _check_branch(branch: str, place: str) -> None:
    if branch in _RESERVED or not _BRANCH.fullmatch(branch):
        raise MigrationError(f"{place}: a branch has a name of a-z, 0-9 and _, and is none of {_RESERVED}")
