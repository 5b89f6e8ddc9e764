"""Clients that mean harm, against a real process: floods, silence, what is never read, garbage."""

from __future__ import annotations

import socket
import struct
import threading
from collections.abc import Callable

import pytest

from tests.integration.conftest import MakeKey
from tests.integration.raw import Raw
from tests.integration.support import Proxy
from tests.session.frontend import FLUSH, SYNC, bind, execute, kinds, message, parse, query, rows, split

MOST_MEMORY = 150 * 1024 * 1024
STATEMENTS = 100_000


@pytest.mark.long
def test_a_hundred_thousand_statements_with_unread_replies(
    start_proxy: Callable[..., Proxy], make_key: MakeKey
) -> None:
    proxy = start_proxy()
    key = make_key()
    # 22 MB: more than the sockets' buffers between the two take.
    comment = "/*" + "x" * 180 + "*/"
    everything = b"".join(
        query(f"SELECT {number}, repeat('x', 200) {comment}") for number in range(STATEMENTS)
    )
    with Raw(proxy.port).log_in(key) as client:
        sent = client.send_while_taken(everything)
        assert sent < len(everything), "the proxy reads no more from who doesn't read"
        assert proxy.resident_bytes() < MOST_MEMORY
        with proxy.login(*key).connect() as innocent:
            assert innocent.execute("SELECT 'innocent'").fetchone() == ("innocent",)
        rest = threading.Thread(target=client.send, args=(everything[sent:],))
        rest.start()
        for number in range(STATEMENTS):
            answer = split(client.until_ready())
            assert [each[:1] for each in answer] == [b"T", b"D", b"C", b"Z"]
            assert answer[1][11:].startswith(str(number).encode() + b"\0\0\0\xc8x")
        rest.join()
        assert proxy.resident_bytes() < MOST_MEMORY
    proxy.stop()


@pytest.mark.parametrize("begun", [False, True])
def test_a_flood_of_syncs_is_answered_one_by_one(proxy: Proxy, make_key: MakeKey, begun: bool) -> None:
    status = b"T" if begun else b"I"
    with Raw(proxy.port).log_in(make_key()) as client:
        if begun:
            client.ask(query("BEGIN"))
        flood = threading.Thread(target=client.send, args=(SYNC * STATEMENTS,))
        flood.start()
        came = client.until_ready(STATEMENTS)
        flood.join()
        assert came == message(b"Z", status) * STATEMENTS
        assert rows(b"".join(client.ask(query("SELECT 'still here'")))) == ["still here"]


def test_executes_without_a_sync_are_answered_or_wait(proxy: Proxy, make_key: MakeKey) -> None:
    before = proxy.resident_bytes()
    unit = bind("s") + execute()
    with Raw(proxy.port).log_in(make_key()) as client:
        client.ask(parse("s", "SELECT repeat('x', 1000)") + SYNC)
        client.send_while_taken(unit * STATEMENTS + FLUSH)
        assert proxy.resident_bytes() - before < MOST_MEMORY / 2
        with proxy.login(*make_key()).connect() as innocent:
            assert innocent.execute("SELECT 'innocent'").fetchone() == ("innocent",)


def test_silent_connections_of_one_address_keep_nobody_out(
    start_proxy: Callable[..., Proxy], make_key: MakeKey
) -> None:
    proxy = start_proxy({"listen": {"auth_timeout": "40s"}})
    key = make_key()
    silent = [Raw(proxy.port, "127.0.0.2") for _ in range(600)]
    try:
        for each in silent:
            each.send(b"\0\0")
        closed = silent[:100]
        for each in closed:
            assert kinds(each.rest()) == "FATAL:53300"
        with proxy.login(*key).connect() as innocent:
            assert innocent.execute("SELECT 'innocent'").fetchone() == ("innocent",)
        for each in silent[100:]:
            each.socket.setblocking(False)
            with pytest.raises(BlockingIOError):
                each.socket.recv(1)
    finally:
        for each in silent:
            each.socket.close()
    proxy.stop()


def test_a_slow_startup_ends_at_the_one_deadline(start_proxy: Callable[..., Proxy]) -> None:
    proxy = start_proxy({"listen": {"auth_timeout": "400ms"}})
    for dribble in (b"\0", b"\0\0\0\x20\0\3\0\0user\0", struct.pack("!ii", 8, 80877103)):
        with Raw(proxy.port) as client:
            client.send(dribble)
            came = client.rest()
            assert came in (b"", b"N"), dribble


@pytest.mark.parametrize("length", [-(2**31), -1, 0, 3, 7, 10_001, 2**31 - 1])
def test_impossible_startup_lengths_are_refused(proxy: Proxy, length: int) -> None:
    with Raw(proxy.port) as client:
        client.send(struct.pack("!i", length))
        assert kinds(client.rest()) == "FATAL:08P01"


@pytest.mark.parametrize(
    "garbage",
    [
        b"!\0\0\0\4",
        b"Q\0\0\0\3",
        b"Q\xff\xff\xff\xff",
        b"D\x00\xff\xff\xff",
        message(b"p", b"again\0"),
        message(b"Q", b"SELECT 'no end'"),
        message(b"P", b"\xff\xff"),
        struct.pack("!ii", 9, 196608) + b"\0",
    ],
)
def test_garbage_ends_its_client_alone(proxy: Proxy, make_key: MakeKey, garbage: bytes) -> None:
    key = make_key()
    with proxy.login(*key).connect() as innocent, Raw(proxy.port).log_in(key) as client:
        client.ask(query("BEGIN"))
        client.send(garbage)
        assert kinds(client.rest()) == "FATAL:08P01"
        assert innocent.execute("SELECT 'innocent'").fetchone() == ("innocent",)


def test_what_postgresql_refuses_is_an_error_of_the_statement(proxy: Proxy, make_key: MakeKey) -> None:
    with Raw(proxy.port).log_in(make_key()) as client:
        missing = client.ask(bind("nobody") + execute() + SYNC)
        assert kinds(b"".join(missing)) == "E:26000 ZI"
        too_many = bind("", values=(b"1",))
        assert (
            kinds(b"".join(client.ask(parse("", "SELECT 1") + too_many + execute() + SYNC))) == "1 E:08P01 ZI"
        )
        # Two parameters by their count, bytes for one.
        cut = message(b"B", b"\0\0\0\0\0\2\0\0\0\1" + b"1" + b"\0\0")
        sent = parse("", "SELECT $1::text, $2::text") + cut + execute() + SYNC
        assert kinds(b"".join(client.ask(sent))) == "1 E:08P01 ZI"
        assert rows(b"".join(client.ask(query("SELECT 'still here'")))) == ["still here"]


def test_connections_that_are_reset_at_once_harm_nobody(proxy: Proxy, make_key: MakeKey) -> None:
    for _ in range(200):
        with Raw(proxy.port) as client:
            # A reset in place of an orderly end.
            client.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    with proxy.login(*make_key()).connect() as innocent:
        assert innocent.execute("SELECT 'innocent'").fetchone() == ("innocent",)
    assert proxy.process.poll() is None
