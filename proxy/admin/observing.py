"""Reads the facts of this moment off the objects at work."""

from __future__ import annotations

import asyncio
import time

from proxy.admin.facts import (
    CONSOLE,
    CacheFacts,
    ClientFacts,
    DatabaseFacts,
    Facts,
    Figures,
    HostFacts,
    KeyFacts,
    PoolFacts,
    ServerFacts,
)
from proxy.admin.site import Site
from proxy.session.served import Served
from proxy.session.session import Session
from proxy.session.sessions import Visitor
from proxy.session.state import FOR_SERVER
from proxy.upstream.cluster import Host
from proxy.upstream.pool import TEST_AFTER, Pool
from proxy.upstream.server import LENT, Server

_OF_SOCKETS = frozenset({"clients", "servers", "sockets", "active_sockets"})
_OF_CLIENTS = _OF_SOCKETS | {"pools", "databases", "users", "lists", "pins"}
"""Subjects that show clients and server connections, or count them; the former with their addresses."""

_TOGETHER = 100
"""Clients that are looked at in one piece: some 3 ms of work at the most."""

_NOWHERE = ("", 0)

_BALANCE = {"round_robin": "round-robin"}
"""A way to balance that PgBouncer has too, under its name for it; ours have their own."""


async def facts(site: Site, now: float, subject: str) -> Facts:
    """Return the facts that SHOW `subject` needs, at the monotonic time `now`.

    Thousands of clients are looked at some at a time; who has left meanwhile is left out.
    """
    lead = time.time() - now
    clients: list[ClientFacts] = []
    if subject in _OF_CLIENTS:
        detail = subject in _OF_SOCKETS
        for number, session in enumerate(list(site.gate.sessions.by_pid.values())):
            if not session.ended:
                clients.append(_client(site, session, now, lead, detail))
            if number % _TOGETHER == _TOGETHER - 1:
                await asyncio.sleep(0)
        clients += [_visitor(visitor) for visitor in site.gate.sessions.visitors.values()]
    sessions = site.gate.sessions.by_pid.values()
    held = {session.server: session for session in sessions if session.server is not None}
    return Facts(
        clients=tuple(clients),
        servers=tuple(
            _server(name, pool, server, held.get(server), now, lead)
            for name, served in site.served.items()
            for pool in served.pools.all()
            for server in pool.servers
        )
        if subject in _OF_CLIENTS
        else (),
        pools=tuple(
            _pool(name, served, pool)
            for name, served in site.served.items()
            for pool in served.pools.of_hosts()
        ),
        databases=tuple(_database(site, name, served) for name, served in site.served.items()),
        hosts=tuple(
            _host(name, host) for name, served in site.served.items() for host in served.cluster.hosts
        ),
        keys=tuple(key for name, served in site.served.items() for key in _keys(site, name, served))
        if subject == "keys"
        else (),
        caches=tuple(_cache(name, served) for name, served in site.served.items()),
        console=_of_console(site),
        port=site.config().listen.port,
        logging_in=len(site.gate.logins),
        paused=site.paused,
    )


def figures(site: Site) -> dict[str, Figures]:
    """Return what was done for the clients of each database and of the console, from the start."""
    return {name: _of_database(served) for name, served in site.served.items()} | {CONSOLE: _of_console(site)}


def _of_console(site: Site) -> Figures:
    return Figures(
        xact_count=site.commands,
        query_count=site.commands,
        received=site.received,
        sent=site.sent,
        xact_time=site.command_us,
        query_time=site.command_us,
    )


def _of_database(served: Served) -> Figures:
    pools = served.pools.of_hosts()
    statements = served.database.statements
    return Figures(
        server_assignment_count=sum(pool.stats.assignments for pool in pools),
        xact_count=sum(pool.stats.transactions for pool in pools),
        query_count=sum(each.total() for pool in pools for each in pool.stats.query_time.values()),
        received=sum(pool.stats.bytes_in for pool in pools),
        sent=sum(pool.stats.bytes_out for pool in pools),
        xact_time=sum(pool.stats.transaction_us for pool in pools),
        query_time=sum(each.sum_us for pool in pools for each in pool.stats.query_time.values()),
        wait_time=sum(pool.stats.queue_time.sum_us for pool in pools),
        client_parse_count=statements.client_parses,
        server_parse_count=sum(
            pool.stats.server_parses + sum(server.parses for server in pool.servers) for pool in pools
        ),
        bind_count=statements.binds,
    )


