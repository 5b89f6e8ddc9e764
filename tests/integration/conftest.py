"""The bundled SQL on the cluster, the proxy in front of it, keys, and tables of a test's own."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, Protocol
from uuid import uuid4

import pytest

from proxy.embedded import Cluster
from proxy.setup import setup
from tests.integration.support import DATABASE, DEBIAN, Installation, Login, Proxy

# The wheel's PostgreSQL is built without TLS.
collect_ignore = [] if DEBIAN else ["test_cloudflare.py", "test_tls_servers.py"]

StartProxy = Callable[..., Proxy]


class MakeKey(Protocol):
    def __call__(self, permissions: list[str] = ..., user: str = ...) -> tuple[str, str]: ...


class MakeTable(Protocol):
    def __call__(self, columns: str, rows: str = ...) -> str: ...


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Mark what runs on Debian's PostgreSQL as long; with --direct leave out what asks for the proxy itself.

    The wheel's, a newer version, runs the same tests. pytest tells how many are left out.
    """
    for item in items:
        parameters = getattr(getattr(item, "callspec", None), "params", {})
        if any(parameters.get(fixture) in DEBIAN for fixture in ("installed", "bare_cluster")):
            item.add_marker("long")
    if config.getoption("--direct"):
        about_the_proxy = [item for item in items if {"proxy", "start_proxy"} & set(_fixtures(item))]
        config.hook.pytest_deselected(items=about_the_proxy)
        items[:] = [item for item in items if item not in about_the_proxy]


@pytest.fixture(scope="session")
def installation(cluster: Cluster) -> Installation:
    """Install the bundled SQL in database `app`."""
    result = setup(cluster.primary.dsn(DATABASE), DATABASE)
    installed = Installation(cluster, result.passwords)
    installed.replicated()
    return installed


@pytest.fixture(scope="session")
def proxy(installation: Installation) -> Iterator[Proxy]:
    """Give one proxy to all tests that don't stop it; stopping must end with exit code 0."""
    directory = Path(tempfile.mkdtemp(prefix="pgsluice-proxy-"))
    running = Proxy(installation, directory)
    running.start()
    yield running
    running.stop()
    shutil.rmtree(directory)


@pytest.fixture
def start_proxy(installation: Installation, tmp_path: Path) -> Iterator[StartProxy]:
    """Give a function that starts a proxy for this test alone, with changes to the configuration."""
    started: list[Proxy] = []

    def start(changes: Mapping[str, Any] | None = None) -> Proxy:
        directory = tmp_path / f"proxy{len(started)}"
        directory.mkdir()
        started.append(Proxy(installation, directory, changes))
        started[-1].start()
        return started[-1]

    yield start
    for running in started:
        if running.process.poll() is None:
            running.stop()


@pytest.fixture
def own(start_proxy: StartProxy) -> Proxy:
    """Give a proxy that a test may stop, pause and reconfigure."""
    return start_proxy()


@pytest.fixture(scope="session")
def make_key(installation: Installation) -> MakeKey:
    """Give a function that makes a key and returns its id and the whole key."""

    def make(
        permissions: list[str] = ["read:tasks", "write:tasks"],  # noqa: B006  never changed
        user: str = "tester@example.com",
    ) -> tuple[str, str]:
        return installation.generate_key(user, permissions)

    return make


@pytest.fixture
def operator(own: Proxy, make_key: MakeKey) -> Login:
    """Give the login of an administrator at `own`."""
    return own.login(*make_key(["admin"], "operator@example.com"))


@pytest.fixture
def application(own: Proxy, make_key: MakeKey) -> Login:
    """Give the login of a client that may read and write, at `own`."""
    return own.login(*make_key(["read:tasks", "write:tasks"], "application@example.com"))


@pytest.fixture(scope="session")
def enter(
    request: pytest.FixtureRequest, installation: Installation, make_key: MakeKey
) -> Callable[..., Login]:
    """Give a function that returns a client's login: a key, or with --direct a role of the same rights."""

    def login(role: str, permissions: list[str]) -> Login:
        if request.config.getoption("--direct"):
            return installation.role(role)
        proxy: Proxy = request.getfixturevalue("proxy")
        return proxy.login(*make_key(permissions))

    return login


@pytest.fixture(scope="session")
def writer(enter: Callable[..., Login]) -> Login:
    """Give the login of a client that may read and write."""
    return enter("app_rw", ["read:tasks", "write:tasks"])


@pytest.fixture(scope="session")
def reader(enter: Callable[..., Login]) -> Login:
    """Give the login of a client that may only read."""
    return enter("app_ro", ["read:tasks"])


@pytest.fixture(scope="session")
def admin(enter: Callable[..., Login]) -> Login:
    """Give the login of a client that may create tables."""
    return enter("app_admin", ["admin", "read:tasks", "write:tasks"])


@pytest.fixture
def make_table(installation: Installation) -> Iterator[MakeTable]:
    """Give a function that makes a table, open to readers and writers; gone after the test."""
    made: list[str] = []

    def make(columns: str, rows: str = "") -> str:
        name = f"t_{uuid4().hex[:12]}"
        made.append(name)
        statements = [
            f"CREATE TABLE public.{name} ({columns})",
            f"GRANT SELECT, INSERT, UPDATE, DELETE ON public.{name} TO sluice_readwrite",
            f"GRANT SELECT ON public.{name} TO sluice_readonly",
        ]
        if rows:
            statements.append(f"INSERT INTO public.{name} {rows}")
        installation.execute(*statements)
        installation.replicated()
        return name

    yield make
    installation.execute(
        "SET lock_timeout = '10s'", *(f"DROP TABLE IF EXISTS public.{name}" for name in made)
    )


def _fixtures(item: pytest.Item) -> list[str]:
    return list(getattr(item, "fixturenames", []))
