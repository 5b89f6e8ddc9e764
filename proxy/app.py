"""The application: the only place that wires objects together, and that starts and ends them."""

from __future__ import annotations

import asyncio
import hashlib
import logging
import socket
import time
from collections.abc import Callable, Iterable
from typing import Any

from proxy.admin.console import Console
from proxy.admin.site import Site
from proxy.auth.shared_limits import SharedLimits
from proxy.board import Board
from proxy.config import Config, Database, Http, ListenTls
from proxy.errors import ShuttingDown, SluiceError, reason
from proxy.http import server as http_server
from proxy.observe.destinations import open_access_log
from proxy.observe.healthview import health
from proxy.observe.metrics import Metrics
from proxy.observe.snapshot import Snapshot
from proxy.observe.stats import ProxyStats
from proxy.processes.inherited import Place
from proxy.processes.peers import Handler, PeerError, Peers
from proxy.processes.runtime import Runtime
from proxy.processes.shares import share_of
from proxy.processes.sockets import HTTP, Sockets
from proxy.reloading import Reloading
from proxy.session.arrival import admit
from proxy.session.cancel import cancel_server
from proxy.session.gate import Gate
from proxy.session.served import Served
from proxy.session.sessions import Sessions, worker_of
from proxy.snapshots import take
from proxy.tasks import spawn, stop
from proxy.transport import tcp
from proxy.transport.tls import ListenerTls
from proxy.upkeep import Upkeep
from proxy.upstream.server import Server
from proxy.whole import Whole

log = logging.getLogger(__name__)

_DRAIN_STEP = 0.05
_CLOSE_LOG = 5.0


