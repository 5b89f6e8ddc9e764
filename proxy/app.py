"""The application: the only place that wires objects together, and that starts and ends them.

serve → Proxy.start: probe hosts → read keys and functions → listen
      → SIGTERM: stop accepting → let transactions finish → flush the access log → end
"""

from __future__ import annotations

import asyncio
import gc
import hashlib
import logging
import os
import signal
import socket
import sys
import time
from collections.abc import Callable, Iterable
from pathlib import Path

import uvloop

import proxy
from proxy.admin.console import Console
from proxy.admin.site import Site
from proxy.auth.key import Key
from proxy.board import Board
from proxy.config import (
    Config,
    ConfigError,
    Listen,
    ListenTls,
    from_environment,
    load,
    refuse_unavailable,
)
from proxy.errors import (
    IdleInTransaction,
    IdleSession,
    KeyRevoked,
    QueryTimeout,
    ShuttingDown,
    SluiceError,
    reason,
)
from proxy.http import server as http_server
from proxy.logs import configure
from proxy.observe.destinations import open_access_log
from proxy.observe.healthview import health
from proxy.observe.metrics import Metrics
from proxy.observe.snapshot import (
    CacheSnapshot,
    HostSnapshot,
    ParseCacheSnapshot,
    PoolSnapshot,
    ResultCacheSnapshot,
    Snapshot,
    SpoolSnapshot,
)
from proxy.observe.stats import ProxyStats
from proxy.session.arrival import admit
from proxy.session.cancel import cancel_held, cancel_server, cancel_session
from proxy.session.gate import Gate
from proxy.session.served import Served
from proxy.session.session import Session
from proxy.session.sessions import Sessions, Visitor
from proxy.tasks import spawn, stop
from proxy.transport import tcp
from proxy.transport.tls import ListenerTls, TlsError
from proxy.upstream.server import Server

log = logging.getLogger(__name__)

# Sections that are read once.
_RESTART = ("http", "auth", "identity", "access_log")

_SWEEP = 0.25
_DRAIN_STEP = 0.05
_CLOSE_LOG = 5.0


def run(config_path: Path | None) -> int:
    """Run the proxy with the configuration at `config_path`, or with the environment's; returns the exit code."""
    config = refuse_unavailable(_read(config_path))
    configure(config.logging)
    uvloop.run(serve(config, config_path))
    return 0


def _read(config_path: Path | None) -> Config:
    return load(config_path, os.environ) if config_path is not None else from_environment(os.environ)


async def serve(config: Config, config_path: Path | None = None) -> None:
    """Run the proxy until SIGTERM or SIGINT, then drain; SIGHUP reads the configuration again."""
    instance = Proxy(config)
    ending = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, ending.set)

    def reload() -> None:
        try:
            instance.reload(refuse_unavailable(_read(config_path)))
        except ConfigError as error:
            log.error("reload refused, the old configuration stays: %s", error)

    loop.add_signal_handler(signal.SIGHUP, reload)
    instance.read = lambda: refuse_unavailable(_read(config_path))
    instance.end = ending.set
    await instance.start()
    # Everything that lives as long as the process is taken out of the collector's sight; what a query makes
    # is freed by its reference count.
    gc.collect()
    gc.freeze()
    gc.set_threshold(100_000, 50, 50)
    await ending.wait()
    await instance.drain()


