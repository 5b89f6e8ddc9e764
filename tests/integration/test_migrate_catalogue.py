"""Each bundled migration, applied, rolled back and applied again, leaves the same catalogue."""

from __future__ import annotations

from pathlib import Path

import pytest

from proxy import migrate
from proxy.embedded import Cluster
from proxy.resources import sql_directory
from tests.integration.databases import database, dump, psql, quiet

pytest_plugins = ["tests.integration.versions"]
pytestmark = [pytest.mark.long, pytest.mark.timeout(300)]

BUNDLED = migrate.Migrations()


def test_each_migration_up_down_and_up_leaves_the_same_catalogue(
    empty_cluster: Cluster, tmp_path: Path
) -> None:
    dsn = database(empty_cluster, "app")
    nothing = dump(empty_cluster, "app")
    stages = [nothing]
    order = [step.revision.revision for step in BUNDLED.upgrade(BUNDLED.branches, [])]
    assert set(order) == set(BUNDLED.migrations)

    def up(branch: str) -> list[str]:
        return migrate.up(dsn, [branch], directories=[tmp_path], backup=None, say=quiet)

    def rollback(version: str) -> list[str]:
        return migrate.rollback(dsn, version, directories=[tmp_path], backup=None, say=quiet)

    for revision in order:
        migration = BUNDLED.migrations[revision]
        for file in (migration.path, migration.rollback_path):
            copy = tmp_path / migration.branch / file.name
            copy.parent.mkdir(exist_ok=True)
            copy.write_bytes(file.read_bytes())
        below = f"{migration.branch}_{migration.number - 1:04d}"
        if below not in BUNDLED.migrations:
            below = "base" if revision == order[0] else f"{migration.branch}@base"
        assert up(migration.branch) == [revision]
        made = dump(empty_cluster, "app")
        assert rollback(below) == [revision]
        assert dump(empty_cluster, "app") == stages[-1], f"{revision} and its rollback"
        assert up(migration.branch) == [revision]
        assert dump(empty_cluster, "app") == made, f"{revision} again"
        stages.append(made)

    # All of it at once makes the same, from nothing and back to nothing.
    assert set(rollback("base")) == set(order)
    assert dump(empty_cluster, "app") == nothing
    assert migrate.up(dsn, BUNDLED.branches, backup=None, say=quiet) == order
    assert dump(empty_cluster, "app") == stages[-1]
    assert migrate.validate(dsn, directories=[sql_directory()]) == []


def test_psql_makes_the_same_of_all_that_is_bundled(empty_cluster: Cluster) -> None:
    done, planned = database(empty_cluster, "done"), database(empty_cluster, "planned")
    nothing = dump(empty_cluster, "planned")
    order = migrate.up(done, BUNDLED.branches, backup=None, say=quiet)
    ran = psql(empty_cluster, planned, migrate.plan(planned, BUNDLED.branches))
    assert (ran.returncode, ran.stderr) == (0, "")
    assert dump(empty_cluster, "planned") == dump(empty_cluster, "done")
    assert migrate.validate(planned) == []
    assert set(migrate.rollback(done, "base", backup=None, say=quiet)) == set(order)
    ran = psql(empty_cluster, planned, migrate.plan(planned, version="base"))
    assert ran.returncode == 0, ran.stderr
    assert dump(empty_cluster, "planned") == nothing
