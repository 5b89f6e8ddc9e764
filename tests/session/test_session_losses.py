"""What a session does when its server connection is lost, at each point where that may happen."""

from __future__ import annotations

import struct

import pytest

from tests.session.backend import Backend
from tests.session.fakes import Client, World
from tests.session.frontend import (
    FLUSH,
    SYNC,
    bind,
    copy_data,
    describe,
    error,
    execute,
    kinds,
    message,
    parse,
    query,
    rows,
    run,
)

INSERT = "INSERT INTO t VALUES ('alice')"
ROW = message(b"D", struct.pack("!Hi", 1, 1) + b"1")
FATAL = message(b"E", b"SFATAL\0VFATAL\0C57P01\0Mterminating connection due to administrator command\0\0")


def told(words: str) -> str:
    """Return what the client is told in the end: the server's own last words, ours where it had none."""
    return "FATAL:57P01" if words else "FATAL:08006"


READS = {
    "query": (query("SELECT 1"), "T D C ZI"),
    "unnamed": (run("SELECT 1"), "1 2 D C ZI"),
    "named": (bind("s") + execute() + SYNC, "2 D C ZI"),
}


@pytest.mark.parametrize("how", READS)
@pytest.mark.parametrize("words", ["", "FATAL"])
def test_a_read_whose_server_dies_is_tried_once_more(world: World, how: str, words: str) -> None:
    unit, answer = READS[how]
    client = world.client()
    client.ask(parse("s", "SELECT 1"), bind("s"), execute(), SYNC)
    client.send(unit)
    world.backends[0].die(words)
    assert client.take() == b""
    world.settle()
    assert kinds(client.take()) == answer
    assert len(world.backends) == 2
    world.check()


def test_a_read_is_not_tried_a_third_time(world: World) -> None:
    client = world.client()
    client.send(query("SELECT 1"))
    world.open()
    world.backends[0].die()
    world.open()
    world.backends[1].die()
    answer = client.take()
    assert kinds(answer) == "FATAL:08006"
    assert "one:5432" in error(answer)["M"]
    assert client.closed()


@pytest.mark.parametrize(
    "unit",
    [
        query(INSERT),
        run(INSERT),
        query("SELECT 1") + query("SELECT 2"),
        query("SELECT unknown_function()"),
        query("BEGIN") + query("SELECT 1"),
        parse("", "SELECT 1") + bind() + execute() + FLUSH,
        parse("", "SELECT $1") + bind(values=(b"x" * 70_000,)) + execute() + SYNC,
    ],
)
@pytest.mark.parametrize("words", ["", "FATAL"])
def test_a_server_that_dies_in_another_unit_ends_the_client(world: World, unit: bytes, words: str) -> None:
    client = world.client()
    client.send(unit)
    world.open()
    world.backends[0].die(words)
    answer = client.take()
    assert kinds(answer) == told(words)
    assert words or "one:5432" in error(answer)["M"]
    assert client.closed()


def test_a_read_of_which_something_was_forwarded_is_not_tried_again(world: World) -> None:
    world.database.retries_refused_reads = False
    client = world.client()
    client.ask(query("SELECT 0"))
    client.send(run("SELECT 1"))
    (backend,) = world.backends
    backend.server.data_received(message(b"1") + message(b"2"))
    backend.die("FATAL")
    assert kinds(client.take()) == "1 2 FATAL:57P01"


def test_a_read_whose_first_row_came_is_not_tried_again(world: World) -> None:
    client = world.client()
    client.ask(query("SELECT 1"))
    client.send(query("SELECT 2"))
    (backend,) = world.backends
    backend.server.data_received(message(b"T", b"\0\0"))
    backend.server.data_received(ROW)
    backend.die("FATAL")
    assert kinds(client.take()) == "T D FATAL:57P01"


def test_what_comes_before_the_first_row_is_kept_back_until_then(world: World) -> None:
    client = world.client()
    client.ask(query("SELECT 1"))
    client.send(run("SELECT 2"))
    (backend,) = world.backends
    backend.server.data_received(message(b"1") + message(b"2"))
    assert client.take() == b""
    backend.server.data_received(message(b"N", b"SNOTICE\0C00000\0\0"))
    assert kinds(client.take()) == "1 2 N"