class Proxy:
    """One process: its listeners, databases and background work."""

    def __init__(self, config: Config) -> None:
        self._config = self._latest = config
        self.draining = False
        # What the console's RELOAD and SHUTDOWN need: read the configuration anew; end the process.
        self.read: Callable[[], Config] = lambda: config
        self.end: Callable[[], None] = lambda: None
        self.access_log = open_access_log(config.access_log, self._copy_access_log)
        buffer = self.access_log.buffer
        self.stats = ProxyStats()
        self.served = {
            name: Served(name, settings, config, buffer, self.stats)
            for name, settings in config.databases.items()
        }
        self.sessions = Sessions(_cancel_abandoned)
        self.gate = Gate(
            databases={name: served.database for name, served in self.served.items()},
            keys={name: served.keys for name, served in self.served.items()},
            methods=list(config.auth.methods),
            auth_timeout=config.listen.auth_timeout,
            max_clients=config.listen.max_clients,
            mock_secret=_mock_secret(config),
            sessions=self.sessions,
            cancel=self._cancel,
            stats=self.stats,
        )
        self._console = Console(
            Site(
                self.served,
                self.gate,
                buffer,
                config,
                latest=lambda: self._latest,
                reload=lambda: self.reload(self.read()),
                shutdown=self._shut_down,
            )
        )
        self.gate.console = self._console.enter
        self._leaving: asyncio.Task[None] | None = None
        self._tls = _listener_tls(config.listen.tls)
        self._listeners: list[tcp.Acceptor] = []
        self._http: http_server.HttpServer | None = None
        self._board: Board | None = None
        self._sweeper: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Start everything; the port is opened last."""
        for served in self.served.values():
            served.keys.on_change = self._key_changed
            await served.start()
        self.access_log.start()
        self._sweeper = spawn(self._sweep(), "sweep sessions")
        if self._config.http is not None:
            metrics = Metrics(self.snapshot)
            self._board = board = Board(self.snapshot, self.served, self.access_log, self.stats)
            board.start()
            self._http = await http_server.start(
                self._config.http.host,
                self._config.http.port,
                metrics.render,
                self.ready,
                self.health,
                board.access,
                board.tell,
            )
        await self._listen()

    async def drain(self) -> None:
        """Stop accepting, end idle sessions, give transactions drain_timeout to finish, then end."""
        self._close_door()
        log.info("draining: %d sessions", len(self.sessions))
        deadline = time.monotonic() + self._config.listen.drain_timeout
        while len(self.sessions) and time.monotonic() < deadline:
            for name, served in self.served.items():
                served.keys.recheck(
                    {
                        session.key.id
                        for session in self.sessions.by_pid.values()
                        if session.database.name == name
                    }
                )
            for served in self.served.values():
                served.cluster.refuse_parked(ShuttingDown())
            for client in self.sessions.clients():
                if client.idle():
                    client.fatal(ShuttingDown())
            await asyncio.sleep(_DRAIN_STEP)
        for client in self.sessions.clients():
            client.fatal(ShuttingDown())
        for login in list(self.gate.logins):
            login.end(ShuttingDown())
        await stop(self._sweeper, self._leaving)
        if self._board is not None:
            await self._board.stop()
        for served in self.served.values():
            await served.stop()
        await self.access_log.close(_CLOSE_LOG)
        for served in self.served.values():
            await served.close_control()
        if self._http is not None:
            await self._http.close()
        log.info("drained")

    def _shut_down(self, wait_for_clients: bool) -> None:
        """Drain as on SIGTERM; or only once all clients but those of the console have left, however long that takes."""
        if not wait_for_clients:
            self.end()
        elif self._leaving is None:
            self._close_door()
            self._leaving = spawn(self._leave(), "wait for all clients to leave")

    def _close_door(self) -> None:
        self.draining = self.gate.draining = True
        for listener in self._listeners:
            listener.close()
        self._listeners = []

    async def _leave(self) -> None:
        while self.sessions.by_pid or self.gate.logins:
            await asyncio.sleep(_DRAIN_STEP)
        self.end()

    def reload(self, config: Config) -> list[str]:
        """Take over what can change while clients are connected: pools' limits, timeouts, the log.

        Hosts, logins and ports need a restart; where they differ, the log says so. Returns where that is.
        """
        self._latest = config
        configure(config.logging)
        self.access_log.reopen()
        self._reload_tls(config.listen.tls)
        changed = ["listen"] if _without_tls(config.listen) != _without_tls(self._config.listen) else []
        changed += [
            section for section in _RESTART if _fixed(config, section) != _fixed(self._config, section)
        ]
        changed += sorted(config.databases.keys() ^ self.served.keys())
        for served in self.served.values():
            served.watch_slow(config.access_log.slow_query)
        for name, settings in config.databases.items():
            if name in self.served and not self.served[name].reload(settings):
                changed.append(name)
        if changed:
            log.warning("reload: a restart is needed for what changed in: %s", ", ".join(changed))
        log.info("configuration read again")
        return changed

    def _reload_tls(self, settings: ListenTls) -> None:
        """Read certificate and key again, for clients to come; those who are there keep theirs."""
        try:
            self._tls = _listener_tls(settings)
        except TlsError as error:
            log.error("clients get the certificate they got before: %s", error)

    def ready(self) -> bool:
        """Tell whether clients can be served."""
        if self.draining or not self._listeners:
            return False
        return all(served.ready() for served in self.served.values())

    def health(self) -> dict[str, object]:
        """Return what is known of hosts and pools, for /health."""
        return health(self.snapshot())

    def snapshot(self) -> Snapshot:
        """Return the facts of this moment, for the metrics."""
        pools = [
            PoolSnapshot(
                database=name,
                pool=pool.name,
                host=pool.host,
                minimum=pool.limits.minimum,
                maximum=pool.limits.maximum,
                active=len(pool.servers) - pool.idle_count - len(pool.errands),
                idle=pool.idle_count,
                waiting=pool.waiters.length,
                stats=pool.stats,
                pinned=pool.pinned,
                busy=pool.opening + len(pool.errands),
                parses=pool.parses(),
                spared=pool.spared(),
            )
            for name, served in self.served.items()
            for pool in served.pools()
        ]
        hosts = [
            HostSnapshot(
                database=name,
                host=host.name,
                role="replica"
                if host.in_recovery
                else "primary"
                if host is served.cluster.primary
                else "unknown",
                connected=host.up,
                breaker=host.breaker.state,
                response_time=host.response_time if host.up else None,
                lag=host.lag if host.up and host.in_recovery else None,
                error=host.last_error,
            )
            for name, served in self.served.items()
            for host in served.cluster.hosts
        ]
        caches = [served.database.intents for served in self.served.values()]
        spool = self.access_log.spool
        return Snapshot(
            version=proxy.__version__,
            compiled=proxy.compiled(),
            ready=self.ready(),
            draining=self.draining,
            clients=len(self.sessions),
            max_clients=self._config.listen.max_clients,
            proxy=self.stats,
            pools=pools,
            hosts=hosts,
            stranded={
                name: served.cluster.stranded.length + served.cluster.parked.length
                for name, served in self.served.items()
            },
            parse_cache=ParseCacheSnapshot(
                hits=sum(cache.hits for cache in caches),
                shape_hits=sum(cache.shape_hits for cache in caches),
                fingerprint_hits=sum(cache.fingerprint_hits for cache in caches),
                misses=sum(cache.misses for cache in caches),
                entries=sum(cache.entries() for cache in caches),
                bytes=sum(cache.held_bytes() for cache in caches),
            ),
            prepared_cache=[
                CacheSnapshot(name, statements.shared, statements.made, statements.entries())
                for name, served in self.served.items()
                for statements in (served.database.statements,)
            ],
            key_cache=[
                CacheSnapshot(name, served.keys.hits, served.keys.misses, served.keys.entries())
                for name, served in self.served.items()
            ],
            result_cache=[
                ResultCacheSnapshot(
                    name,
                    results.hits,
                    results.stale_hits,
                    results.misses,
                    results.waits,
                    results.stores,
                    results.refusals,
                    results.evictions,
                    results.invalidations,
                    len(results.entries),
                    results.bytes,
                    results.max_bytes,
                )
                for name, served in self.served.items()
                if (results := served.database.results) is not None
            ],
            access_log=self.access_log.sinks,
            spool=SpoolSnapshot(spool.rows, spool.bytes, spool.segments, spool.unreadable)
            if spool is not None
            else SpoolSnapshot(),
        )

    async def _listen(self) -> None:
        listen = self._config.listen
        try:
            sockets = await tcp.listening(listen.host, listen.port)
        except OSError as error:
            raise SluiceError(f"cannot listen on {listen.host}:{listen.port}: {reason(error)}") from None
        self._listeners += [tcp.Acceptor(sock, self._accepted) for sock in sockets]
        port = self._listeners[0].port
        if listen.unix_socket_dir is not None:
            path = listen.unix_socket_dir / f".s.PGSQL.{port}"
            try:
                self._listeners.append(tcp.Acceptor(tcp.listening_at(path), self._accepted))
            except OSError as error:
                raise SluiceError(f"cannot listen at {path}: {reason(error)}") from None
        print(f"listening on {listen.host}:{port}", file=sys.stderr, flush=True)

    def _accepted(self, sock: socket.socket) -> None:
        spawn(admit(self.gate, sock, self._tls), "accept")

    async def _cancel(self, pid: int, secret: bytes) -> None:
        stats = self.stats
        stats.cancels += 1
        session = self.sessions.by_pid.get(pid)
        if not await cancel_session(self.sessions, pid, secret):
            stats.cancels_refused += 1
        elif session is not None:
            self.access_log.buffer.event("cancel", time.time(), session.log_part)

    def _key_changed(self, key_id: str, key: Key | None) -> None:
        """End the sessions of a key that was revoked, has expired or may do something else now."""
        if key is None or not key.valid(time.time()):
            self.gate.buckets.pop(key_id, None)
        for session in self.sessions.of_key(key_id):
            same = key is not None and key.valid(time.time()) and key.identity == session.key.identity
            if key is not None and same and key.allows(_address(session)):
                session.key = key
                session.bucket = self.gate.bucket(key)
                session.routed = None
                continue
            self._revoke(session)
        for visitor in self.sessions.visitors_of_key(key_id):
            same = key is not None and key.valid(time.time()) and key.identity == visitor.key.identity
            if key is not None and same and key.allows(_address(visitor)):
                visitor.key = key
            else:
                self._revoke(visitor)

    def _revoke(self, client: Session | Visitor) -> None:
        self.stats.revocations += 1
        self.access_log.buffer.event("revoked", time.time(), client.log_part)
        client.fatal(KeyRevoked())

    async def _sweep(self) -> None:
        """End what takes too long: expired keys, statements, silent transactions."""
        while True:
            due = time.monotonic() + _SWEEP
            await asyncio.sleep(_SWEEP)
            now = time.monotonic()
            self.stats.loop_delay.observe(int((now - due) * 1e6))
            wall = time.time()
            self._console.tick(now)
            self._look_after_visitors(wall)
            for name, served in self.served.items():
                sessions = [
                    session for session in self.sessions.by_pid.values() if session.database.name == name
                ]
                served.keys.recheck({session.key.id for session in sessions})
                for session in sessions:
                    session.note_usage()
                    if not session.key.valid(wall):
                        self._key_changed(session.key.id, None)
                    elif session.stalled(now, served.idle_in_transaction):
                        session.fatal(IdleInTransaction())
                    elif session.silent(now, served.client_idle):
                        session.fatal(IdleSession())
                    elif (server := session.overdue(now, served.query_timeout)) is not None:
                        if session.pool is not None:
                            spawn(cancel_held(server, session.pool), "cancel a statement over its timeout")
                    elif session.defies(now, served.query_timeout):
                        # The server heeds no cancel: a function may catch it, a COPY waits for its client.
                        session.fatal(QueryTimeout(extra=f"query_timeout={served.query_timeout:g}s"))

    def _look_after_visitors(self, wall: float) -> None:
        """End visitors of the console whose key has run out; their keys are those of the first database."""
        visitors = list(self.sessions.visitors.values())
        next(iter(self.served.values())).keys.recheck({visitor.key.id for visitor in visitors})
        for visitor in visitors:
            if not visitor.key.valid(wall):
                self._key_changed(visitor.key.id, None)

    async def _copy_access_log(self, payload: Iterable[memoryview], again: bool) -> None:
        await next(iter(self.served.values())).access_table.write(payload, again)


def _cancel_abandoned(server: Server) -> None:
    spawn(cancel_server(server), "cancel an abandoned query")


def _address(client: Session | Visitor) -> str:
    """Return where a client comes from; "" for a Unix socket."""
    peer = client.transport.get_extra_info("peername")
    return peer[0] if isinstance(peer, tuple) else ""


def _listener_tls(settings: ListenTls) -> ListenerTls | None:
    return ListenerTls(settings) if settings.mode != "off" else None


def _fixed(config: Config, section: str) -> object:
    """Return what a reload can't take over of a section."""
    value = getattr(config, section)
    return value.model_dump(exclude={"slow_query"}) if section == "access_log" else value


def _without_tls(listen: Listen) -> dict[str, object]:
    return listen.model_dump(exclude={"tls"})


def _mock_secret(config: Config) -> bytes:
    """Return a secret that restarts and workers share: it derives from the passwords in the configuration."""
    secrets = [
        pool.password.get_secret_value()
        for database in config.databases.values()
        for pool in database.pools.values()
    ]
    return hashlib.sha256("\0".join(["pgsluice mock authentication", *secrets]).encode()).digest()
