"""The application: the only place that wires objects together, and that starts and ends them."""

from __future__ import annotations

import asyncio
import hashlib
import logging
import socket
import sys
import time
from collections.abc import Callable, Iterable

from proxy.admin.console import Console
from proxy.admin.site import Site
from proxy.board import Board
from proxy.config import Config, Listen, ListenTls
from proxy.errors import ShuttingDown, SluiceError, reason
from proxy.http import server as http_server
from proxy.logs import configure
from proxy.observe.destinations import open_access_log
from proxy.observe.healthview import health
from proxy.observe.metrics import Metrics
from proxy.observe.snapshot import Snapshot
from proxy.observe.stats import ProxyStats
from proxy.session.arrival import admit
from proxy.session.cancel import cancel_server
from proxy.session.gate import Gate
from proxy.session.served import Served
from proxy.session.sessions import Sessions
from proxy.snapshots import take
from proxy.tasks import spawn, stop
from proxy.transport import tcp
from proxy.transport.tls import ListenerTls, TlsError
from proxy.upkeep import Upkeep
from proxy.upstream.server import Server

log = logging.getLogger(__name__)

# Sections that are read once.
_RESTART = ("http", "auth", "identity", "access_log")

_DRAIN_STEP = 0.05
_CLOSE_LOG = 5.0


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
        self._upkeep = Upkeep(self.served, self.gate, buffer, self._console.tick)
        self._leaving: asyncio.Task[None] | None = None
        self._tls = _listener_tls(config.listen.tls)
        self._listeners: list[tcp.Acceptor] = []
        self._http: http_server.HttpServer | None = None
        self._board: Board | None = None
        self._sweeper: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Start everything; the port is opened last."""
        for served in self.served.values():
            served.keys.on_change = self._upkeep.key_changed
            await served.start()
        self.access_log.start()
        self._sweeper = spawn(self._upkeep.run(), "look after clients")
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
        return take(self.served, self.gate, self.access_log, self.ready())

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
        await self._upkeep.cancel(pid, secret)

    async def _copy_access_log(self, payload: Iterable[memoryview], again: bool) -> None:
        await next(iter(self.served.values())).access_table.write(payload, again)


def _cancel_abandoned(server: Server) -> None:
    spawn(cancel_server(server), "cancel an abandoned query")


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