def test_a_read_before_whose_first_row_the_server_dies_is_tried_once_more(world: World) -> None:
    client = world.client()
    client.ask(query("SELECT 1"))
    client.send(query("SELECT 2"))
    world.backends[0].server.data_received(message(b"T", b"\0\0"))
    world.backends[0].die()
    world.settle()
    assert kinds(client.take()) == "T D C ZI"


def test_a_server_that_dies_while_nobody_uses_it_is_not_noticed(world: World) -> None:
    client = world.client()
    client.ask(query("SELECT 1"))
    world.backends[0].die()
    assert kinds(client.ask(query("SELECT 2"))) == "T D C ZI"


def test_a_server_that_breaks_the_protocol_is_closed(world: World) -> None:
    client = world.client()
    client.send(query(INSERT))
    world.open()
    world.backends[0].server.data_received(b"D\xff\xff\xff\xff")
    assert kinds(client.take()) == "FATAL:08006"
    assert world.backends[0].transport.aborted


# -- the server's own last words


def test_nothing_stands_behind_the_servers_own_fatal_error(world: World) -> None:
    client = world.client()
    client.ask(query("COPY t FROM STDIN"))
    client.send(query("SELECT 1"))
    (backend,) = world.backends
    last = message(b"E", b"SFATAL\0VFATAL\0C08P01\0Mprotocol synchronization was lost\0\0")
    backend.server.data_received(message(b"E", b"SERROR\0VERROR\0C08P01\0Munexpected\0\0") + last)
    backend.die()
    answer = client.take()
    assert kinds(answer) == "E:08P01 FATAL:08P01" and answer.endswith(last)
    assert client.closed()


@pytest.mark.parametrize("words", ["", "FATAL"])
@pytest.mark.parametrize(
    "before",
    [
        query("BEGIN"),
        query("LISTEN x"),
        parse("", INSERT) + bind() + execute() + FLUSH,
        query("COPY t FROM STDIN"),
        query("COPY t FROM STDIN") + copy_data(b"1"),
        parse("", "COPY t FROM STDIN") + bind() + execute() + FLUSH + copy_data(b"1"),
    ],
)
def test_a_server_that_dies_between_a_clients_messages_is_told(
    world: World, before: bytes, words: str
) -> None:
    client = world.client()
    client.ask(before)
    world.of("primary")[0].die(words)
    answer = client.take()
    assert kinds(answer) == told(words)
    assert words or "one:5432" in error(answer)["M"]
    assert client.closed()
    assert world.pool("primary").pinned == 0
    assert INSERT not in world.of("primary")[0].committed
    world.check()


@pytest.mark.parametrize("words", ["", "FATAL"])
def test_a_server_that_dies_in_session_mode_is_told(world: World, words: str) -> None:
    world.database.session_mode = True
    client = world.client()
    client.ask(query("SELECT 1"))
    world.backends[0].die(words)
    assert kinds(client.take()) == told(words)
    assert client.closed()


@pytest.mark.parametrize("words", ["", "FATAL"])
def test_a_server_that_dies_in_copy_out_is_told_behind_the_rows_that_came(world: World, words: str) -> None:
    client = world.client()
    client.ask(query("SELECT 0"))
    client.send(query("COPY t TO STDOUT"))
    world.open()
    backend = world.backends[-1]
    assert client.server() is backend.server
    backend.server.data_received(message(b"H", b"\0\0\0") + message(b"d", b"1\n"))
    backend.die(words)
    assert kinds(client.take()) == "H d " + told(words)
    assert client.closed()


def test_a_transaction_that_is_only_deferred_loses_no_server() -> None:
    world = World(lazy_begin=True)
    client = world.client()
    client.ask(query("SELECT 0"))
    assert kinds(client.ask(query("BEGIN"))) == "C ZT"
    for backend in list(world.backends):
        backend.die("FATAL")
    assert kinds(client.ask(query("SELECT 1"), query("COMMIT"))) == "T D C ZT C ZI"


