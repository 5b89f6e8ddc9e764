"""The proxy's own statements: a reset, a rollback, a question."""

from __future__ import annotations

import pytest

from proxy.errors import UpstreamUnavailable
from proxy.upstream.errand import Ask, Reset, Rollback
from proxy.upstream.server import CLOSED, LENT, Server
from proxy.wire.messages import query
from tests.session.backend import FakeTransport
from tests.session.frontend import message

IDLE = message(b"Z", b"I")
BEGUN = message(b"Z", b"T")
ERROR = message(b"E", b"SERROR\0C57014\0Mtoo slow\0\0")
ROW = message(b"D", b"\0\1\0\0\0\3one")


def done(tag: str) -> bytes:
    return message(b"C", tag.encode() + b"\0")


class Rig:
    def __init__(self) -> None:
        self.transport = FakeTransport()
        self.returned: list[Server] = []
        parameters = {b"TimeZone": b"UTC"}
        self.server = Server(self.transport, "one:5432", 1, b"", parameters, "app", lambda _: None, 0.0)

    def take(self, server: Server, now: float) -> None:
        self.returned.append(server)


def test_a_reset_discards_all_and_hands_the_connection_on() -> None:
    rig = Rig()
    Reset(rig.server, rig.take).start()
    assert rig.transport.all == query(b"DISCARD ALL") and rig.server.state == LENT
    rig.server.data_received(message(b"S", b"TimeZone\0UTC\0") + done("DISCARD ALL"))
    assert not rig.returned
    rig.server.data_received(IDLE)
    assert rig.returned == [rig.server]


def test_a_reset_that_fails_closes_the_connection() -> None:
    rig = Rig()
    Reset(rig.server, rig.take).start()
    rig.server.data_received(ERROR + IDLE)
    assert not rig.returned and rig.server.state == CLOSED


def test_a_rollback_hands_on_a_connection_that_must_be_reset() -> None:
    rig = Rig()
    Rollback(rig.server, rig.take).start()
    assert rig.transport.all == query(b"ROLLBACK")
    rig.server.data_received(done("ROLLBACK") + IDLE)
    assert rig.returned == [rig.server] and rig.server.unclean == "abandoned transaction"


@pytest.mark.parametrize("answer", [ERROR + IDLE, done("ROLLBACK") + BEGUN])
def test_a_rollback_that_fails_closes_the_connection(answer: bytes) -> None:
    rig = Rig()
    Rollback(rig.server, rig.take).start()
    rig.server.data_received(answer)
    assert not rig.returned and rig.server.state == CLOSED


def test_a_question_gets_rows_and_what_the_server_reports() -> None:
    rig = Rig()
    answers: list[Ask] = []
    ask = Ask(b"SELECT 1", answers.append)
    rig.server.lend(ask)
    ask.granted(rig.server)
    rig.server.data_received(message(b"S", b"TimeZone\0Asia/Tokyo\0") + ROW + ROW + done("SELECT 2") + IDLE)
    assert answers == [ask]
    assert ask.rows == [[b"one"], [b"one"]] and ask.error == "" and ask.failure is None
    assert ask.parameters == {b"TimeZone": b"Asia/Tokyo"}
    assert rig.server.unclean == "errand"


def test_a_question_gets_the_servers_error() -> None:
    rig = Rig()
    ask = Ask(b"SELECT 1", lambda _: None)
    rig.server.lend(ask)
    ask.granted(rig.server)
    rig.server.data_received(ERROR + IDLE)
    assert ask.error == "too slow" and ask.failure is None


def test_a_question_learns_why_there_is_no_answer() -> None:
    answers: list[Ask] = []
    refused, lost = Ask(b"SELECT 1", answers.append), Ask(b"SELECT 1", answers.append)
    error = UpstreamUnavailable()
    refused.refused(error)
    rig = Rig()
    rig.server.lend(lost)
    lost.granted(rig.server)
    rig.server.connection_lost(None)
    assert answers == [refused, lost]
    assert refused.failure is error and isinstance(lost.failure, UpstreamUnavailable)


def test_an_errand_does_not_copy() -> None:
    rig = Rig()
    Reset(rig.server, rig.take).start()
    rig.server.data_received(message(b"G", b"\0\0\0"))
    assert rig.server.state == CLOSED and not rig.returned


def test_an_errand_ignores_what_is_meant_for_clients() -> None:
    rig = Rig()
    reset = Reset(rig.server, rig.take)
    reset.start()
    reset.server_full()
    reset.server_drained()
    rig.server.data_received(message(b"A", b"\0\0\0\1news\0\0") + done("DISCARD ALL") + IDLE)
    assert rig.returned == [rig.server]
