"""Logins, the installed database and the proxy as a subprocess, as the integration tests need them."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import asyncpg
import psutil
import psycopg
import yaml
from psycopg.types.json import Jsonb

from proxy.embedded import SUPERUSER, Cluster, Server, bundled_bin_dir, free_port

DATABASE = "app"
# Where Debian and its relatives put the versions beside each other; older ones than 15 are not supported.
DEBIAN = {
    path.parent.name: path
    for path in sorted(Path("/usr/lib/postgresql").glob("*/bin"))
    if (path / "initdb").exists() and int(path.parent.name) >= 15
}


T = TypeVar("T")


def wait_until(condition: Callable[[], T], timeout: float = 15.0, message: str = "") -> T:
    """Return the first truthy result of `condition`, asked every 20 ms for at most `timeout` seconds."""
    deadline = time.monotonic() + timeout
    while not (result := condition()):
        if time.monotonic() > deadline:
            raise AssertionError(f"not within {timeout:.0f} s: {message or condition}")
        time.sleep(0.02)
    return result


async def soon(condition: Callable[[], T], timeout: float = 15.0, message: str = "") -> T:
    """Do the same as `wait_until` without holding up the event loop."""
    return await asyncio.to_thread(wait_until, condition, timeout, message)


@dataclass(frozen=True)
class Login:
    """Where and as whom a client connects."""

    host: str
    port: int
    user: str
    password: str = field(repr=False)
    database: str = DATABASE

    def connect(self, **options: Any) -> psycopg.Connection[Any]:
        """Open a psycopg connection; in autocommit mode unless told otherwise."""
        return psycopg.connect(**{"autocommit": True, **self._parameters(), **options})

    async def aconnect(self, **options: Any) -> psycopg.AsyncConnection[Any]:
        """Open an asynchronous psycopg connection; in autocommit mode unless told otherwise."""
        return await psycopg.AsyncConnection.connect(**{"autocommit": True, **self._parameters(), **options})

    @asynccontextmanager
    async def asyncpg(self, **options: Any) -> AsyncIterator[asyncpg.Connection[asyncpg.Record]]:
        """Open an asyncpg connection for the time of a `with` block."""
        connection = await asyncpg.connect(**{**self.for_asyncpg(), **options})
        try:
            yield connection
            await connection.close()
        finally:
            connection.terminate()

    def for_asyncpg(self) -> dict[str, Any]:
        """Return the arguments of asyncpg's connect and create_pool."""
        return {
            "host": self.host,
            "port": self.port,
            "user": self.user,
            "password": self.password,
            "database": self.database,
            "ssl": False,
        }

    def run(
        self, program: str, *arguments: str, script: str | None = None, timeout: float = 60.0
    ) -> subprocess.CompletedProcess[str]:
        """Run one of PostgreSQL's client programs on this login."""
        return subprocess.run(
            [str(bundled_bin_dir() / program), *arguments],
            input=script,
            capture_output=True,
            text=True,
            timeout=timeout,
            env=self._environment(),
        )

    def psql(self, script: str, *arguments: str) -> subprocess.CompletedProcess[str]:
        """Give psql a script on its standard input."""
        return self.run("psql", "-X", *arguments, script=script)

    def psql_start(self, *arguments: str) -> subprocess.Popen[str]:
        """Start psql with pipes on all three of its streams."""
        return subprocess.Popen(
            [str(bundled_bin_dir() / "psql"), "-X", *arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=self._environment(),
        )

    def _parameters(self) -> dict[str, Any]:
        return {
            "host": self.host,
            "port": self.port,
            "user": self.user,
            "password": self.password,
            "dbname": self.database,
            "connect_timeout": 20,
        }

    def _environment(self) -> dict[str, str]:
        kept = {name: value for name, value in os.environ.items() if not name.startswith(("PG", "LC_"))}
        return {
            **kept,
            "LC_ALL": "C",
            "PGHOST": self.host,
            "PGPORT": str(self.port),
            "PGUSER": self.user,
            "PGPASSWORD": self.password,
            "PGDATABASE": self.database,
            "PGCONNECT_TIMEOUT": "20",
        }


@dataclass(frozen=True)
class Installation:
    """The bundled SQL in database `app` of a cluster, and the passwords of its pool roles."""

    cluster: Cluster
    passwords: Mapping[str, str]

    def role(self, name: str, server: Server | None = None) -> Login:
        """Return the login of one of the pool roles, on the primary unless told otherwise."""
        port = (server or self.cluster.primary).port
        return Login("127.0.0.1", port, name, self.passwords[name])

    def superuser(self, server: Server | None = None, database: str = DATABASE) -> Login:
        """Return the superuser's login, which passes by the proxy."""
        port = (server or self.cluster.primary).port
        return Login("127.0.0.1", port, SUPERUSER, self.cluster.password, database)

    def replicated(self) -> None:
        """Wait until each replica has replayed what the primary has written up to now."""
        with self.superuser().connect() as primary:
            written = _value(primary, "SELECT pg_current_wal_insert_lsn()::text")
        for server in self.cluster.replicas:
            # Database `app` may not have arrived there yet.
            with self.superuser(server, "postgres").connect() as replica:
                wait_until(
                    lambda: _value(replica, "SELECT pg_last_wal_replay_lsn() >= %s::pg_lsn", written),
                    message="the replica replays what was written",
                )

    def generate_key(self, user: str, permissions: list[str]) -> tuple[str, str]:
        """Make an API key of `user`, return its id and the whole key."""
        with self.superuser().connect() as connection:
            made = _value(
                connection,
                "SELECT sluice.generate_api_key('a test''s key', %s, %s)",
                user,
                Jsonb(permissions),
            )
        key: str = made["api_key"]
        return key.rpartition("_")[0], key

    def execute(self, *statements: str) -> None:
        """Run statements as the superuser on the primary, each in its own transaction."""
        with self.superuser().connect() as connection:
            for statement in statements:
                connection.execute(statement)


class Proxy:
    """`python -m proxy serve` on free ports, with a configuration of its own."""

    def __init__(
        self, installation: Installation, directory: Path, changes: Mapping[str, Any] | None = None
    ) -> None:
        self.installation = installation
        self.port = own_port()
        self.http_port = own_port()
        self.config = directory / "pgsluice.yaml"
        self.errors = directory / "stderr"
        self.output = directory / "stdout"
        content = merged(configuration(installation, self.port, self.http_port, directory), changes or {})
        self.config.write_text(yaml.safe_dump(content, sort_keys=False))
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def process(self) -> subprocess.Popen[bytes]:
        """Return the running process."""
        assert self._process is not None
        return self._process

    def start(self) -> None:
        """Start the proxy and wait for the line that says that it listens."""
        with self.errors.open("wb") as errors, self.output.open("wb") as output:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "proxy", "serve", "-c", str(self.config)],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=errors,
            )
        wait_until(
            lambda: self.process.poll() is not None or self.said("listening on"), 60.0, "the proxy listens"
        )
        assert self.process.poll() is None, self.errors.read_text()

    def stop(self, timeout: float = 45.0) -> None:
        """Ask the proxy to end (SIGTERM) and expect that it does so cleanly."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
        try:
            code = self.process.wait(timeout)
        except subprocess.TimeoutExpired:
            self.kill()
            raise
        assert code == 0, f"exit code {code}\n{self.errors.read_text()[-4000:]}"
        assert not self.said("Traceback"), self.errors.read_text()[-8000:]

    def kill(self) -> None:
        """Kill the proxy as a crash would."""
        self.process.kill()
        self.process.wait()

    def said(self, text: str) -> bool:
        """Tell whether the proxy wrote `text` on its standard error."""
        return text in self.errors.read_text(errors="replace")

    def resident_bytes(self) -> int:
        """Return the proxy's resident memory in bytes."""
        return int(psutil.Process(self.process.pid).memory_info().rss)

    def login(self, user: str, password: str) -> Login:
        """Return a login on the proxy's port."""
        return Login("127.0.0.1", self.port, user, password)

    def url(self, path: str) -> str:
        """Return the address of `path` on the proxy's HTTP port."""
        return f"http://127.0.0.1:{self.http_port}{path}"


