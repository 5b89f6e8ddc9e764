"""The laws that no input may break, each as a property: whoever sends whatever, in pieces of any size."""

from __future__ import annotations

import asyncio
import logging
import socket
import struct

from hypothesis import assume, given
from hypothesis import strategies as st

from proxy.config.model import HostTls
from proxy.errors import UpstreamUnavailable
from proxy.session.session import Session
from proxy.transport.tls import ServerTls
from proxy.transport.way import Way
from proxy.upstream.login import Login, _LoginProtocol
from proxy.upstream.pool import Pool
from proxy.upstream.server import CLOSED
from proxy.wire.codes import FE_QUERY
from tests.fuzz.grammar import Big, before_login, damaged, from_client, pieces, well_formed
from tests.fuzz.peers import FuzzWorld, Innocent, TolerantBackend, check_bounds
from tests.session.backend import FakeTransport
from tests.session.door import Caller, Door
from tests.session.fakes import Client
from tests.session.frontend import SYNC, fields, message, split

_cuts = st.lists(st.integers(0, 1_000_000), max_size=6)

# Whom it concerns, what is sent in which pieces, and how many messages each server then answers.
_deeds = st.lists(
    st.one_of(
        st.tuples(st.just("send"), st.integers(0, 1), st.lists(from_client, min_size=1, max_size=5), _cuts),
        st.tuples(st.just("send"), st.integers(0, 1), st.lists(from_client, min_size=1, max_size=5), _cuts),
        st.tuples(
            st.sampled_from(
                ("answer", "answer", "settle", "innocent", "vanish", "full", "read", "block", "drain")
            ),
            st.integers(0, 5),
            st.just([]),
            st.just([]),
        ),
    ),
    max_size=16,
)


@given(_deeds)
def hostile_clients(deeds: list[tuple[str, int, list[bytes], list[int]]]) -> None:
    """Two clients that mean harm, beside innocents of the same and of another user."""
    world = FuzzWorld(maximum=4)
    hostile = [world.client("mallory", ("admin", "write:tasks")) for _ in range(2)]
    innocents = [Innocent(world, "mallory"), Innocent(world, "innocent")]
    for deed, which, messages, cuts in deeds:
        client = hostile[which % 2]
        if deed == "send":
            for piece in pieces(b"".join(messages), cuts):
                client.send(piece)
                check_bounds(client)
        elif deed == "answer":
            world.open()
            for backend in world.backends:
                backend.answer(which + 1)
        elif deed == "settle":
            world.settle()
            world.check_all()
        elif deed == "innocent":
            innocents[which % 2].act()
        elif deed == "vanish":
            if not client.closed():
                client.vanish()
            hostile[which % 2] = world.client("mallory", ("admin", "write:tasks"))
        elif client.closed():
            continue
        elif deed == "full":
            client.session.pause_writing()
        elif deed == "read":
            client.session.resume_writing()
        elif deed == "block" and client.session.server is not None:
            client.session.server.pause_writing()
        elif deed == "drain" and client.session.server is not None:
            client.session.server.resume_writing()
    for client in hostile:
        if not client.closed():
            client.session.resume_writing()
        if client.session.server is not None:
            client.session.server.resume_writing()
    world.settle()
    world.check_all()
    for innocent in innocents:
        innocent.act()
    for client in hostile:
        check_output(client)
        if not client.closed():
            client.vanish()
    world.settle()
    world.check_all()
    for innocent in innocents:
        innocent.act()
    for backend in world.backends:
        assert backend.server.state == CLOSED or backend.server.borrower is None
        for ran in backend.ran:
            assert "innocent" not in ran.sql or "hostile" not in ran.sql


def check_output(client: Client) -> None:
    """Check that what a client got is whole messages, nothing of an innocent's, and nothing behind a FATAL."""
    got = split(client.transport.all)
    for at, each in enumerate(got):
        assert b"'innocent" not in each and b"'mallory " not in each
        if each[:1] == b"E" and fields(each)["S"] == "FATAL":
            assert at == len(got) - 1 and client.closed()


@given(st.lists(from_client, min_size=1, max_size=8), _cuts)
def splits_of_a_conversation(messages: list[bytes], cuts: list[int]) -> None:
    """Where the bytes of a conversation are cut makes no difference to anybody."""

    def converse(parts: list[bytes]) -> tuple[list[bytes], bool]:
        world = FuzzWorld()
        client = world.client("mallory", ("admin", "write:tasks"))
        for part in parts:
            client.send(part)
        world.settle()
        world.check_all()
        # An error may be told in other words where it was found sooner.
        return [told(each) for each in split(client.take())], client.closed()

    # What a Sync doesn't end is answered sooner where it is too long to be collected.
    data = b"".join(messages) + SYNC
    assume(not has_long_query_without_end(data))
    whole = converse([data])
    cut = converse(pieces(data, cuts))
    # What breaks the protocol behind an error is skipped, or ends the session if it came before that was found.
    assume(len(data) < 65_536 or not (cut[1] or whole[1]))
    assert cut == whole
    if len(data) < 500:
        assert converse([data[at : at + 1] for at in range(len(data))]) == whole


