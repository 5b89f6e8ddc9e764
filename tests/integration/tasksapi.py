"""A plugin of fixtures: the HTTP API of a proxy in front of a database with the schema taskmaster."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from proxy.setup import setup
from tests.integration.apis import TASKS, WRITER, Api, TasksProxy
from tests.integration.support import Installation


@pytest.fixture(scope="session")
def tasks_database(installation: Installation) -> str:
    """Set up the database beside `app`; give the superuser's connection string."""
    dsn = installation.cluster.primary.dsn(TASKS)
    setup(dsn, TASKS, ["core", "taskmaster"])
    installation.replicated()
    return dsn


@pytest.fixture(scope="session")
def api(installation: Installation, tasks_database: str) -> Iterator[Api]:
    """Give one API to all tests that don't stop it."""
    directory = Path(tempfile.mkdtemp(prefix="pgsluice-api-"))
    running = TasksProxy(installation, directory)
    running.start()
    yield Api(running, tasks_database)
    running.stop()
    shutil.rmtree(directory)


@pytest.fixture(scope="session")
def ada(api: Api) -> Iterator[httpx.Client]:
    """Give a client of somebody who may read and write."""
    with api.client(api.key()) as client:
        yield client


@pytest.fixture(scope="session")
def ben(api: Api) -> Iterator[httpx.Client]:
    """Give a client of somebody else."""
    with api.client(api.key(user="ben@example.com")) as client:
        yield client


@pytest.fixture(scope="session")
def root(api: Api) -> Iterator[httpx.Client]:
    """Give a client of an administrator."""
    with api.client(api.key("admin", *WRITER, user="root@example.com")) as client:
        yield client