def own_port() -> int:
    """Return a free port that no other worker of pytest-xdist is given between this look and the bind."""
    worker = int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw"))
    workers = int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1"))
    # Linux gives ports of one parity for port 0.
    while (port := free_port()) // 2 % workers != worker % workers:
        pass
    return port


def configuration(installation: Installation, port: int, http_port: int, directory: Path) -> dict[str, Any]:
    """Return a configuration that leaves at its default what a test has no reason to change."""
    cluster = installation.cluster

    def pool(user: str, **sizes: int) -> dict[str, Any]:
        return {"user": user, "password": installation.passwords[user], **sizes}

    return {
        "listen": {"host": "127.0.0.1", "port": port},
        "http": {"host": "127.0.0.1", "port": http_port},
        "databases": {
            DATABASE: {
                "database": DATABASE,
                "control": pool("sluice_control"),
                "hosts": [
                    {"name": server.name, "host": "127.0.0.1", "port": server.port, "role": "auto"}
                    for server in cluster.servers
                ],
                "pools": {
                    "primary": pool("app_rw", min=2, max=10),
                    "readonly": pool("app_ro", min=1, max=5),
                    "priority": pool("app_rw", min=1, max=3),
                    "background": pool("app_rw", min=1, max=2),
                    "admin": pool("app_admin", min=0, max=4),
                },
            }
        },
        "access_log": {
            "sinks": ["table", "stdout"],
            "flush_interval": "100ms",
            "spool_dir": str(directory / "spool"),
        },
    }


def merged(base: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """Return `base` with `changes` laid over it, mapping by mapping."""
    result = dict(base)
    for name, value in changes.items():
        below = result.get(name)
        result[name] = (
            merged(below, value) if isinstance(below, dict) and isinstance(value, Mapping) else value
        )
    return result


def _value(connection: psycopg.Connection[Any], statement: str, *arguments: object) -> Any:
    row = connection.execute(statement, arguments).fetchone()
    assert row is not None
    return row[0]