def has_long_query_without_end(data: bytes) -> bool:
    """Tell whether a Query that may stream lacks its NUL: then it is for the server to say, and this one doesn't."""
    at = 0
    while at + 5 <= len(data):
        length = int.from_bytes(data[at + 1 : at + 5], "big", signed=True)
        end = at + 1 + length
        if length < 4 or end > len(data):
            return False
        if data[at] == FE_QUERY and length > 16_384 and data[end - 1] != 0:
            return True
        at = end
    return False


def told(each: bytes) -> bytes:
    """Return a message; of an ErrorResponse its SQLSTATE alone."""
    return fields(each)["C"].encode() if each[:1] == b"E" else each


# -- before the login


@given(st.lists(before_login, min_size=1, max_size=5), _cuts)
def strangers(messages: list[bytes], cuts: list[int]) -> None:
    """Anything at all before a login: an answer in whole messages, or a closed connection."""
    errors = _Errors()
    logging.getLogger("proxy.session.client").addHandler(errors)
    try:
        asyncio.run(_knock(messages, cuts))
    finally:
        logging.getLogger("proxy.session.client").removeHandler(errors)
    assert not errors.seen, errors.seen


async def _knock(messages: list[bytes], cuts: list[int]) -> None:
    door = Door()
    data = b"".join(messages)
    caller = door.knock()
    for piece in pieces(data, cuts):
        if caller.closed():
            break
        if not isinstance(caller.transport.protocol, Session):
            assert len(caller.login._buffer) <= 65_535 + len(data)
        await caller.say(piece)
    came = caller.transport.all
    while came.startswith(b"N"):
        came = came[1:]
    told = split(came)
    for each in told[:-1]:
        assert each[:1] != b"E" or fields(each)["S"] != "FATAL"
    _leave(caller)
    await caller.hear()
    assert not door.gate.logins and len(door.gate.unproven) == 0 and not len(door.sessions)
    door.world.check()


def _leave(caller: Caller) -> None:
    caller.transport.closed = True
    protocol = caller.transport.protocol or caller.login
    assert hasattr(protocol, "connection_lost")
    protocol.connection_lost(None)


class _Errors(logging.Handler):
    def __init__(self) -> None:
        super().__init__(logging.ERROR)
        self.seen: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.seen.append(logging.Formatter().format(record))


# -- hostile servers


