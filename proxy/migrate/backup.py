"""A backup by pg_dump, made before anything is destroyed."""

from __future__ import annotations

import os
import re
import subprocess
import time
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import psycopg
from psycopg.conninfo import conninfo_to_dict, make_conninfo

from proxy.migrate.errors import MigrationError
from proxy.migrate.progress import Progress

_SKIP = "--no-backup goes on without one"


@dataclass(frozen=True)
class Backup:
    """Where backups go, and the program that makes them: a path, or a name that PATH finds."""

    directory: Path = Path()
    pg_dump: str = "pg_dump"

    def check(self, connection: psycopg.Connection[Any]) -> None:
        """Raise MigrationError unless there is a pg_dump that can read this server.

        pg_dump reads servers of its own major version and older ones (manual, pg_dump, "Notes").
        """
        server = connection.info.server_version
        try:
            said = subprocess.run([self.pg_dump, "--version"], capture_output=True, text=True).stdout
        except OSError as problem:
            raise MigrationError(
                f"a backup needs pg_dump {server // 10000} or newer, and {self.pg_dump} can't be run"
                f" ({problem.strerror}): install PostgreSQL's client programs, or name it by --pg-dump; {_SKIP}"
            ) from problem
        version = re.search(r"\) (\d+)(\S*)", said)
        if version is None:
            raise MigrationError(f"{self.pg_dump} doesn't tell a version, so it is no pg_dump; {_SKIP}")
        if int(version[1]) < server // 10000:
            raise MigrationError(
                f"{self.pg_dump} is version {version[1]}{version[2]}, and can't read the server, which is"
                f" {server // 10000}.{server % 10000}: name a newer one by --pg-dump; {_SKIP}"
            )

    def take(self, dsn: str, connection: psycopg.Connection[Any], progress: Progress) -> Path:
        """Write the whole database to a new file of mode 600, for pg_restore; return its path.

        Raises MigrationError, and leaves no file then. Passwords go by the environment: others can read a
        command line.
        """
        started = time.monotonic()
        parameters = _parameters(dsn, connection)
        password = connection.info.password
        path = self._path(connection.info.dbname)
        # Whatever kills us, nothing unfinished bears a backup's name.
        unfinished = path.with_name(f"{path.name}.partial")
        command = [
            self.pg_dump,
            "--format=custom",
            "--no-password",
            "--dbname",
            make_conninfo("", **parameters),
        ]
        progress.at_work(f"backup to {path}")
        try:
            file = os.open(unfinished, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        except OSError as problem:
            raise MigrationError(
                f"cannot write the backup {path}: {problem.strerror}; name another --backup-directory"
            ) from problem
        try:
            ended = subprocess.run(
                command,
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=subprocess.PIPE,
                env={**os.environ, **({"PGPASSWORD": password} if password else {})},
            )
            os.fsync(file)
        except BaseException:
            unfinished.unlink()
            raise
        finally:
            os.close(file)
        if ended.returncode:
            unfinished.unlink()
            raise MigrationError(_failure(self.pg_dump, ended.stderr.decode(errors="replace").strip()))
        unfinished.rename(path)
        seconds = time.monotonic() - started
        progress.backup = path
        progress.say(f"backup written to {path} ({path.stat().st_size:,} bytes, {seconds:.1f} s)")
        return path

    def _path(self, database: str) -> Path:
        name = re.sub(r"[^0-9A-Za-z_.-]+", "_", database)
        return (self.directory / f"{name}-{datetime.now(UTC):%Y%m%dT%H%M%S%fZ}.dump").absolute()


def _parameters(dsn: str, connection: psycopg.Connection[Any]) -> dict[str, Any]:
    """Return how to reach the very server that `connection` is on, without its password."""
    info = connection.info
    # A choice among several hosts was made already.
    made = ("password", "hostaddr", "target_session_attrs", "load_balance_hosts")
    given = {name: value for name, value in conninfo_to_dict(dsn).items() if name not in made}
    if "sslpassword" in given:
        raise MigrationError(
            f"pg_dump can be given sslpassword in its command line only, where others may read it; {_SKIP}"
        )
    address = {"hostaddr": info.hostaddr} if info.hostaddr and not info.host.startswith("/") else {}
    return {
        **given,
        **address,
        "host": info.host,
        "port": info.port,
        "user": info.user,
        "dbname": info.dbname,
        "application_name": "pgsluice migrate backup",
    }


def _failure(program: str, said: str) -> str:
    text = f"{program} made no backup: {said}"
    if "row-level security" in said:
        text += "\nA backup needs a role that sees every row: a superuser's, or one with BYPASSRLS."
    return f"{text}\n{_SKIP}"