def _client(site: Site, session: Session, now: float, lead: float, detail: bool) -> ClientFacts:
    served = site.served[session.database.name]
    waits = session.waits & FOR_SERVER != 0
    since = session.stranded_since or session.waiting_since
    pool = session.pool
    name = pool.name if pool is not None else _likely_pool(session)
    server = session.server
    local, peer = _sockets(session.transport) if detail else (_NOWHERE, _NOWHERE)
    return ClientFacts(
        id=session.pid,
        user=session.key.id,
        user_id=session.key.user_id,
        database=session.database.name,
        state="waiting" if waits else "active" if server is not None else "idle",
        login=served.pools.login_of(name),
        pool=name,
        host=pool.host if pool is not None else "",
        address=peer[0],
        port=peer[1],
        local_address=local[0],
        local_port=local[1],
        connected_at=session.connected_at,
        request_at=session.active_at + lead if session.active_at else session.connected_at,
        waiting=max(now - since, 0.0) if waits else 0.0,
        link=_ref(pool, server) if pool is not None and server is not None else "",
        tls=_tls(session.transport) if detail else "",
        application_name=session.reported.get(b"application_name", b"").decode("utf-8", "replace"),
        prepared_statements=len(session.statements.named),
        pins=tuple(session.pins) if session.pinned else (),
    )


def _likely_pool(session: Session) -> str:
    """Return the pool that a session would ask first which has not asked any yet."""
    key = session.key
    if key.is_admin:
        return "admin"
    return session.asked_pool or key.default_pool or ("primary" if key.can_write else "readonly")


def _visitor(visitor: Visitor) -> ClientFacts:
    local, peer = _sockets(visitor.transport)
    return ClientFacts(
        id=visitor.pid,
        user=visitor.key.id,
        user_id=visitor.key.user_id,
        database=CONSOLE,
        state="idle" if visitor.idle() else "active",
        login=CONSOLE,
        pool="",
        host="",
        address=peer[0],
        port=peer[1],
        local_address=local[0],
        local_port=local[1],
        connected_at=visitor.connected_at,
        request_at=visitor.active_at,
        tls=_tls(visitor.transport),
        application_name=visitor.reports.get(b"application_name", b"").decode("utf-8", "replace"),
    )


def _server(
    database: str, pool: Pool, server: Server, session: Session | None, now: float, lead: float
) -> ServerFacts:
    local, peer = _sockets(server.transport)
    host, _, port = server.address.rpartition(":")
    if server in pool.errands:
        state = "tested"
    elif server.state == LENT:
        state = "active"
    elif server.cancels > 0:
        state = "being_canceled"
    else:
        state = "used" if now - server.last_used > TEST_AFTER else "idle"
    return ServerFacts(
        ref=_ref(pool, server),
        login=server.login,
        database=database,
        pool=pool.name,
        host=pool.host,
        state=state,
        address=peer[0] or host,
        port=int(port),
        local_address=local[0],
        local_port=local[1],
        connected_at=server.connected_at + lead,
        request_at=(server.begun_at if state == "active" else server.last_used) + lead,
        close_needed=0.0 < server.retire_at <= now,
        pid=server.pid,
        link=f"C{session.pid}" if session is not None else "",
        tls=_tls(server.transport),
        application_name=""
        if session is None
        else session.reported.get(b"application_name", b"").decode("utf-8", "replace"),
        prepared_statements=len(server.statements),
        uses=server.uses,
        cancels=server.cancels,
    )


def _ref(pool: Pool, server: Server) -> str:
    return f"{pool.host}/{server.pid}"


