"""The order of migrations: Alembic's graph, whose revisions are made in memory from plain SQL files."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Final, cast

from alembic.runtime.migration import MigrationContext, RevisionStep
from alembic.script import Script, ScriptDirectory
from alembic.util import CommandError
from sqlalchemy import Connection

from proxy.migrate.errors import MigrationError
from proxy.migrate.files import CORE, Migration, find
from proxy.resources import sql_directory

VERSIONS: Final = "schema_version"
# Runs a migration forward (True) or back (False).
Execute = Callable[[Migration, bool], None]


class Migrations(ScriptDirectory):
    """Alembic's graph of the migrations that `directories` hold; without any, of the bundled SQL."""

    def __init__(self, directories: Sequence[Path] = ()) -> None:
        places = tuple(directories) or (sql_directory(),)
        self.migrations: Final = {found.revision: found for found in find(places)}
        super().__init__(places[0])
        # What each migration needs right before it: the number below, and what its first line names.
        self.needs: Final[dict[str, tuple[str, ...]]] = {}
        previous: dict[str, str] = {}
        for migration in self.migrations.values():
            before = previous.get(migration.branch)
            depends = migration.depends()
            if before is None and not depends and migration.branch != CORE:
                raise MigrationError(f"{migration.path}: it needs a first line: -- depends: {CORE}_NNNN")
            if unknown := [name for name in depends if name not in self.migrations]:
                raise MigrationError(f"{migration.path}: depends on {unknown[0]}, which doesn't exist")
            self.needs[migration.revision] = (*((before,) if before else ()), *depends)
            previous[migration.branch] = migration.revision

    @property
    def branches(self) -> list[str]:
        """Return the names of the branches, in the order of their directories."""
        return list(dict.fromkeys(each.branch for each in self.migrations.values()))

    def _load_revisions(self) -> Iterator[Script]:
        for revision, migration in self.migrations.items():
            before = [
                each for each in self.needs[revision] if self.migrations[each].branch == migration.branch
            ]
            others = [each for each in self.needs[revision] if each not in before]
            module = ModuleType(revision, migration.name.replace("_", " "))
            vars(module).update(
                revision=revision,
                down_revision=before[0] if before else None,
                branch_labels=None if before else (migration.branch,),
                depends_on=others or None,
                **_steps(migration),
            )
            yield Script(module, revision, migration.path)

    def upgrade(self, branches: Sequence[str], applied: Collection[str]) -> list[RevisionStep]:
        """Return the steps from what is `applied` to the newest migration of each of `branches`."""
        for branch in branches:
            if branch not in self.branches:
                raise MigrationError(f"there is no branch {branch}; there are {', '.join(self.branches)}")
        steps: dict[str, RevisionStep] = {}
        with _refusals():
            for branch in branches:
                for step in self._upgrade_revs(f"{branch}@head", _as_revision(self.ends(applied))):
                    steps.setdefault(step.revision.revision, step)
        return list(steps.values())

    def downgrade(self, version: str, applied: Collection[str]) -> list[RevisionStep]:
        """Return the steps down to `version`, which stays; "base" and "BRANCH@base" leave nothing (of it)."""
        if version == "base" and not applied:
            return []
        branch, _, base = version.rpartition("@")
        if version != "base" and version not in applied and not (base == "base" and branch in self.branches):
            known = ", ".join(applied) or "nothing"
            raise MigrationError(f"{version} isn't applied, so nothing can go back to it; applied: {known}")
        with _refusals():
            return self._downgrade_revs(version, _as_revision(self.ends(applied)))

    def ends(self, applied: Collection[str]) -> tuple[str, ...]:
        """Return those of the `applied` migrations that no other one of them needs.

        The version table holds the same, unless a branch was applied whose files aren't at hand: then it
        tells nothing of what that branch stands on.
        """
        known = [revision for revision in self.migrations if revision in applied]
        needed = {each for revision in known for each in self.needs[revision]}
        return tuple(revision for revision in known if revision not in needed)


def context(
    connection: Connection | None,
    migrations: Migrations | None = None,
    steps: Sequence[RevisionStep] = (),
    **options: object,
) -> MigrationContext:
    """Return Alembic's context for running `steps`, each in a transaction with its version row."""
    options.update(
        script=migrations,
        transaction_per_migration=True,
        version_table=VERSIONS,
        version_table_schema="sluice",
        fn=lambda heads, _: steps,
    )
    return MigrationContext.configure(connection, dialect_name="postgresql", opts=options)


def _as_revision(heads: Sequence[str]) -> str:
    """Return `heads` as Alembic's annotations want them: it passes the same tuple where they say str."""
    return cast(str, tuple(heads))


def _steps(migration: Migration) -> dict[str, Callable[..., None]]:
    """Return the functions that Alembic looks for in a revision's module, and whose names it shows."""

    def upgrade(*, execute: Execute) -> None:
        execute(migration, True)

    def downgrade(*, execute: Execute) -> None:
        execute(migration, False)

    return {"upgrade": upgrade, "downgrade": downgrade}


@contextmanager
def _refusals() -> Iterator[None]:
    """Raise MigrationError for what Alembic refuses: a broken graph."""
    try:
        yield
    except CommandError as problem:
        raise MigrationError(str(problem)) from problem