class Proxy:
    """One process: its listeners, databases and background work."""

    def __init__(self, config: Config, place: Place = Place(), sockets: Sockets | None = None) -> None:  # noqa: B008
        # That of the whole; the limits that hold here are this worker's part.
        self._config = config
        part = share_of(config, place)
        self.place = place
        self._whole: Whole | None = None
        self.sockets = sockets or Sockets()
        self._peers: Peers | None = None
        self.draining = False
        self._retired = False
        self._hurried = False
        # What the console's RELOAD and SHUTDOWN need: read the configuration anew; end the process.
        self.read: Callable[[], Config] = lambda: config
        self.end: Callable[[], None] = lambda: None
        self.access_log = open_access_log(config.access_log, self._copy_access_log)
        buffer = self.access_log.buffer
        self.stats = ProxyStats()
        self.served = {name: self._serve(name, settings, part) for name, settings in part.databases.items()}
        self.sessions = Sessions(_cancel_abandoned, place.number)
        self.gate = Gate(
            databases={name: served.database for name, served in self.served.items()},
            keys={name: served.keys for name, served in self.served.items()},
            methods=list(config.auth.methods),
            auth_timeout=config.listen.auth_timeout,
            max_clients=part.listen.max_clients,
            mock_secret=_mock_secret(config),
            sessions=self.sessions,
            cancel=self._cancel,
            stats=self.stats,
        )
        store = config.auth.rate_limit_store
        if store is not None:
            # Imported where it is used: it takes 30 ms and 15 MB.
            from proxy.auth.permits import PermitStore

            self.gate.permits = PermitStore(store.get_secret_value())
        self._site = Site(
            self.served,
            self.gate,
            buffer,
            config=lambda: self._config,
            reload=self.reload,
            shutdown=self._shut_down,
        )
        self._console = Console(self._site)
        self.gate.console = self._console.enter
        self._upkeep = Upkeep(self.served, self.gate, buffer, self._console.tick)
        self._reloading = Reloading(
            self.served,
            self.gate,
            self.access_log,
            self._serve,
            mock_secret=_mock_secret,
            share=lambda config: share_of(config, place),
        )
        self._leaving: asyncio.Task[None] | None = None
        self._tls = _listener_tls(config.listen.tls)
        self._listeners: list[tcp.Acceptor] = []
        self._http: http_server.HttpServer | None = None
        self._board: Board | None = None
        self._keeper: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Start everything; the port is opened last."""
        await self.prepare()
        await self.open_door()

    async def prepare(self) -> None:
        """Find out what there is to know of hosts and keys, and keep it current; no client is taken yet."""
        for served in self.served.values():
            await served.start()
        self.access_log.start()
        self._keeper = spawn(self._upkeep.run(), "look after clients")

    async def until_ready(self) -> None:
        """Wait until each database can be served, or until the end."""
        while not all(served.ready() for served in self.served.values()) and not self._hurried:
            await asyncio.sleep(_DRAIN_STEP)

    async def open_door(self) -> None:
        """Take clients, and serve HTTP."""
        http = self._config.http if self.place.is_first else None
        http_sockets = await self._http_sockets(http) if http is not None else []
        listen = self._config.listen
        sockets = await self.sockets.postgres(listen.host, listen.port, listen.unix_socket_dir)
        self.sockets.close_others()
        for sock in sockets:
            tcp.listen(sock)
        self._listeners = [tcp.Acceptor(sock, self._accepted) for sock in sockets]
        if http is not None:
            await self._serve_http(http, http_sockets)

    @property
    def addresses(self) -> list[str]:
        """Return where clients are taken."""
        return [listener.address for listener in self._listeners]

    async def meet(self, runtime: Runtime) -> None:
        """Answer the other processes that meet there; raises SluiceError."""
        self._peers = Peers(runtime, self.place.number)
        handlers: dict[str, Handler] = {"cancel": self._cancel_for_peer, "blocked": self._tell_blocked}
        if self.place.workers > 1:
            self.gate.limits = SharedLimits(runtime.limits)
            self._whole = whole = Whole(
                self.place, self._peers, self._site, self._take_snapshot, self._read_batch
            )
            self._site.others = whole
            handlers |= whole.handlers
            if not self.place.is_first:
                self.access_log.on_batch = whole.pass_on
        try:
            self.access_log.share_lines(runtime.directory)
        except OSError as error:
            raise SluiceError(f"{runtime.directory}: {reason(error)}") from None
        await self._peers.listen(handlers)
        if self._whole is not None:
            await self._whole.follow()

    async def retire(self) -> None:
        """Take no more clients, for another process does; let those who are here go on for drain_timeout."""
        # Who asks by HTTP meanwhile is told of the proxy, which goes on.
        self._retired = True
        self._close_door()
        await self._close_http()
        for served in self.served.values():
            served.pools.retire()
        log.info("another process takes new clients; %d sessions go on here", len(self.sessions))
        deadline = time.monotonic() + self._config.listen.drain_timeout
        while (len(self.sessions) or self.gate.logins) and time.monotonic() < deadline and not self._hurried:
            await asyncio.sleep(_DRAIN_STEP)

    @property
    def blocked(self) -> str:
        """Return why another process can't take over now, "" where it can."""
        paused = [name for name, served in self.served.items() if served.cluster.paused]
        return f"{', '.join(paused)} is paused, and a new process wouldn't be: RESUME first" if paused else ""

    def hurry(self) -> None:
        """Let nobody go on any longer: the drain begins."""
        self._hurried = True

    async def drain(self) -> None:
        """Stop accepting, end idle sessions, give transactions drain_timeout to finish, then end."""
        self.draining = self.gate.draining = True
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
        await stop(self._keeper, self._leaving)
        if self._board is not None:
            await self._board.stop()
        for served in self.served.values():
            await served.stop()
        await self._reloading.stop()
        await self.access_log.close(_CLOSE_LOG)
        for served in self.served.values():
            await served.close_control()
        await self._close_http()
        if self._peers is not None:
            await self._peers.close()
        if self.gate.permits is not None:
            await self.gate.permits.close()
        log.info("drained")

    def _shut_down(self, wait_for_clients: bool) -> None:
        """Drain as on SIGTERM; or only once all clients but those of the console have left, however long that takes."""
        if not wait_for_clients:
            self.end()
        elif self._leaving is None:
            self.draining = self.gate.draining = True
            self._close_door()
            self._leaving = spawn(self._leave(), "wait for all clients to leave")

    def _close_door(self) -> None:
        for listener in self._listeners:
            listener.close()
        self._listeners = []
        self.sockets.close()

    async def _leave(self) -> None:
        while self.sessions.by_pid or self.gate.logins:
            await asyncio.sleep(_DRAIN_STEP)
        self.end()

    async def reload(self) -> list[str]:
        """Read the configuration again and take it over, or nothing of it; returns the keys that need a restart.

        Raises SluiceError where it can't be taken over; the log says so too.
        """
        async with self._reloading.turn:
            try:
                return await self._reloading.take_over(self._config, self.read(), self._switched)
            except SluiceError as error:
                log.error("reload refused, the old configuration stays: %s", error)
                raise

    def _switched(self, config: Config, tls: ListenerTls | None) -> None:
        self._config = config
        self._tls = tls
        if self._board is not None:
            self._board.serve(self.served)

    def _serve(self, name: str, settings: Database, config: Config) -> Served:
        served = Served(
            name, settings, config, self.access_log.buffer, self.stats, is_first=self.place.is_first
        )
        served.keys.on_change = lambda key_id, key: self._upkeep.key_changed(key_id, key)
        return served

    def ready(self) -> bool:
        """Tell whether clients can be served, by every worker."""
        return self.snapshot().ready if self._whole is not None else self._is_ready()

    def _is_ready(self) -> bool:
        if self.draining or not (self._listeners or self._retired):
            return False
        return all(served.ready() for served in self.served.values())

    def health(self) -> dict[str, object]:
        """Return what is known of hosts and pools, for /health."""
        return health(self.snapshot())

    def snapshot(self) -> Snapshot:
        """Return the facts of this moment, for the metrics: those of all workers, as far as they were asked."""
        return self._whole.snapshot() if self._whole is not None else self._take_snapshot()

    def _take_snapshot(self) -> Snapshot:
        return take(self.served, self.gate, self.access_log, self._is_ready())

    async def _http_sockets(self, settings: Http) -> list[socket.socket]:
        sockets = await self.sockets.http(settings.host, settings.port)
        if not sockets:
            sockets = await http_server.listen(settings.host, settings.port)
            self.sockets.use(HTTP, sockets)
        return sockets

    async def _serve_http(self, settings: Http, sockets: list[socket.socket]) -> None:
        metrics = Metrics(self.snapshot)
        refresh = self._whole.refresh if self._whole is not None else None
        self._board = board = Board(self.snapshot, self.served, self.access_log, self.stats, refresh)
        board.start()
        self._http = await http_server.start(
            settings.host,
            settings.port,
            metrics.render,
            self.ready,
            self.health,
            board.access,
            board.tell,
            sockets,
            refresh,
            board.api(self.gate, settings) if settings.api else None,
        )

    async def _close_http(self) -> None:
        if self._http is not None:
            await self._http.close()
            self._http = None

    def _accepted(self, sock: socket.socket) -> None:
        spawn(admit(self.gate, sock, self._tls), "accept")

    async def _cancel(self, pid: int, secret: bytes) -> None:
        """Cancel what a client does, here or in the process that its process id names."""
        number = worker_of(pid)
        if self._peers is None or number == self.place.number:
            await self._upkeep.cancel(pid, secret)
            return
        try:
            await self._peers.ask(number, "cancel", {"pid": pid, "secret": secret.hex()})
        except PeerError:
            # A number that nobody has: the answer is the same as to a wrong secret.
            self.stats.cancels += 1
            self.stats.cancels_refused += 1

    async def _tell_blocked(self, question: dict[str, Any], data: bytes) -> str:
        return self.blocked

    def _read_batch(self, rows: bytes, number: int, events: list[int]) -> None:
        if self._board is not None:
            self._board.read(rows, number, events)

    async def _cancel_for_peer(self, question: dict[str, Any], data: bytes) -> None:
        await self._upkeep.cancel(int(question["pid"]), bytes.fromhex(question["secret"]))

    async def _copy_access_log(self, payload: Iterable[memoryview], again: bool) -> None:
        await next(iter(self.served.values())).access_table.write(payload, again)


def _cancel_abandoned(server: Server) -> None:
    spawn(cancel_server(server), "cancel an abandoned query")


def _listener_tls(settings: ListenTls) -> ListenerTls | None:
    return ListenerTls(settings) if settings.mode != "off" else None


def _mock_secret(config: Config) -> bytes:
    """Return a secret that restarts and workers share: it derives from the passwords in the configuration."""
    secrets = [
        pool.password.get_secret_value()
        for database in config.databases.values()
        for pool in database.pools.values()
    ]
    return hashlib.sha256("\0".join(["pgsluice mock authentication", *secrets]).encode()).digest()