def test_a_server_that_dies_behind_its_answer_is_not_noticed(world: World) -> None:
    client = world.client()
    client.ask(query("SELECT 0"))
    client.send(query("SELECT 1"))
    (backend,) = world.backends
    answer = message(b"T", b"\0\0") + ROW + message(b"C", b"SELECT 1\0") + message(b"Z", b"I")
    backend.server.data_received(answer + FATAL)
    backend.die()
    assert client.take() == answer and not client.closed()
    assert world.pool("readonly").size == 0
    assert kinds(client.ask(query("SELECT 2"))) == "T D C ZI"
    world.check()


def test_a_server_that_dies_behind_its_answer_in_a_transaction_is_told(world: World) -> None:
    client = world.client()
    client.ask(query("BEGIN"))
    client.send(query("SELECT 1"))
    (backend,) = world.backends
    answer = message(b"T", b"\0\0") + ROW + message(b"C", b"SELECT 1\0") + message(b"Z", b"T")
    backend.server.data_received(answer + FATAL)
    backend.die()
    assert client.take() == answer + FATAL and client.closed()


def test_last_words_too_long_to_hold_are_ours(world: World) -> None:
    client = world.client()
    client.ask(query("INSERT INTO t VALUES (0)"))
    client.send(query(INSERT))
    long = FATAL[5:-1] + b"D" + b"x" * 100_000 + b"\0\0"
    world.backends[0].server.data_received(message(b"E", long)[:50_000])
    answer = client.take()
    assert kinds(answer) == "FATAL:08006" and "one:5432" in error(answer)["M"]
    assert "administrator command" in error(answer)["D"]


# -- what came with the last words

DESCRIBED = message(b"T", b"\0\0")
PARTS = {
    "query": (query("SELECT 1"), DESCRIBED + ROW, "T D C ZI"),
    "unnamed": (run("SELECT 1"), message(b"1") + message(b"2") + ROW, "1 2 D C ZI"),
    "described": (
        parse("", "SELECT 1") + describe() + bind() + execute() + SYNC,
        message(b"1") + message(b"t", b"\0\0") + message(b"n"),
        "1 t n 2 D C ZI",
    ),
    "named": (bind("s") + execute() + SYNC, message(b"2"), "2 D C ZI"),
}


def prepared(world: World, unit: bytes) -> tuple[Client, Backend]:
    """Return a client that has a statement `s` and has just sent `unit`, and its server."""
    client = world.client()
    client.ask(parse("s", "SELECT 1"), bind("s"), execute(), SYNC)
    client.send(unit)
    return client, world.backends[0]


@pytest.mark.parametrize("how", PARTS)
def test_a_read_is_tried_once_more_although_an_answer_came_with_the_last_words(
    world: World, how: str
) -> None:
    unit, began, answer = PARTS[how]
    client, backend = prepared(world, unit)
    backend.server.data_received(began + FATAL)
    backend.die()
    assert client.take() == b"" and not client.closed()
    world.settle()
    assert kinds(client.take()) == answer
    assert len(world.backends) == 2
    assert client.server() is None
    world.check()


def test_a_new_named_statement_is_prepared_again_with_its_read(world: World) -> None:
    client = world.client()
    client.ask(query("SELECT 0"))
    client.send(parse("new", "SELECT 7"), bind("new"), execute(), SYNC)
    (backend,) = world.backends
    backend.server.data_received(message(b"1") + FATAL)
    world.settle()
    assert kinds(client.take()) == "1 2 D C ZI"
    assert kinds(client.ask(bind("new"), execute(), SYNC)) == "2 D C ZI"
    world.check()


@pytest.mark.parametrize("how", PARTS)
def test_a_read_is_not_tried_again_once_a_part_of_it_was_forwarded(world: World, how: str) -> None:
    world.database.retries_refused_reads = False
    unit, began, _ = PARTS[how]
    client, backend = prepared(world, unit)
    backend.server.data_received(began)
    came = client.take()
    assert came == began
    backend.server.data_received(FATAL)
    backend.die()
    assert client.take() == FATAL and client.closed()
    assert len(world.backends) == 1


