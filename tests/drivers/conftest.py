"""A proxy with small pools, interfering clients, each driver's program run once, and the matrix at the end."""

from __future__ import annotations

import json
import re
import shutil
import tempfile
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path

import pytest

from proxy.embedded import Cluster
from proxy.setup import setup
from tests.drivers import matrix, running
from tests.drivers.noise import Noise
from tests.drivers.registry import DRIVERS, ROOT, Driver
from tests.drivers.running import Outcome
from tests.integration.support import DATABASE, Installation, Login, Proxy

# Fewer connections than any program has sessions, so that connections change hands.
SMALL_POOLS = {"primary": {"min": 1, "max": 3}, "readonly": {"min": 1, "max": 3}}

OUTCOMES = pytest.StashKey[dict[str, Outcome]]()


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--json", metavar="FILE", help="write the drivers' matrix there")
    parser.addoption("--readme", action="store_true", help="put the drivers' matrix into the README")


def pytest_configure(config: pytest.Config) -> None:
    config.stash[OUTCOMES] = {}


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave out, with --direct, what a single PostgreSQL has no second host for, or no console."""
    if config.getoption("--direct"):
        about_the_proxy = [
            item for item in items if item.name.endswith("-replica]") or item.path.name == "test_exporter.py"
        ]
        config.hook.pytest_deselected(items=about_the_proxy)
        items[:] = [item for item in items if item not in about_the_proxy]


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    """Print the matrix, and write it where the command line says."""
    outcomes = config.stash[OUTCOMES]
    rows = [(driver, outcomes[driver.name]) for driver in DRIVERS if driver.name in outcomes]
    if not rows:
        return
    terminalreporter.section("drivers")
    terminalreporter.write_line(matrix.as_text(rows))
    if (path := config.getoption("--json", None)) is not None:
        Path(path).write_text(json.dumps(matrix.as_data(rows), indent=2, ensure_ascii=False) + "\n")
    if config.getoption("--readme", False):
        matrix.into_readme(rows, ROOT / "README.md")


@pytest.fixture(scope="session")
def installation(cluster: Cluster) -> Installation:
    """Install the bundled SQL in database `app`."""
    installed = Installation(cluster, setup(cluster.primary.dsn(DATABASE), DATABASE).passwords)
    installed.replicated()
    return installed


@pytest.fixture(scope="session")
def proxy(installation: Installation) -> Iterator[Proxy]:
    """Give a proxy with small pools; stopping must end with exit code 0."""
    directory = Path(tempfile.mkdtemp(prefix="pgsluice-proxy-"))
    running = Proxy(installation, directory, {"databases": {DATABASE: {"pools": SMALL_POOLS}}})
    running.start()
    yield running
    running.stop()
    shutil.rmtree(directory)


@pytest.fixture(scope="session")
def outcome(request: pytest.FixtureRequest, installation: Installation) -> Callable[[Driver], Outcome]:
    """Give a function that runs a driver's program, amid noise, the first time that it is asked."""
    direct = request.config.getoption("--direct")
    permissions = ["read:tasks", "write:tasks"]

    def login(user: str) -> Login:
        if direct:
            return installation.role("app_rw")
        proxy: Proxy = request.getfixturevalue("proxy")
        return proxy.login(*installation.generate_key(user, permissions))

    @cache
    def once(driver: Driver) -> Outcome:
        table = "drivers_" + re.sub(r"\W+", "_", driver.name.lower())
        installation.execute(
            f"CREATE TABLE public.{table} (id integer PRIMARY KEY, note text, number integer DEFAULT 0)",
            f"INSERT INTO public.{table} VALUES (0, 'zero', 0)",
            f"GRANT SELECT, INSERT, UPDATE, DELETE ON public.{table} TO sluice_readwrite",
            f"GRANT SELECT ON public.{table} TO sluice_readonly",
        )
        installation.replicated()
        own = login("driver@example.com")
        with Noise(own, login("noise@example.com")) as noise:
            result = running.run(driver, own, table)
        assert noise.units > 0, "the interfering clients didn't get to work"
        assert not noise.trouble, f"the interfering clients: {noise.trouble[:3]}"
        request.config.stash[OUTCOMES][driver.name] = result
        return result

    return once
