"""COPY, messages of any size in bounded memory, and peers that do not read."""

from __future__ import annotations

import pytest

from proxy.session.lending import MAX_REPLIES
from proxy.session.session import MAX_PENDING
from tests.session.backend import Backend
from tests.session.fakes import Client, World
from tests.session.frontend import (
    COPY_DONE,
    COPY_FAIL,
    FLUSH,
    SYNC,
    TERMINATE,
    bind,
    close,
    copy_data,
    execute,
    function_call,
    kinds,
    message,
    parse,
    query,
    rows,
    run,
    tags,
)

COPY = "COPY t FROM STDIN"
PIECE = 50_000


def pieces(data: bytes, size: int = PIECE) -> list[bytes]:
    return [data[at : at + size] for at in range(0, len(data), size)]


def paused(backend: Backend) -> bool:
    """Tell whether the proxy reads nothing from the server."""
    return backend.transport.paused


# -- COPY


def test_copy_in_by_a_simple_query(world: World) -> None:
    client = world.client()
    assert kinds(client.ask(query(COPY))) == "G"
    assert kinds(client.ask(copy_data(b"1"), copy_data(b"2"))) == ""
    assert kinds(client.ask(COPY_DONE)) == "C ZI"
    assert world.backends[0].committed[2:] == ["copied 1", "copied 2"]
    assert client.server() is None


@pytest.mark.parametrize("before_data", [SYNC, FLUSH, b"", FLUSH + SYNC, SYNC + SYNC])
@pytest.mark.parametrize("waits", [False, True])
def test_copy_in_by_the_extended_protocol(world: World, before_data: bytes, waits: bool) -> None:
    client = world.client()
    client.send(parse("", COPY), bind(), execute(), before_data)
    if waits:
        world.settle()
    client.send(copy_data(b"1"), COPY_DONE, SYNC)
    world.settle()
    assert kinds(client.take()) == "1 2 G C ZI"
    assert world.of("primary")[0].committed[2:] == ["copied 1"]
    assert client.server() is None
    assert kinds(client.ask(query("SELECT 1"))) == "T D C ZI"


def test_syncs_within_copy_data_are_swallowed(world: World) -> None:
    client = world.client()
    client.ask(parse("", COPY), bind(), execute(), SYNC)
    client.send(copy_data(b"1"), SYNC, FLUSH, copy_data(b"2"), SYNC, COPY_DONE, SYNC)
    world.settle()
    assert kinds(client.take()) == "C ZI"
    client.ask(query(COPY))
    assert kinds(client.ask(copy_data(b"1"), SYNC, COPY_DONE)) == "C ZI"
    assert kinds(client.ask(query("SELECT 1"))) == "T D C ZI"


def test_copy_fail_is_an_error(world: World) -> None:
    client = world.client()
    client.ask(query(COPY))
    assert kinds(client.ask(copy_data(b"1"), COPY_FAIL)) == "E:57014 ZI"
    client.ask(parse("", COPY), bind(), execute(), SYNC)
    assert kinds(client.ask(copy_data(b"1"), COPY_FAIL, SYNC)) == "E:57014 ZI"
    assert kinds(client.ask(query("SELECT 1"))) == "T D C ZI"


def test_data_behind_a_copy_that_failed_is_ignored(world: World) -> None:
    client = world.client()
    client.ask(query(COPY))
    assert kinds(client.ask(copy_data(b"bad"))) == "E:22P04 ZI"
    assert kinds(client.ask(copy_data(b"1"), COPY_DONE, query("SELECT 1"))) == "T D C ZI"
    client.ask(parse("", COPY), bind(), execute(), SYNC)
    assert kinds(client.ask(copy_data(b"bad"), copy_data(b"1"), COPY_DONE, SYNC)) == "E:22P04 ZI"
    assert kinds(client.ask(query("SELECT 1"))) == "T D C ZI"


@pytest.mark.parametrize("stray", [copy_data(b"1"), COPY_DONE, COPY_FAIL, copy_data(b"x" * 100_000)])
def test_copy_messages_without_a_copy_are_ignored(world: World, stray: bytes) -> None:
    client = world.client()
    assert kinds(client.ask(stray, query("SELECT 1"))) == "T D C ZI"
    client.ask(query("BEGIN"))
    assert kinds(client.ask(stray, query("SELECT 1"), stray, run("SELECT 2"))) == "T D C ZT 1 2 D C ZT"
    assert kinds(client.ask(query("SELECT 1"), stray, query("COMMIT"))) == "T D C ZT C ZI"


