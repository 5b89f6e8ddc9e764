"""What each drill plays on: servers, the bundled SQL, the proxy, and ways to take servers away and bring them back."""

from __future__ import annotations

import shutil
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

import psutil
from psycopg import sql
from psycopg.types.json import Jsonb

from proxy.embedded import SUPERUSER, Cluster, Server, scratch_directory
from proxy.setup import setup
from tests.drills.relay import Relay
from tests.integration.support import DATABASE, Installation, Login, Proxy, merged, wait_until

# Each server stands in it by its cluster_name, so it stays right whoever is primary.
ANY_STANDBY = 'ANY 1 ("primary", replica1, replica2, replica3)'
_PERMISSIONS = ["read:tasks", "write:tasks"]


@dataclass
class Stage:
    """The servers, the proxy in front of them, and the relays between, where there are any."""

    installation: Installation
    proxy: Proxy
    relays: Mapping[str, Relay] = field(default_factory=dict)

    @property
    def cluster(self) -> Cluster:
        """Return the servers."""
        return self.installation.cluster

    def logins(self, count: int, user: str = "drill") -> list[Login]:
        """Return logins with new keys, each of a user of its own."""
        with self.installation.superuser().connect() as connection:
            rows = connection.execute(
                "SELECT sluice.generate_api_key('drill', %s || '-' || i || '@example.com', %s) ->> 'api_key'"
                " FROM generate_series(1, %s) AS i",
                (user, Jsonb(_PERMISSIONS), count),
            ).fetchall()
        return [self.proxy.login(row[0].rpartition("_")[0], row[0]) for row in rows]

    def rows(self, server: Server | None = None) -> list[tuple[int, int]]:
        """Return session and number of each row that was written, as a server has them; the primary by default."""
        with self.installation.superuser(server).connect() as connection:
            return connection.execute("SELECT session, number FROM public.drill_writes").fetchall()

    def tracebacks(self) -> list[str]:
        """Return the tracebacks in the proxy's log up to now, each with the line before it."""
        return _tracebacks(self.proxy)

    def name(self, port: int) -> str:
        """Return the name of the server with this port."""
        return next((server.name for server in self.cluster.servers if server.port == port), "")


@dataclass(frozen=True)
class Promotion:
    """When a replica was told to be the primary, was it, and had the first standby; monotonic seconds."""

    server: Server
    asked: float
    done: float
    followed: float


@contextmanager
def staged(
    replicas: int,
    tables: Sequence[str],
    settings: Mapping[str, str] | None = None,
    changes: Mapping[str, Any] | None = None,
    relayed: bool = False,
) -> Iterator[Stage]:
    """Start everything, and stop it in the end; `settings` are PostgreSQL's, `changes` the proxy's configuration.

    With `relayed` the proxy reaches each server through a Relay of the server's name. Raises AssertionError if the
    proxy doesn't end well; tracebacks that were in its log before are left to who asked for them.
    """
    directory = scratch_directory("pgsluice-drill-")
    with ExitStack() as stack:
        stack.callback(shutil.rmtree, directory, ignore_errors=True)
        cluster = stack.enter_context(Cluster(directory / "postgresql", replicas, settings or {}))
        installation = Installation(cluster, setup(cluster.primary.dsn(DATABASE), DATABASE).passwords)
        installation.execute(*tables)
        installation.replicated()
        relays: dict[str, Relay] = {}
        if relayed:
            for server in cluster.servers:
                relays[server.name] = Relay(server.port)
                stack.callback(relays[server.name].close)
        proxy = Proxy(installation, directory, merged(_configuration(cluster, relays), changes or {}))
        proxy.start()
        known: list[str] = []
        stack.callback(_stop, proxy, known)
        try:
            yield Stage(installation, proxy, relays)
        finally:
            known += _tracebacks(proxy)


def kill(server: Server) -> tuple[float, float]:
    """Kill a server as a crash would; returns when it was killed, and when nobody was connected to it any more.

    Raises AssertionError if that is not within 10 seconds.
    """
    backends = _backends(server)
    killed = time.monotonic()
    server.kill()
    # Backends notice that their postmaster is gone, and end by themselves.
    wait_until(lambda: not any(map(_lives, backends)), 10.0, "backends end with their postmaster")
    return killed, time.monotonic()