class Liar(TolerantBackend):
    """A server that says something else than PostgreSQL would, once it is told what."""

    lies: list[tuple[str, int, bytes]]

    def deliver(self) -> bool:
        if not self._out or self.transport.paused or self.transport.closed:
            return False
        for how, at, what in self.lies:
            place = at % (len(self._out) + 1)
            if how == "insert":
                self._out.insert(place, what)
            elif how == "drop":
                del self._out[place : place + 1]
            elif how == "twice":
                self._out[place:place] = self._out[place : place + 1]
            elif how == "cut":
                self._out = [b"".join(self._out)[: at % 200]]
        self.lies.clear()
        data, self._out = b"".join(self._out), []
        for piece in pieces(data, [len(data) // 2]):
            if not self.transport.closed:
                self.server.data_received(piece)
        return True


class LyingWorld(FuzzWorld):
    """Servers that lie, but for those of pool `background`."""

    lies: list[tuple[str, int, bytes]]

    def make(self, pool: Pool) -> TolerantBackend:
        if pool.name == "background":
            return TolerantBackend(self, pool, 100 + len(self.backends))
        liar = Liar(self, pool, 100 + len(self.backends))
        liar.lies = self.lies
        return liar


_SAID = (
    message(b"Z", b"I"),
    message(b"Z", b"T"),
    message(b"Z", b"?"),
    message(b"Z"),
    message(b"D", struct.pack("!Hi", 1, 3) + b"lie"),
    message(b"D", struct.pack("!Hi", 9, 99)),
    message(b"T", b"\0\0"),
    message(b"C", b"SELECT 1\0"),
    message(b"C"),
    message(b"1"),
    message(b"2"),
    message(b"3"),
    message(b"n"),
    message(b"s"),
    message(b"I"),
    message(b"t", b"\0\0"),
    message(b"G", b"\0\0\0"),
    message(b"H", b"\0\0\0"),
    message(b"W", b"\0\0\0"),
    message(b"d", b"lie"),
    message(b"c"),
    message(b"E", b"SERROR\0C42501\0Mlie\0\0"),
    message(b"E", b"Mno SQLSTATE\0\0"),
    message(b"E", b"C\0\0"),
    message(b"E"),
    message(b"E", b"SFATAL\0C57P01\0Mlie\0\0"),
    message(b"N", b"SNOTICE\0C00000\0Mlie\0\0"),
    Big(message(b"N", b"x" * 70_000)),
    message(b"S", b"TimeZone\0lie\0"),
    message(b"S", b"lie\0" + b"x" * 1000 + b"\0"),
    message(b"S", b"no end"),
    Big(message(b"S", b"x" * 1_000_000)),
    message(b"A", b"\0\0\0\1lie\0\0"),
    message(b"R", b"\0\0\0\3"),
    message(b"K", b"\0\0\0\1abcd"),
    message(b"v", b"\0\3\0\0\0\0\0\0"),
    b"D\0\0\0\3",
    b"D\xff\xff\xff\xff",
    b"D\x3f\xff\xff\xff",
    b"D\x00\x10\x00\x00\0\1",
    b"T\x7f\xff\xff\xff",
    b"\0\0\0\0\0",
)

lie = st.tuples(
    st.sampled_from(("insert", "insert", "drop", "twice", "cut")),
    st.integers(0, 1000),
    st.one_of(st.sampled_from(_SAID), damaged(st.sampled_from(_SAID)), st.binary(max_size=20)),
)

_events = st.lists(
    st.tuples(
        st.sampled_from(("send", "send", "lie", "lie", "settle", "die", "innocent")),
        well_formed,
        lie,
    ),
    min_size=1,
    max_size=14,
)


@given(_events)
def hostile_servers(events: list[tuple[str, bytes, tuple[str, int, bytes]]]) -> None:
    """Servers that say anything at all: their clients get whole messages or an end, others get only their own."""
    world = LyingWorld(maximum=3)
    world.lies = []
    client = world.client("mallory", ("admin", "write:tasks"))
    clients = [client]
    innocent = Innocent(world, "innocent", "background")
    for event, sent, untruth in events:
        if client.closed():
            client = world.client("mallory", ("admin", "write:tasks"))
            clients.append(client)
        if event == "send":
            client.send(sent)
        elif event == "lie":
            world.lies.append(untruth)
        elif event == "settle":
            world.settle()
        elif event == "die":
            server = client.session.server
            for backend in world.backends:
                if backend.server is server and server is not None:
                    backend.die()
        else:
            innocent.act()
    world.settle()
    for each in clients:
        check_end(each)
        if not each.closed():
            each.vanish()
    world.settle()
    innocent.act()
    for host in world.cluster.hosts:
        for pool in host.pools.values():
            assert pool.size <= pool.limits.maximum and pool.pinned == 0 and pool.waiters.length == 0
            for shelf in pool.idle.values():
                for server in shelf:
                    assert (
                        server.replies.empty and server.borrower is None and chr(server.replies.status) == "I"
                    )
                    assert len(server.replies.parameters) < 1000


def check_end(client: Client) -> None:
    """Check that a FATAL of ours stands between messages, is the last one, and says what it should."""
    data = client.transport.all
    assert b"'innocent" not in data
    at = 0
    while len(data) - at >= 5:
        end = at + 1 + int.from_bytes(data[at + 1 : at + 5], "big")
        if end > len(data):
            break
        at = end
    rest = data[at:]
    assert not rest.endswith(b"\0\0") or b"SFATAL\0VFATAL\0C08006" not in rest, "a FATAL inside of a row"


_login_words = st.lists(
    st.one_of(
        st.builds(
            lambda number, rest: message(b"R", struct.pack("!I", number) + rest),
            st.sampled_from((0, 2, 3, 5, 7, 8, 9, 10, 11, 12, 2**32 - 1)),
            st.one_of(
                st.binary(max_size=20),
                st.sampled_from(
                    (
                        b"SCRAM-SHA-256\0\0",
                        b"r=nonce,s=AAAA,i=4096",
                        b"r=nonce,s=AAAA,i=99999999999",
                        b"r=nonce,s=AAAA,i=-1",
                        b"r=nonce,s=AAAA,i=0",
                        b"r=,s=,i=",
                        b"v=AAAA",
                        b"e=other-error",
                    )
                ),
            ),
        ),
        st.sampled_from(_SAID),
        damaged(st.sampled_from(_SAID)),
        st.binary(max_size=30),
    ),
    min_size=1,
    max_size=8,
)


@given(_login_words, _cuts)
def server_logins(words: list[bytes], cuts: list[int]) -> None:
    """Whatever a server says before its first ReadyForQuery: the login succeeds, waits, or fails with a reason."""
    asyncio.run(_log_in(words, cuts))


async def _log_in(words: list[bytes], cuts: list[int]) -> None:
    login = Login(
        Way("127.0.0.1", 1, ServerTls(HostTls(mode="disable"))), "app", "app_rw", "secret", False, 5.0
    )
    sock = socket.socket()
    protocol = _LoginProtocol(login, sock)
    sock.close()
    transport = FakeTransport()
    protocol.connection_made(transport)
    for piece in pieces(b"".join(words), cuts):
        protocol.data_received(piece)
    protocol.connection_lost(None)
    done = protocol._done
    assert done.done()
    failure = done.exception()
    assert failure is None or isinstance(failure, UpstreamUnavailable), failure
    assert len(protocol._parameters) < 1000
    for written in transport.writes:
        assert b"secret" not in written or written == message(b"p", b"secret\0")


TARGETS = (
    hostile_clients,
    splits_of_a_conversation,
    strangers,
    hostile_servers,
    server_logins,
)