def test_copy_data_without_a_permission_to_copy_is_dropped(world: World) -> None:
    client = world.client(permissions=("read:tasks",))
    answer = client.ask(query(COPY), copy_data(b"1"), COPY_DONE, run(COPY), copy_data(b"1"), COPY_DONE, SYNC)
    assert kinds(answer) == "E:42501 ZI E:42501 ZI ZI"
    assert kinds(client.ask(query("SELECT 1"))) == "T D C ZI"


# -- sizes


def stream(client: Client, backend: Backend, data: bytes) -> None:
    """Send a long message in pieces, and check that each is passed on before the next."""
    for piece in pieces(data):
        client.send(piece)
        assert len(client.session.pending) <= MAX_PENDING + PIECE
    assert client.session.pending == b""
    assert backend.transport.all.endswith(data[-1000:])


def test_long_copy_data_streams(world: World) -> None:
    client = world.client()
    client.ask(query(COPY))
    (backend,) = world.backends
    before = len(backend.transport.writes)
    stream(client, backend, copy_data(b"x" * 1_000_000))
    assert len(backend.transport.writes) - before >= 15
    assert kinds(client.ask(COPY_DONE)) == "C ZI"
    assert "copied 1000000" in backend.committed


def test_a_long_bind_streams_under_another_name(world: World) -> None:
    client = world.client()
    client.ask(parse("name", "INSERT INTO t VALUES ($1)"), SYNC)
    (backend,) = world.backends
    stream(client, backend, bind("name", values=(b"y" * 1_000_000,)))
    assert kinds(client.ask(execute(), SYNC)) == "2 C ZI"
    assert client.server() is None


def test_a_long_query_streams_to_the_primary(world: World) -> None:
    client = world.client()
    client.ask(query("INSERT INTO t VALUES (1)"))
    (backend,) = world.backends
    text = "SELECT '" + "z" * 1_000_000 + "'"
    stream(client, backend, query(text))
    world.settle()
    assert rows(client.take()) == [text[7:]]
    world.check()


def test_a_long_message_waits_for_its_server_without_being_held() -> None:
    world = World(maximum=1)
    other = world.client()
    other.ask(query("BEGIN"))
    client = world.client()
    text = "SELECT '" + "z" * 1_000_000 + "'"
    given = 0
    for piece in pieces(query(text)):
        if client.transport.paused:
            break
        client.send(piece)
        given += len(piece)
    assert given <= MAX_PENDING + 3 * PIECE
    other.ask(query("COMMIT"))
    assert not client.paused()
    client.send(query(text)[given:])
    world.settle()
    assert rows(client.take()) == [text[7:]]


def test_a_long_message_behind_an_unfinished_unit_keeps_its_place(world: World) -> None:
    client = world.client()
    text = "SELECT '" + "z" * 100_000 + "'"
    data = parse("", "SELECT 1") + bind() + execute() + query(text) + query("SELECT 2")
    for piece in pieces(data):
        client.send(piece)
    world.settle()
    assert rows(client.take()) == ["1", text[7:], "2"]


@pytest.mark.parametrize("refused", ["DROP TABLE t; ", "SET ROLE x; "])
def test_a_long_statement_that_is_refused_is_dropped_to_its_end(world: World, refused: str) -> None:
    client = world.client()
    client.ask(query("SELECT 1"))
    data = query(refused + "SELECT '" + "z" * 200_000 + "'") + query("SELECT 2")
    for piece in pieces(data):
        client.send(piece)
    world.settle()
    assert kinds(client.take()) == "E:42501 ZI T D C ZI"
    client.ask(query("BEGIN"))
    for piece in pieces(data):
        client.send(piece)
    world.settle()
    assert kinds(client.take()) == "E:42501 ZE E:25P02 ZE"


def test_a_long_bind_of_a_missing_statement_is_dropped_to_its_end(world: World) -> None:
    client = world.client()
    data = bind("none", values=(b"y" * 200_000,)) + execute() + SYNC + query("SELECT 2")
    for begin in (b"", query("BEGIN")):
        client.ask(begin)
        for piece in pieces(data):
            client.send(piece)
        world.settle()
        assert kinds(client.take()).startswith("E:26000 Z")


