"""The three that are compared, each on the same primary: PostgreSQL itself, PgBouncer and pgsluice."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import psutil
import psycopg
import yaml
from psycopg.types.json import Jsonb

from proxy.embedded import Cluster, bundled_bin_dir, free_port, scratch_directory

DATABASE = "bench"
ROLE = "app_ro"
ROWS = 20_000
SCALE = 10
POOL_SIZE = 20
UNLOGGED = "unlogged"


@dataclass
class Rig:
    """One way to the database: where clients connect, and the process between, if there is one."""

    name: str
    port: int
    user: str
    password: str = field(repr=False)
    process: psutil.Process | None = None
    version: str = ""
    prepares: bool = True  # named prepared statements work in transaction mode
    metrics_url: str = ""

    def environment(self) -> dict[str, str]:
        """Return the environment with which libpq's programs connect here."""
        kept = {name: value for name, value in os.environ.items() if not name.startswith("PG")}
        return {
            **kept,
            "PGHOST": "127.0.0.1",
            "PGPORT": str(self.port),
            "PGUSER": self.user,
            "PGPASSWORD": self.password,
            "PGDATABASE": DATABASE,
            "PGSSLMODE": "disable",
            "PGGSSENCMODE": "disable",
        }

    def connect(self) -> psycopg.Connection[tuple[object, ...]]:
        """Open a connection to here."""
        return psycopg.connect(
            host="127.0.0.1",
            port=self.port,
            user=self.user,
            password=self.password,
            dbname=DATABASE,
            sslmode="disable",
            gssencmode="disable",
            autocommit=True,
        )

    def cpu_seconds(self) -> float:
        """Return the CPU time, user and system, that the process between has used, with its workers."""
        if self.process is None:
            return 0.0
        times = [each.cpu_times() for each in (self.process, *self.process.children(recursive=True))]
        return float(sum(each.user + each.system for each in times))

    def resident_bytes(self) -> int:
        """Return the resident memory of the process between, with its workers."""
        if self.process is None:
            return 0
        return sum(each.memory_info().rss for each in (self.process, *self.process.children(recursive=True)))


@contextmanager
def rigs(wanted: list[str], pool_size: int = POOL_SIZE) -> Iterator[tuple[list[Rig], str]]:
    """Start PostgreSQL and what is `wanted` of direct, pgbouncer and pgsluice; stop all of it at the end.

    Gives the rigs, and the superuser's connection URI.
    """
    directory = scratch_directory("pgsluice-bench-")
    try:
        settings = {"max_connections": "300", "shared_buffers": "256MB"}
        with ExitStack() as stack:
            cluster = stack.enter_context(Cluster(directory / "postgresql", replicas=0, settings=settings))
            passwords = _install(cluster)
            makers = {"direct": _direct, "pgbouncer": _pgbouncer, "pgsluice": pgsluice, UNLOGGED: _unlogged}
            running = [
                stack.enter_context(makers[name](cluster, directory, passwords, pool_size)) for name in wanted
            ]
            yield running, cluster.primary.dsn(DATABASE)
    finally:
        shutil.rmtree(directory)


def pgbouncer_program() -> str | None:
    """Return the PgBouncer named by the environment variable PGBOUNCER, else the one on PATH."""
    if named := os.environ.get("PGBOUNCER"):
        return named
    return shutil.which("pgbouncer", path=f"{os.environ.get('PATH', '')}:/usr/sbin:/usr/local/sbin")


def access_log_rows(rig: Rig, superuser: str) -> int:
    """Return how many statements of this rig the access log holds."""
    with psycopg.connect(superuser) as connection:
        row = connection.execute(
            "SELECT count(*) FROM sluice.api_access_logs WHERE event = 'statement' AND key_id = %s",
            (rig.user,),
        ).fetchone()
    return int(row[0]) if row else 0


def _install(cluster: Cluster) -> dict[str, str]:
    """Create the database with our SQL, pgbench's tables and the table of the 20,000-row results."""
    from proxy.setup import setup

    result = setup(cluster.primary.dsn(DATABASE), DATABASE)
    arguments = ["-i", "-q", "-s", str(SCALE), cluster.primary.dsn(DATABASE)]
    subprocess.run([str(bundled_bin_dir() / "pgbench"), *arguments], check=True, capture_output=True)
    with psycopg.connect(cluster.primary.dsn(DATABASE), autocommit=True) as admin:
        admin.execute(
            "CREATE TABLE bench_rows AS SELECT g AS id, 'row number ' || g AS name"
            f" FROM generate_series(1, {ROWS}) g"
        )
        admin.execute("GRANT SELECT ON ALL TABLES IN SCHEMA public TO sluice_readonly, sluice_readwrite")
        admin.execute("VACUUM (ANALYZE, FREEZE)")
        admin.execute("CHECKPOINT")
    return dict(result.passwords)


@contextmanager
def _direct(cluster: Cluster, directory: Path, passwords: dict[str, str], pool_size: int) -> Iterator[Rig]:
    with psycopg.connect(cluster.primary.dsn()) as admin:
        row = admin.execute("SHOW server_version").fetchone()
    version = f"PostgreSQL {row[0]}" if row else ""
    yield Rig("direct", cluster.primary.port, ROLE, passwords[ROLE], version=version)


