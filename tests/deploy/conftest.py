"""Programs of Debian's package prometheus, which `tests/deploy/install` brings, and a proxy of these tests' own."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from proxy.embedded import Cluster
from proxy.setup import setup
from tests.integration.support import DATABASE, Installation, Proxy


@pytest.fixture(scope="session")
def promtool() -> str:
    """Give the program's path; without it these tests fail, for nothing would be looked at."""
    return _program("promtool")


@pytest.fixture(scope="session")
def prometheus() -> str:
    """Give the program's path."""
    return _program("prometheus")


def _program(name: str) -> str:
    path = shutil.which(name)
    assert path is not None, f"there is no {name}: run tests/deploy/install"
    return path


@pytest.fixture(scope="session")
def installation(cluster: Cluster) -> Installation:
    """Install the bundled SQL in database `app`."""
    installed = Installation(cluster, setup(cluster.primary.dsn(DATABASE), DATABASE).passwords)
    installed.replicated()
    return installed


@pytest.fixture
def proxy(installation: Installation) -> Iterator[Proxy]:
    """Give a proxy; stopping must end with exit code 0."""
    directory = Path(tempfile.mkdtemp(prefix="pgsluice-proxy-"))
    running = Proxy(installation, directory)
    running.start()
    yield running
    running.stop()
    shutil.rmtree(directory)