@pytest.mark.parametrize("begin", [b"", query("BEGIN"), parse("", "SELECT 1") + bind() + execute() + FLUSH])
@pytest.mark.parametrize("long", [query("SELECT '" + "z" * 200_000 + "'"), copy_data(b"x" * 200_000)])
@pytest.mark.parametrize("refused", ["DROP TABLE t", "SELECT 1/0"])
def test_a_long_message_behind_an_unfinished_unit_that_fails_is_skipped(
    world: World, begin: bytes, long: bytes, refused: str
) -> None:
    client = world.client()
    client.ask(begin)
    data = parse("", refused) + bind() + execute() + long + parse("", "SELECT 2") + bind() + execute() + SYNC
    for piece in pieces(data):
        client.send(piece)
    world.settle()
    answer = kinds(client.take())
    assert answer.endswith((" ZI", " ZE")) and answer.count("Z") == 1 and answer.count("E:") == 1
    assert kinds(client.ask(query("ROLLBACK"), query("SELECT 1"))) == "C ZI T D C ZI"


# -- peers that do not read


def test_a_client_that_stops_reading_pauses_its_server_and_its_own_input(world: World) -> None:
    client = world.client()
    client.ask(query("BEGIN"))
    (backend,) = world.backends
    client.session.pause_writing()
    assert paused(backend)
    client.send(query("SELECT 1"))
    assert len(backend.sql) == 1 and not client.paused()
    client.send(query("SELECT '" + "x" * MAX_PENDING + "'"))
    assert client.paused(), "what it sends stays in its socket"
    world.settle()
    assert client.take() == b""
    client.session.resume_writing()
    assert not client.paused() and not paused(backend)
    world.settle()
    assert kinds(client.take()) == "T D C ZT T D C ZT"


def test_a_client_that_stops_reading_before_it_has_a_server_pauses_it_then() -> None:
    world = World(maximum=1)
    other, client = world.client(), world.client()
    other.ask(query("BEGIN"))
    client.send(query("INSERT INTO t VALUES (1)"))
    client.session.pause_writing()
    other.ask(query("COMMIT"))
    (backend,) = world.backends
    assert paused(backend)
    client.session.resume_writing()
    world.settle()
    assert kinds(client.take()) == "C ZI"


def test_a_connection_returned_while_its_client_does_not_read_reads_again(world: World) -> None:
    client = world.client()
    client.send(query("SELECT 1"))
    world.open()
    (backend,) = world.backends
    client.session.pause_writing()
    client.session.resume_writing()
    backend.answer()
    world.settle()
    assert not paused(backend)
    world.check()


def test_a_server_that_stops_reading_pauses_its_client(world: World) -> None:
    client = world.client()
    client.ask(query(COPY))
    (backend,) = world.backends
    backend.server.pause_writing()
    written = len(backend.transport.writes)
    sent = 0
    while not client.paused():
        client.send(copy_data(b"x" * 10_000))
        sent += 1
    assert sent * 10_005 <= MAX_PENDING + 10_005 and len(backend.transport.writes) == written
    backend.server.resume_writing()
    assert not client.paused()
    assert kinds(client.ask(COPY_DONE)) == "C ZI"
    assert backend.committed.count("copied 10000") == sent


def test_units_in_a_full_server_wait_in_order(world: World) -> None:
    client = world.client()
    client.ask(query("BEGIN"))
    (backend,) = world.backends
    client.send(query("SELECT 1"))
    backend.server.pause_writing()
    client.send(query("SELECT 2"), run("SELECT 3"))
    world.settle()
    assert rows(client.take()) == ["1"]
    backend.server.resume_writing()
    world.settle()
    assert rows(client.take()) == ["2", "3"]


def test_a_hundred_thousand_statements_ahead_of_their_answers_are_bounded(world: World) -> None:
    client = world.client()
    client.ask(query("BEGIN"))
    (backend,) = world.backends
    batch = query("SELECT 1") * 1000
    for _ in range(100):
        if client.transport.paused:
            break
        client.send(batch)
    assert client.paused()
    assert backend.server.replies.length <= MAX_REPLIES + 1
    assert len(client.session.pending) <= MAX_PENDING + len(batch)
    world.settle()
    assert not client.paused()
    assert len(tags(client.take())) * len(query("SELECT 1")) % len(batch) == 0


def test_an_answer_of_many_rows_passes_in_pieces(world: World) -> None:
    client = world.client()
    answer = client.ask(query("SELECT 500 TIMES 'x'"))
    assert rows(answer) == ["x" * 1000] * 500
    assert message(b"Z", b"I") == answer[-6:]


# -- what has no place within a COPY, and what waits for its end


