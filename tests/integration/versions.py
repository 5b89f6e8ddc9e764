"""A plugin of fixtures: the bundled SQL on each PostgreSQL that this machine has, beside the wheel's."""

from __future__ import annotations

import shutil
from collections.abc import Iterator

import psycopg
import pytest
from psycopg import sql

from proxy.embedded import Cluster, scratch_directory
from proxy.setup import setup
from tests.integration.support import DATABASE, DEBIAN, Installation

WHEEL = "wheel"


@pytest.fixture(scope="session", params=[WHEEL, *DEBIAN])
def installed(request: pytest.FixtureRequest) -> Iterator[Installation]:
    """Give the bundled SQL in database `app` of a primary and a replica, once for each PostgreSQL."""
    if request.param == WHEEL:
        yield request.getfixturevalue("installation")
        return
    directory = scratch_directory(f"pgsluice-{request.param}-")
    try:
        with Cluster(directory, bin_dir=DEBIAN[request.param]) as cluster:
            made = Installation(cluster, setup(cluster.primary.dsn(DATABASE), DATABASE).passwords)
            made.replicated()
            yield made
    finally:
        shutil.rmtree(directory)


@pytest.fixture(scope="session", params=[WHEEL, *DEBIAN])
def bare_cluster(request: pytest.FixtureRequest) -> Iterator[Cluster]:
    """Give a primary of each PostgreSQL, apart from that of the other tests: for `empty_cluster`."""
    directory = scratch_directory("pgsluice-empty-")
    try:
        with Cluster(directory, replicas=0, bin_dir=DEBIAN.get(request.param)) as cluster:
            yield cluster
    finally:
        shutil.rmtree(directory)


@pytest.fixture
def empty_cluster(bare_cluster: Cluster) -> Iterator[Cluster]:
    """Give a primary of each PostgreSQL with no database and no role but its own."""
    yield bare_cluster
    with psycopg.connect(bare_cluster.primary.dsn(), autocommit=True) as superuser:
        for what, query in (
            ("DATABASE {} WITH (FORCE)", "SELECT datname FROM pg_database WHERE oid >= 16384"),
            # Who made the others goes last: what it granted depends on it.
            ("ROLE {}", "SELECT rolname FROM pg_roles WHERE oid >= 16384 ORDER BY rolcreaterole, 1"),
        ):
            for row in superuser.execute(query.encode()).fetchall():
                superuser.execute(sql.SQL("DROP " + what).format(sql.Identifier(row[0])))