@contextmanager
def _pgbouncer(cluster: Cluster, directory: Path, passwords: dict[str, str], pool_size: int) -> Iterator[Rig]:
    program = pgbouncer_program()
    if program is None:
        raise SystemExit("PgBouncer is missing: install it, or name it by PGBOUNCER=path")
    said = subprocess.run([program, "--version"], capture_output=True, text=True, check=True).stdout
    found = re.search(r"PgBouncer (\d+)\.(\d+)\S*", said, re.IGNORECASE)
    if found is None:
        raise SystemExit(f"{program} doesn't tell its version: {said!r}")
    prepares = (int(found[1]), int(found[2])) >= (1, 21)
    port = free_port()
    home = directory / "pgbouncer"
    home.mkdir()
    # A verifier, not the password: the password would have it derive SCRAM's keys at each login.
    with psycopg.connect(cluster.primary.dsn()) as admin:
        row = admin.execute("SELECT rolpassword FROM pg_authid WHERE rolname = %s", (ROLE,)).fetchone()
    assert row is not None
    (home / "userlist.txt").write_text(f'"{ROLE}" "{row[0]}"\n')
    login = f"user={ROLE} password={passwords[ROLE]}"
    lines = [
        "[databases]",
        f"{DATABASE} = host=127.0.0.1 port={cluster.primary.port} dbname={DATABASE} {login}",
        "[pgbouncer]",
        "listen_addr = 127.0.0.1",
        f"listen_port = {port}",
        "unix_socket_dir =",
        "auth_type = scram-sha-256",
        f"auth_file = {home / 'userlist.txt'}",
        "pool_mode = transaction",
        f"default_pool_size = {pool_size}",
        "max_client_conn = 5000",
        "max_prepared_statements = 200" if prepares else "",
        f"logfile = {home / 'log'}",
    ]
    (home / "pgbouncer.ini").write_text("\n".join(lines) + "\n")
    for path in (home, *home.iterdir()):
        cluster.account.own(path)
    command = [program, "-q", str(home / "pgbouncer.ini")]
    # PgBouncer refuses to run as root too.
    process = cluster.account.popen(command, home, subprocess.DEVNULL)
    rig = Rig("pgbouncer", port, ROLE, passwords[ROLE], psutil.Process(process.pid), found[0], prepares)
    try:
        _until_it_answers(rig, process, home / "log")
        yield rig
    finally:
        process.kill()
        process.wait()


@contextmanager
def _unlogged(cluster: Cluster, directory: Path, passwords: dict[str, str], pool_size: int) -> Iterator[Rig]:
    """Start pgsluice without its access log, metrics and health: what these cost is the difference."""
    with pgsluice(cluster, directory, passwords, pool_size, UNLOGGED) as rig:
        yield rig


@contextmanager
def pgsluice(
    cluster: Cluster, directory: Path, passwords: dict[str, str], pool_size: int, name: str = "pgsluice"
) -> Iterator[Rig]:
    import proxy

    home = directory / name
    home.mkdir()
    with psycopg.connect(cluster.primary.dsn(DATABASE)) as admin:
        row = admin.execute(
            "SELECT sluice.generate_api_key('benchmark', 'bench@example.com', %s)",
            (Jsonb(["read:tasks", "write:tasks", "read:metrics"]),),
        ).fetchone()
    assert row is not None
    key = str(row[0]["api_key"])

    def pool(user: str, size: int) -> dict[str, object]:
        return {"user": user, "password": passwords[user], "min": 1, "max": size}

    port, http_port = free_port(), free_port()
    configuration = {
        "listen": {"port": port},
        "http": {"port": http_port} if name != UNLOGGED else "off",
        "databases": {
            DATABASE: {
                "database": DATABASE,
                "control": {"user": "sluice_control", "password": passwords["sluice_control"]},
                "hosts": [{"name": "main", "host": "127.0.0.1", "port": cluster.primary.port}],
                "pools": {
                    "primary": pool("app_rw", pool_size),
                    "readonly": pool("app_ro", pool_size),
                    "admin": pool("app_admin", 2),
                },
            }
        },
        "access_log": {
            "sinks": ["table"] if name != UNLOGGED else [],
            "spool_dir": str(home / "spool"),
        },
    }
    (home / "pgsluice.yaml").write_text(yaml.safe_dump(configuration))
    command = [sys.executable, "-m", "proxy", "serve", "-c", str(home / "pgsluice.yaml")]
    with (home / "log").open("wb") as log:
        # A session of its own, as PgBouncer has: the kernel shares the processors out by session (sched_autogroup).
        process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True
        )
    version = f"pgsluice {proxy.__version__}, {'compiled' if proxy.compiled() else 'interpreted'}"
    rig = Rig(name, port, key.rpartition("_")[0], key, psutil.Process(process.pid), version)
    if name != UNLOGGED:
        rig.metrics_url = f"http://127.0.0.1:{http_port}/metrics"
    try:
        _until_it_answers(rig, process, home / "log")
        yield rig
    finally:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _until_it_answers(rig: Rig, process: subprocess.Popen[bytes], log: Path) -> None:
    def answers() -> bool:
        try:
            rig.connect().close()
        except psycopg.OperationalError:
            return False
        return True

    deadline = time.monotonic() + 30
    while not answers():
        if process.poll() is not None or time.monotonic() > deadline:
            said = log.read_text() if log.exists() else ""
            raise SystemExit(f"{rig.name} does not answer\n{said[-4000:]}")
        time.sleep(0.05)