@pytest.mark.parametrize("how", PARTS)
def test_a_read_is_not_tried_again_once_a_part_of_it_was_forwarded_and_the_line_is_cut(
    world: World, how: str
) -> None:
    world.database.retries_refused_reads = False
    unit, began, _ = PARTS[how]
    client, backend = prepared(world, unit)
    backend.server.data_received(began)
    backend.die()
    assert kinds(client.take()[len(began) :]) == "FATAL:08006" and client.closed()
    assert len(world.backends) == 1


@pytest.mark.parametrize("sent", [query(INSERT), run(INSERT), query("SELECT unknown_function()")])
@pytest.mark.parametrize("transaction", [False, True])
def test_a_write_is_never_tried_again_whatever_came_with_the_last_words(
    world: World, sent: bytes, transaction: bool
) -> None:
    client = world.client()
    client.ask(query("INSERT INTO t VALUES (0)"))
    if transaction:
        client.ask(query("BEGIN"))
    client.send(sent)
    backend = world.of("primary")[0]
    began = message(b"1") if sent[:1] == b"P" else b""
    backend.server.data_received(began + FATAL)
    backend.die()
    assert client.take() == began + FATAL and client.closed()
    world.settle()
    assert len(world.backends) == 1


@pytest.mark.parametrize("sent", [query("SELECT 1"), run("SELECT 1")])
def test_a_read_in_a_transaction_is_never_tried_again(world: World, sent: bytes) -> None:
    client = world.client()
    client.ask(query("BEGIN"))
    client.send(sent)
    backend = world.backends[0]
    backend.die("FATAL")
    assert client.take() == FATAL and client.closed()
    world.settle()
    assert len(world.backends) == 1


def test_a_read_behind_a_deferred_begin_is_never_tried_again() -> None:
    world = World(lazy_begin=True)
    client = world.client()
    client.ask(query("SELECT 0"))
    client.ask(query("BEGIN"))
    client.take()
    client.send(query("SELECT 1"))
    world.open()
    (backend,) = [each for each in world.backends if each.server is client.server()]
    backend.die()
    world.settle()
    assert kinds(client.take()) == "FATAL:08006"


@pytest.mark.parametrize("sent", [query("SELECT 1") + query("SELECT 2"), run("SELECT 1") + run("SELECT 2")])
def test_pipelined_reads_are_not_tried_again(world: World, sent: bytes) -> None:
    client = world.client()
    client.ask(query("SELECT 0"))
    client.send(sent)
    world.backends[0].die()
    assert kinds(client.take()) == "FATAL:08006"
    world.settle()
    assert len(world.backends) == 1


def test_a_read_that_failed_is_not_tried_again(world: World) -> None:
    failed = message(b"E", b"SERROR\0VERROR\0C22012\0Mdivision by zero\0\0")
    for sent in (query("SELECT 1"), run("SELECT 1"), parse("other", "SELECT 2") + SYNC):
        client, backend = prepared(World(), sent)
        backend.server.data_received(failed + FATAL)
        backend.die()
        assert client.take() == failed + FATAL and client.closed()


def test_a_read_that_was_done_is_not_tried_again(world: World) -> None:
    client, backend = prepared(world, run("SELECT 1"))
    done = message(b"1") + message(b"2") + ROW + message(b"C", b"SELECT 1\0")
    backend.server.data_received(done + FATAL)
    backend.die()
    assert client.take() == done + FATAL and client.closed()


def test_what_was_kept_to_be_tried_again_is_let_go(world: World) -> None:
    client = world.client()
    for sent in (query("SELECT 1"), run("SELECT 1"), parse("s", "SELECT 1") + SYNC, describe("s") + SYNC):
        client.ask(sent)
        assert client.session.kept is None


def test_rows_of_another_read_are_not_mixed_in(world: World) -> None:
    client, backend = prepared(world, query("SELECT 1"))
    lie = message(b"D", struct.pack("!Hi", 1, 3) + b"old")
    backend.server.data_received(DESCRIBED + lie + lie + FATAL)
    world.settle()
    assert rows(client.take()) == ["1"]