def _pool(database: str, served: Served, pool: Pool) -> PoolFacts:
    limits = pool.limits
    return PoolFacts(
        database=database,
        pool=pool.name,
        host=pool.host,
        login=served.pools.login_of(pool.name),
        minimum=limits.minimum,
        maximum=limits.maximum,
        max_lifetime=limits.max_lifetime,
        opening=pool.opening,
    )


def _database(site: Site, name: str, served: Served) -> DatabaseFacts:
    settings = served.settings
    readonly = settings.pools.get("readonly")
    balance = readonly.balance if readonly is not None and len(settings.hosts) > 1 else ""
    return DatabaseFacts(
        name=name,
        hosts=",".join(host.host for host in settings.hosts),
        port=settings.hosts[0].port,
        database=settings.database,
        pool_mode=settings.pool_mode,
        balance=_BALANCE.get(balance, balance),
        paused=served.cluster.paused,
        disabled=name in site.gate.disabled,
        figures=_of_database(served),
    )


def _host(database: str, host: Host) -> HostFacts:
    pools = host.pools.values()
    return HostFacts(
        database=database,
        host=host.name,
        address=host.address,
        port=host.port,
        role="replica" if host.in_recovery else "primary" if host.is_primary else "unknown",
        up=host.up,
        breaker=host.breaker.state,
        response_time=host.response_time if host.up else None,
        lag=host.lag if host.up and host.in_recovery else None,
        servers=sum(len(pool.servers) for pool in pools),
        idle=sum(pool.idle_count for pool in pools),
        waiting=sum(pool.waiters.length for pool in pools),
        error=host.last_error,
    )


def _keys(site: Site, name: str, served: Served) -> list[KeyFacts]:
    wall = time.time()
    sessions = site.gate.sessions
    console = next(iter(site.served)) == name
    return [
        KeyFacts(
            id=key.id,
            database=name,
            name=key.name,
            user_id=key.user_id,
            permissions=key.permissions_sorted,
            default_pool=key.default_pool,
            rate_limit_per_minute=key.rate_limit_per_minute,
            expires_at=key.expires_at,
            state="active" if key.valid(wall) else "revoked" if 0.0 < key.revoked_at <= wall else "expired",
            clients=sum(each.database.name == name for each in sessions.of_key(key.id))
            + (len(sessions.visitors_of_key(key.id)) if console else 0),
        )
        for key in served.keys.known()
    ]


def _cache(name: str, served: Served) -> CacheFacts:
    intents, statements = served.database.intents, served.database.statements
    results = served.keeping.results
    return CacheFacts(
        database=name,
        hits=intents.hits,
        shape_hits=intents.shape_hits,
        fingerprint_hits=intents.fingerprint_hits,
        misses=intents.misses,
        entries=intents.entries(),
        bytes=intents.held_bytes(),
        prepared=statements.made,
        prepared_shared=statements.shared,
        prepared_bytes=statements.bytes,
        results="off" if served.database.results is None else "on" if results.on else "asked",
        result_hits=results.hits,
        result_stale_hits=results.stale_hits,
        result_misses=results.misses,
        result_waits=results.waits,
        result_stores=results.stores,
        result_evictions=results.evictions,
        result_invalidations=results.invalidations,
        result_entries=len(results.entries),
        result_bytes=results.bytes,
    )


def _sockets(transport: asyncio.Transport) -> tuple[tuple[str, int], tuple[str, int]]:
    """Return address and port of this end and of the other; "" and 0 for a Unix socket."""
    local, peer = transport.get_extra_info("sockname"), transport.get_extra_info("peername")
    return _address(local), _address(peer)


def _address(name: object) -> tuple[str, int]:
    return (str(name[0]), int(name[1])) if isinstance(name, tuple) else ("", 0)


def _tls(transport: asyncio.Transport) -> str:
    """Return version and cipher, "" without TLS."""
    cipher = transport.get_extra_info("cipher")
    return f"{cipher[1]}/{cipher[0]}" if cipher else ""
