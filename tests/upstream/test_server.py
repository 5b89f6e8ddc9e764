"""One server connection: its states, what it holds, and what its borrower learns."""

from __future__ import annotations

from proxy.errors import ClientError, UpstreamUnavailable
from proxy.query.cache import IntentCache
from proxy.query.functions import FunctionCatalog
from proxy.query.prepared import Statement, StatementCache
from proxy.upstream.server import CLOSED, FEW_ANSWERS, IDLE, LENT, MAX_STATEMENTS, Borrower, Server
from proxy.wire.messages import close_statement
from proxy.wire.reply import FORWARD, QUERY, SYNC, Reply
from tests.session.backend import FakeTransport
from tests.session.frontend import message

READY = message(b"Z", b"I")


class Watcher(Borrower):
    """Writes down what it learns."""

    def __init__(self) -> None:
        self.learnt: list[str] = []

    def forward(self, data: bytes) -> None:
        self.learnt.append(f"{len(data)} bytes")

    def executed(self, reply: Reply) -> None:
        self.learnt.append("executed")

    def ready(self, now: float) -> None:
        self.learnt.append("ready")

    def lost(self, error: ClientError) -> None:
        self.learnt.append(f"lost: {error.message} ({error.extra})")

    def relieved(self) -> None:
        self.learnt.append("relieved")

    def server_full(self) -> None:
        self.learnt.append("full")

    def server_drained(self) -> None:
        self.learnt.append("drained")


class Rig:
    def __init__(self) -> None:
        self.transport = FakeTransport()
        self.closed: list[Server] = []
        parameters = {b"TimeZone": b"UTC"}
        self.server = Server(
            self.transport, "one:5432", 7, b"secr", parameters, "app", self.closed.append, 1.0
        )
        self.watcher = Watcher()

    def lend(self) -> Server:
        self.server.lend(self.watcher)
        return self.server


def statements(count: int) -> list[Statement]:
    cache = StatementCache()
    intent = IntentCache(FunctionCatalog.builtin(), 100).lookup(b"SELECT 1")
    return [cache.get(b"SELECT %d" % at, b"\0\0", intent, None) for at in range(count)]


def test_lending_and_taking_back_change_its_state() -> None:
    rig = Rig()
    assert rig.server.state == IDLE
    server = rig.lend()
    assert (server.state, server.borrower, server.replies.peer) == (LENT, rig.watcher, rig.watcher)
    server.take_back(9.0)
    assert server.state == IDLE and server.last_used == 9.0 and server.uses == 1
    assert server.borrower is None and server.replies.peer is None


def test_its_borrower_learns_when_nothing_is_owed_any_more() -> None:
    rig = Rig()
    server = rig.lend()
    server.replies.push(Reply(QUERY, FORWARD))
    server.replies.push(Reply(SYNC, FORWARD))
    server.data_received(READY)
    assert rig.watcher.learnt == ["executed", "6 bytes"]
    server.data_received(READY)
    assert rig.watcher.learnt[2:] == ["6 bytes", "ready"]


def test_its_borrower_learns_when_it_is_no_longer_crowded() -> None:
    rig = Rig()
    server = rig.lend()
    for _ in range(FEW_ANSWERS + 1):
        server.replies.push(Reply(SYNC, FORWARD))
    server.crowded = True
    server.data_received(READY)
    assert "relieved" not in rig.watcher.learnt
    server.data_received(READY)
    server.data_received(READY)
    assert rig.watcher.learnt.count("relieved") == 1


def test_its_borrower_learns_of_a_full_socket() -> None:
    rig = Rig()
    rig.server.pause_writing()
    rig.server.resume_writing()
    server = rig.lend()
    server.pause_writing()
    server.resume_writing()
    assert rig.watcher.learnt == ["full", "drained"]


def test_a_lost_connection_is_told_with_the_servers_last_words() -> None:
    rig = Rig()
    server = rig.lend()
    server.data_received(message(b"E", b"SFATAL\0C57P01\0Mshutting down\0\0"))
    server.connection_lost(None)
    assert rig.watcher.learnt[-1] == "lost: connection to one:5432 was lost (shutting down)"
    assert rig.closed == [server] and server.state == CLOSED


def test_it_fails_once() -> None:
    rig = Rig()
    server = rig.lend()
    server.fail(UpstreamUnavailable("gone"))
    server.fail(UpstreamUnavailable("gone"))
    server.close()
    server.connection_lost(None)
    assert rig.closed == [server] and rig.transport.aborted
    assert rig.watcher.learnt == ["lost: gone ()"]


def test_an_idle_connection_says_goodbye() -> None:
    rig = Rig()
    rig.server.close()
    rig.server.close()
    assert rig.transport.writes == [message(b"X")] and rig.closed == [rig.server]


def test_what_no_server_sends_closes_it() -> None:
    rig = Rig()
    server = rig.lend()
    server.data_received(message(b"C", b"SELECT 1\0"))
    assert rig.transport.aborted
    assert rig.watcher.learnt == [
        "lost: server one:5432 broke the protocol (a server sent an answer that nobody asked for)"
    ]


def test_an_end_of_file_closes_it() -> None:
    assert Rig().server.eof_received() is False


def test_reading_pauses_and_goes_on_once() -> None:
    rig = Rig()
    rig.server.pause_reading()
    rig.server.pause_reading()
    paused = [rig.transport.paused]
    rig.server.take_back(1.0)
    paused.append(rig.transport.paused)
    rig.server.close()
    rig.server.pause_reading()
    assert [*paused, rig.transport.paused] == [True, False, False]


def test_it_holds_statements_until_there_are_too_many() -> None:
    rig = Rig()
    server = rig.server
    known = statements(MAX_STATEMENTS + 1)
    for statement in known[:-1]:
        assert not server.holds(statement)
        assert server.hold(statement) == b""
    assert server.holds(known[0]), "it is now the most recently used"
    assert server.hold(known[-1]) == close_statement(known[1].name)
    assert server.replies.length == 1
    assert server.holds(known[0]) and not server.holds(known[1]) and server.holds(known[-1])


def test_a_confirmed_reset_leaves_nothing_of_the_session() -> None:
    server = Rig().server
    (statement,) = statements(1)
    server.hold(statement)
    server.label, server.renew_at, server.unclean = "alice", 5.0, "DO"
    server.unnamed = statement
    server.preludes.add(1)
    server.forget_session()
    assert (server.label, server.renew_at, server.unclean) == ("", 0.0, "")
    assert not server.preludes and not server.holds(statement)
    assert [held for held in (server.unnamed, server.profile) if held is not None] == []


def test_it_remembers_what_it_reported_at_its_login() -> None:
    server = Rig().server
    server.data_received(message(b"S", b"TimeZone\0Asia/Tokyo\0"))
    assert server.replies.parameters[b"TimeZone"] == b"Asia/Tokyo"
    assert server.defaults[b"TimeZone"] == b"UTC"