def test_data_passes_although_what_follows_has_to_wait(world: World) -> None:
    # A text that changes names, or the pool, holds back what comes behind it; a COPY's own data is not behind it.
    client = world.client()
    client.ask(parse("s", "SELECT 1"), SYNC)
    assert kinds(client.ask(query("DEALLOCATE s; " + COPY))) == "C G"
    assert kinds(client.ask(copy_data(b"1"), COPY_DONE, query("SELECT 2"))) == "C ZI T D C ZI"
    assert kinds(client.ask(query("SET sluice.pool = 'background'; " + COPY))) == "C G"
    assert kinds(client.ask(copy_data(b"2"), COPY_FAIL, query("SELECT 3"))) == "E:57014 ZI T D C ZI"
    assert client.server() is None
    world.check()


def test_data_in_one_write_with_a_text_that_makes_others_wait(world: World) -> None:
    client = world.client()
    client.ask(parse("s", "SELECT 1"), SYNC)
    answer = client.ask(query("DEALLOCATE s; " + COPY), copy_data(b"1"), COPY_DONE, query("SELECT 2"))
    assert kinds(answer) == "C G C ZI T D C ZI"


@pytest.mark.parametrize("together", [False, True])
def test_a_copy_that_others_prepared_takes_data(world: World, together: bool) -> None:
    unit = bind("c") + execute() + SYNC
    for name in ("alice", "bob", "carol"):
        client = world.client(name)
        client.ask(parse("c", COPY), SYNC)
        if together:
            answer = client.ask(unit, copy_data(b"1"), COPY_DONE, SYNC, query("SELECT 1"))
        else:
            answer = client.ask(unit) + client.ask(copy_data(b"1"), COPY_DONE, SYNC, query("SELECT 1"))
        assert kinds(answer) == "2 G C ZI T D C ZI"
        assert client.server() is None
    world.check()


@pytest.mark.parametrize("together", [False, True])
@pytest.mark.parametrize(
    "stray",
    [
        close("none"),
        parse("s", "SELECT 1"),
        query("EXECUTE s"),
        query("SELECT 1"),
        query("DROP TABLE t"),
        function_call(),
        run("SELECT 1/0"),
        TERMINATE,
    ],
)
@pytest.mark.parametrize("copy", [query(COPY), parse("", COPY) + bind() + execute() + FLUSH])
def test_what_has_no_place_within_a_copy_reaches_the_server(
    world: World, copy: bytes, stray: bytes, together: bool
) -> None:
    # PostgreSQL says ERROR and FATAL. That nothing came would leave both waiting for each other.
    client = world.client()
    client.ask(parse("s", "SELECT 1"), bind("s"), execute(), SYNC, query("INSERT INTO t VALUES (1)"))
    client.ask(query("BEGIN"), bind("s"), execute(), SYNC, query("COMMIT"))
    client.take()
    end = SYNC if stray[:1] in b"PC" else b""
    answer = client.ask(copy, stray, end) if together else client.ask(copy) + client.ask(stray, end)
    assert client.closed()
    if together and stray == TERMINATE and copy[:1] == b"P":
        # What has no Sync yet is not waited for.
        assert answer == b""
    else:
        assert kinds(answer).endswith("E:08P01 FATAL:08P01")


@pytest.mark.parametrize("together", [False, True])
def test_a_violation_within_a_copy_is_told_at_once(world: World, together: bool) -> None:
    client = world.client()
    bad = b"!\0\0\0\4"
    answer = client.ask(query(COPY), bad) if together else client.ask(query(COPY)) + client.ask(bad)
    assert kinds(answer).endswith("FATAL:08P01") and client.closed()
    assert world.backends[0].transport.aborted
    world.check()


@pytest.mark.parametrize("vanishes", [False, True])
def test_copy_both_passes_both_ways_and_leaves_nothing(world: World, vanishes: bool) -> None:
    # Only replication has it; a server that says it to anybody else is treated as one that copies in.
    client = world.client()
    client.ask(query("INSERT INTO t VALUES (1)"))
    client.send(query("INSERT INTO t VALUES (2)"))
    (backend,) = world.of("primary")
    both = message(b"W", b"\0\0\0") + message(b"d", b"theirs")
    backend.server.data_received(both)
    assert client.take() == both
    client.send(copy_data(b"ours"))
    assert backend.transport.all.endswith(copy_data(b"ours"))
    if vanishes:
        client.vanish()
        assert backend.transport.aborted and world.pool("primary").size == 0
    else:
        client.send(COPY_DONE)
        end = message(b"c") + message(b"C", b"COPY 0\0") + message(b"Z", b"I")
        backend.server.data_received(end)
        assert client.take() == end and client.server() is None
    world.check()