def _backends(server: Server) -> list[psutil.Process]:
    """Return the processes that serve a connection: their titles tell its address."""
    children = psutil.Process(server.pid).children()
    return [child for child in children if "127.0.0.1(" in " ".join(child.cmdline())]


def _lives(process: psutil.Process) -> bool:
    try:
        return process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def most_advanced(installation: Installation, replicas: Sequence[Server]) -> Server:
    """Return the replica that received most: the only one that surely has all that was acknowledged."""
    received: dict[str, int] = {}
    for server in replicas:
        with installation.superuser(server).connect() as connection:
            row = connection.execute("SELECT pg_last_wal_receive_lsn() - '0/0'").fetchone()
        received[server.name] = int(row[0]) if row is not None and row[0] is not None else 0
    return max(replicas, key=lambda server: received[server.name])


def promote(installation: Installation, replica: Server, followers: Sequence[Server] = ()) -> Promotion:
    """Make a replica the primary, and let others follow it; returns when that was done."""
    cluster = installation.cluster
    with installation.superuser(replica).connect() as connection:
        asked = time.monotonic()
        connection.execute("SELECT pg_promote(false)")
        while connection.execute("SELECT pg_is_in_recovery()").fetchone() == (True,):
            time.sleep(0.005)
        done = time.monotonic()
        cluster.succeeds(replica)
        for follower in followers:
            follow(installation, follower, replica)
        streaming = "SELECT count(*) FROM pg_stat_replication WHERE state = 'streaming'"
        if followers:
            wait_until(lambda: connection.execute(streaming).fetchone() == (len(followers),))
        return Promotion(replica, asked, done, time.monotonic())


def pause_replay(installation: Installation, replica: Server) -> None:
    """Let a replica receive and not replay, so that it falls behind."""
    with installation.superuser(replica, "postgres").connect() as connection:
        connection.execute("SELECT pg_wal_replay_pause()")


def resume_replay(installation: Installation, replica: Server) -> None:
    """Let a replica go on replaying."""
    with installation.superuser(replica, "postgres").connect() as connection:
        connection.execute("SELECT pg_wal_replay_resume()")


def follow(installation: Installation, replica: Server, primary: Server) -> None:
    """Point a replica that runs at another primary."""
    password = installation.cluster.password
    where = f"host=127.0.0.1 port={primary.port} user={SUPERUSER} password={password}"
    configure(installation, replica, primary_conninfo=where, primary_slot_name="")


def configure(installation: Installation, server: Server, **settings: str) -> None:
    """Change settings of a server that a reload brings into effect."""
    with installation.superuser(server, "postgres").connect() as connection:
        for name, value in settings.items():
            connection.execute(
                sql.SQL("ALTER SYSTEM SET {} = {}").format(sql.Identifier(name), sql.Literal(value))
            )
        connection.execute("SELECT pg_reload_conf()")


def _stop(proxy: Proxy, known: Sequence[str]) -> None:
    try:
        proxy.stop()
    except AssertionError:
        if proxy.process.returncode or _tracebacks(proxy) != known:
            raise


def _tracebacks(proxy: Proxy) -> list[str]:
    found: list[str] = []
    before = ""
    inside = False
    for line in proxy.errors.read_text(errors="replace").splitlines():
        if line.startswith("Traceback "):
            found.append(before)
            inside = True
        # The last line is the error's own, and doesn't begin with a date as a log's does.
        inside = inside and not line[:4].isdigit()
        if inside:
            found[-1] += f"\n{line}"
        before = line
    return found


def _configuration(cluster: Cluster, relays: Mapping[str, Relay]) -> dict[str, Any]:
    """Return what a drill's proxy has other than the tests': no log on standard output, and relays before the hosts."""
    changes: dict[str, Any] = {"access_log": {"sinks": ["table"]}}
    if relays:
        hosts = [
            {"name": server.name, "host": "127.0.0.1", "port": relays[server.name].port, "role": "auto"}
            for server in cluster.servers
        ]
        changes["databases"] = {DATABASE: {"hosts": hosts}}
    return changes
