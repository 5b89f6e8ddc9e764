"""Results that are kept: who gets them, who doesn't, and what drops them."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from proxy.errors import RateLimitExceeded, UpstreamUnavailable
from proxy.session.results import PATIENCE, Results
from tests.observe.decoder import decode
from tests.session.conftest import Clock
from tests.session.fakes import Client, World
from tests.session.frontend import (
    FLUSH,
    SYNC,
    bind,
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

READ = "SELECT owner FROM notes"
OTHER = "SELECT owner FROM others"
WRITE = "INSERT INTO notes VALUES (1)"


class Cached(World):
    """A world where results are kept, and time passes only when told to."""

    def __init__(self, clock: Clock, **options: object) -> None:
        super().__init__(**options)  # type: ignore[arg-type]
        self.clock = clock
        self.results = Results(1_000_000, 10_000)
        self.results.on = True
        self.database.results = self.results

    def asked(self, sql: str = READ) -> int:
        """Return how often a server was asked."""
        return sum(each.sql.count(sql) for each in self.backends)


@pytest.fixture
def cached(clock: Clock) -> Cached:
    return Cached(clock)


def later(world: Cached, seconds: float = 0.01) -> None:
    world.clock.now += seconds


def test_a_result_is_given_again(cached: Cached) -> None:
    client = cached.client()
    first = client.ask(query(READ))
    later(cached)
    assert client.ask(query(READ)) == first
    assert cached.asked() == 1
    assert (cached.results.hits, cached.results.misses, cached.results.stores) == (1, 1, 1)
    cached.check()


def test_it_is_one_write(cached: Cached) -> None:
    client = cached.client()
    client.ask(query(READ))
    before = len(client.transport.writes)
    client.ask(query(READ))
    assert len(client.transport.writes) == before + 1


@pytest.mark.parametrize("in_pieces", [False, True])
def test_the_extended_protocol_shares_what_it_reads_alike(cached: Cached, in_pieces: bool) -> None:
    unnamed = parse("", READ) + bind() + describe("", b"P") + execute() + SYNC
    named = bind("s") + describe("", b"P") + execute() + SYNC
    answers = []
    client = cached.client()
    for messages in (unnamed, unnamed, parse("s", READ) + SYNC, named, named):
        if messages is unnamed:
            client = cached.client()
        pieces = [messages[at : at + 1] for at in range(len(messages))] if in_pieces else [messages]
        for piece in pieces:
            client.send(piece)
        cached.settle()
        answers.append(client.take())
        later(cached)
    assert answers[0] == answers[1]
    assert answers[3] == answers[4] == answers[0].removeprefix(b"1\0\0\0\4")
    assert cached.asked() == 1
    cached.check()


@pytest.mark.parametrize(
    "other",
    [
        parse("", READ) + bind(values=(b"2",)) + execute() + SYNC,
        parse("", READ) + bind() + describe("", b"P") + execute() + SYNC,
        parse("", READ + " ") + bind() + execute() + SYNC,
        parse("", READ) + bind() + message(b"E", b"\0\0\0\0\1") + SYNC,
        message(b"P", b"\0" + READ.encode() + b"\0\0\1\0\0\0\x17") + bind() + execute() + SYNC,
        message(b"P", b"\0" + READ.encode() + b"\0\0\0") + message(b"B", b"\0\0\0\0\0\0\0\1\0\1") + execute() + SYNC,
        query(READ),
        query(READ + " WHERE a = 1"),
    ],
    ids=["values", "Describe", "text", "row limit", "types", "result formats", "protocol", "constant"],
)  # fmt: skip
def test_whatever_differs_is_another_result(cached: Cached, other: bytes) -> None:
    client = cached.client()
    client.ask(run(READ))
    later(cached)
    client.ask(other)
    assert cached.results.hits == 0
    assert cached.results.stores == 2


def test_another_user_gets_his_own(cached: Cached) -> None:
    alice, bob = cached.client("alice"), cached.client("bob")
    assert rows(alice.ask(query(READ))) == rows(alice.ask(query(READ))) == ["alice"]
    assert rows(bob.ask(query(READ))) == rows(bob.ask(query(READ))) == ["bob"]
    assert cached.results.hits == 2


def test_so_does_the_same_user_with_other_settings(cached: Cached) -> None:
    plain, parisian = cached.client(), cached.client(settings={"timezone": "Europe/Paris"})
    plain.ask(query(READ))
    parisian.ask(query(READ))
    assert cached.results.hits == 0
    plain.ask(query("SET timezone = 'Europe/Paris'"))
    plain.ask(query(READ))
    assert cached.results.hits == 1
    plain.ask(query("SET custom.tenant = '7'"))
    plain.ask(query(READ))
    assert cached.results.hits == 1


@pytest.mark.parametrize(
    ("name", "value"), [("standard_conforming_strings", "off"), ("client_encoding", "SJIS")]
)
def test_where_texts_are_read_otherwise_nothing_is_kept(cached: Cached, name: str, value: str) -> None:
    client = cached.client(settings={name: value})
    client.ask(query(READ))
    assert (cached.results.misses, cached.results.stores) == (0, 0)


def test_without_signed_identities_what_postgresql_cannot_tell_apart_is_shared(cached: Cached) -> None:
    cached.database.signer = None
    cached.database.signed = False
    cached.client("alice").ask(query("SELECT 1 FROM t"))
    cached.client("bob").ask(query("SELECT 1 FROM t"))
    assert cached.results.hits == 1


def test_it_lives_as_long_as_was_said_counted_from_when_it_was_asked_for(cached: Cached) -> None:
    client = cached.client()
    cached.results.ttl = 5.0
    client.send(query(READ))
    cached.open()
    later(cached, 2.0)
    cached.settle()
    later(cached, 2.9)
    client.ask(query(READ))
    assert cached.results.hits == 1
    later(cached, 0.2)
    client.ask(query(READ))
    assert (cached.results.hits, cached.results.stores) == (1, 2)


WRITES = {
    "simple": [query(WRITE)],
    "extended": [run(WRITE)],
    "CTE": [query("WITH w AS (DELETE FROM notes RETURNING *) SELECT * FROM w")],
    "transaction": [query("BEGIN"), query(WRITE), query("COMMIT")],
    "rolled back": [query("BEGIN"), query(WRITE), query("ROLLBACK")],
    "COPY": [query("COPY notes FROM STDIN"), message(b"c")],
    "another schema": [query("UPDATE archive.notes SET a = 1")],
    "merge": [query("MERGE INTO notes USING x ON true WHEN MATCHED THEN DELETE")],
    "DO": [query("DO $$BEGIN END$$")],
    "a call": [query("CALL p()")],
    "unknown function": [query("SELECT unheard_of()")],
    "not parsed": [query("INSERT INTO x VALUES (1); garbage here")],
    "DDL": [query("CREATE TABLE x (a int)")],
    "pipelined": [query(WRITE) + query("SELECT 1")],
    "prepared by SQL": [query(f"PREPARE p AS {WRITE}"), query("EXECUTE p")],
}


@pytest.mark.parametrize("messages", WRITES.values(), ids=WRITES.keys())
def test_a_write_of_anybody_drops_it(cached: Cached, messages: list[bytes]) -> None:
    reader = cached.client("alice")
    writer = cached.client("bob", permissions=("write:tasks", "admin"))
    reader.ask(query(READ))
    later(cached)
    for each in messages:
        writer.ask(each)
        later(cached)
    assert cached.results.entries == {}
    reader.ask(query(READ))
    assert cached.results.hits == 0


@pytest.mark.parametrize(
    "sql", ["INSERT INTO others VALUES (1)", "SET work_mem = '8MB'", "NOTIFY x", "BEGIN; COMMIT"]
)
def test_what_changes_something_else_leaves_it(cached: Cached, sql: str) -> None:
    reader, writer = cached.client("alice"), cached.client("bob")
    reader.ask(query(READ))
    later(cached)
    writer.ask(query(sql))
    later(cached)
    reader.ask(query(READ))
    assert cached.results.hits == 1


def test_a_session_gets_nothing_older_than_its_own_last_write(cached: Cached) -> None:
    alice, again = cached.client("alice"), cached.client("alice")
    alice.ask(query(READ))
    later(cached)
    # It may have changed the notes by a trigger.
    alice.ask(query("INSERT INTO others VALUES (1)"))
    later(cached)
    alice.ask(query(READ))
    assert cached.asked() == 2
    later(cached)
    again.ask(query(READ))
    alice.ask(query(READ))
    assert cached.asked() == 2


def test_a_read_that_a_write_overtakes_is_not_kept(cached: Cached) -> None:
    reader, writer = cached.client("alice"), cached.client("bob")
    reader.ask(query("SELECT 1"))
    reader.send(query(READ))
    later(cached)
    writer.ask(query(WRITE))
    assert cached.results.stores == 0
    later(cached)
    reader.ask(query(READ))
    assert cached.results.hits == 0


def test_nor_one_that_was_sent_while_the_write_was_under_way(cached: Cached) -> None:
    reader, writer = cached.client("alice"), cached.client("bob")
    writer.ask(query("BEGIN"))
    writer.ask(query(WRITE))
    later(cached)
    reader.ask(query(READ))
    later(cached)
    writer.ask(query("COMMIT"))
    later(cached)
    assert cached.results.entries == {}
    reader.ask(query(READ))
    assert cached.results.hits == 0


def test_a_write_whose_end_nobody_saw_may_yet_come_for_a_while(cached: Cached) -> None:
    reader, writer = cached.client("alice"), cached.client("bob")
    writer.send(query(WRITE))
    cached.open()
    writer.vanish()
    later(cached)
    reader.ask(query(READ))
    assert cached.results.stores == 0
    later(cached, 6.0)
    reader.ask(query(READ))
    assert cached.results.stores == 1


NEVER = {
    "no relation": [query("SELECT 1")],
    "the catalogue": [query("SELECT * FROM pg_class")],
    "a volatile function": [query("SELECT random() FROM notes")],
    "a lock": [query("SELECT 1 FROM notes FOR UPDATE")],
    "two statements": [query(f"{READ}; {READ}")],
    "a sample": [query("SELECT 1 FROM notes TABLESAMPLE system (1)")],
    "in a transaction": [query("BEGIN"), query(READ), query("COMMIT")],
    "read only": [query("BEGIN READ ONLY"), query(READ), query("COMMIT")],
    "a named portal": [parse("", READ) + bind("", "p") + execute("p") + SYNC],
    "a Flush": [parse("", READ) + bind() + execute() + FLUSH, SYNC],
    "an error": [query("SELECT 1/0 FROM notes")],
    "COPY": [query("COPY notes TO STDOUT")],
    "a comment against it": [query(f"{READ} /* sluice: cache=off */")],
    "another pool": [query(f"{READ} /* sluice: pool=primary */")],
    "a pinned session": [query("LISTEN x"), query(READ)],
    "pipelined": [query(READ) + query(OTHER)],
}


@pytest.mark.parametrize("messages", NEVER.values(), ids=NEVER.keys())
def test_never_kept(cached: Cached, messages: list[bytes]) -> None:
    client = cached.client()
    for each in messages:
        client.ask(each)
        later(cached)
    assert "notes" not in " ".join(
        name for each in cached.results.entries.values() for name in each.relations
    )
    cached.check()


def test_an_answer_with_something_else_in_it_is_not_kept(cached: Cached) -> None:
    client = cached.client()
    client.ask(query("SELECT 1"))
    client.send(query(READ))
    (backend,) = [each for each in cached.backends if each.pool.name == "readonly"]
    backend.server.data_received(message(b"N", b"SNOTICE\0Mhello\0\0"))
    cached.settle()
    assert cached.results.stores == 0


def test_permission_and_rate_come_first(cached: Cached) -> None:
    client = cached.client(rate=2)
    for _ in range(2):
        client.ask(query(READ))
    assert cached.results.hits == 1
    assert error(client.ask(query(READ)))["C"] == RateLimitExceeded.sqlstate


# -- who may have it


def test_where_it_is_for_those_who_ask(cached: Cached) -> None:
    cached.results.on = False
    client = cached.client()
    client.ask(query(READ))
    assert cached.results.misses == 0
    client.ask(query(f"{READ} /* sluice: cache=30s */"))
    client.ask(query(f"{READ} /* sluice: cache=30s */"))
    assert cached.results.hits == 1
    client.session.key.caches = 1
    client.ask(query(READ))
    client.ask(query(READ))
    assert cached.results.hits == 2


def test_a_comment_gets_at_most_what_is_allowed(cached: Cached) -> None:
    cached.results.max_ttl = 60.0
    client = cached.client()
    client.ask(query(f"{READ} /* sluice: cache=1h */"))
    later(cached, 59.0)
    client.ask(query(f"{READ} /* sluice: cache=1h */"))
    later(cached, 2.0)
    client.ask(query(f"{READ} /* sluice: cache=1h */"))
    assert (cached.results.hits, cached.results.stores) == (1, 2)


def test_a_pool_that_may_write_keeps_results_only_where_it_says_so(cached: Cached) -> None:
    client = cached.client(pool="priority")
    client.ask(query(READ))
    assert cached.results.misses == 0
    cached.results.pools = {"priority": True}
    client.ask(query(READ))
    client.ask(query(READ))
    assert cached.results.hits == 1
    cached.results.pools = {"readonly": False}
    cached.client().ask(query(f"{READ} /* sluice: cache=30s */"))
    assert cached.results.misses == 1


def test_a_read_that_was_refused_as_one_counts_as_a_write(clock: Clock) -> None:
    cached = Cached(clock, replica=True)
    other, client = cached.client("bob"), cached.client()
    other.ask(query(READ))
    client.ask(query("SELECT 1"))
    for backend in cached.of("readonly", "two"):
        backend.refuses["hidden"] = "25006"
    later(cached)
    assert kinds(client.ask(query("SELECT * FROM hidden"))).endswith("C ZI")
    later(cached)
    assert cached.results.entries == {}
    assert client.session.last_write > 0.0


# -- one for many


def test_many_who_ask_at_once_get_one_answer(cached: Cached) -> None:
    clients = [cached.client() for _ in range(20)]
    for client in clients:
        client.send(query(READ))
    cached.settle()
    answers = {client.take() for client in clients}
    assert len(answers) == 1
    assert rows(answers.pop()) == ["alice"]
    assert cached.asked() == 1
    assert (cached.results.waits, cached.results.hits) == (19, 19)
    cached.check()


def waiting(cached: Cached) -> tuple[Client, Client]:
    """Return a client that asks, and one that waits for its answer; the server has not been heard."""
    first, second = cached.client(), cached.client()
    first.ask(query("SELECT 1"))
    first.send(query(READ))
    second.send(query(READ))
    assert second.session.awaiting is not None
    return first, second


def died(cached: Cached, first: Client) -> None:
    (backend,) = [each for each in cached.backends if each.server.borrower is first.session]
    backend.die()


FAILURES: dict[str, Callable[[Cached, Client], object]] = {
    "an error": lambda cached, first: cached.failing.update({"notes": "42P01"}),
    "its client goes": lambda cached, first: first.vanish(),
    "its client doesn't read": lambda cached, first: first.session.pause_writing(),
    "its client sends more": lambda cached, first: first.send(query("SELECT 2")),
    "its server dies": lambda cached, first: died(cached, first),
    "a write": lambda cached, first: cached.results.wrote(["notes"], cached.now + 0.001),
    "no results any more": lambda cached, first: cached.results.let_go(cached.now),
    "it takes too long": lambda cached, first: cached.results.tick(cached.now + PATIENCE + 1.0),
}


@pytest.mark.parametrize("fails", FAILURES.values(), ids=FAILURES.keys())
def test_where_that_fails_they_ask_by_themselves(
    cached: Cached, fails: Callable[[Cached, Client], object]
) -> None:
    first, second = waiting(cached)
    fails(cached, first)
    cached.settle()
    cached.results.tick(cached.now)
    assert kinds(second.take()) in ("T D C ZI", "E:42P01 ZI")
    assert second.session.awaiting is None
    assert second.session.filling is None
    cached.check()


def test_too_large_an_answer_is_not_waited_for_again(cached: Cached) -> None:
    cached.results.max_entry = 10
    first, second = waiting(cached)
    cached.settle()
    assert kinds(second.take()) == "T D C ZI"
    assert cached.asked() == 2
    first.send(query(READ))
    second.send(query(READ))
    assert cached.results.flights == {}
    cached.settle()
    assert cached.asked() == 4


def test_who_waits_can_be_cancelled(cached: Cached) -> None:
    first, second = waiting(cached)
    assert second.session.cancel() is None
    assert error(second.take())["C"] == "57014"
    cached.settle()
    assert kinds(first.take()) == "T D C ZI"
    assert second.take() == b""
    assert rows(second.ask(query(READ))) == ["alice"]


def test_who_waits_can_go(cached: Cached) -> None:
    first, second = waiting(cached)
    second.vanish()
    cached.settle()
    assert kinds(first.take()) == "T D C ZI"
    cached.check()


def test_what_it_sends_meanwhile_waits_for_its_turn(cached: Cached) -> None:
    _, second = waiting(cached)
    second.send(query(OTHER))
    assert second.session.pending != b""
    cached.settle()
    assert kinds(second.take()) == "T D C ZI T D C ZI"


def test_whoever_has_written_since_does_not_take_it(cached: Cached) -> None:
    writer = cached.client()
    first, _ = waiting(cached)
    later(cached)
    # Not through its relation: by a trigger, say.
    writer.session.last_write = cached.now
    writer.send(query(READ))
    assert writer.session.awaiting is None
    cached.settle()
    assert cached.asked() == 2
    assert kinds(first.take()) == "T D C ZI"


def test_no_connection_for_who_asks(cached: Cached) -> None:
    first, second = cached.client(), cached.client()
    first.send(query(READ))
    second.send(query(READ))
    cached.fail_to_open(UpstreamUnavailable())
    assert kinds(first.take()) == "E:08006 ZI"
    assert first.session.filling is None
    assert second.session.awaiting is None


# -- replicas


def test_a_replicas_answer_is_as_old_as_what_it_has_replayed(clock: Clock) -> None:
    cached = Cached(clock, replica=True)
    replica = cached.cluster.hosts[1]
    replica.fresh_as_of = cached.now - 3.0
    cached.results.ttl = 5.0
    client = cached.client()
    client.ask(query(READ))
    assert [entry.as_of for entry in cached.results.entries.values()] == [cached.now - 3.0]
    later(cached, 1.9)
    client.ask(query(READ))
    assert cached.results.hits == 1
    later(cached, 0.2)
    client.ask(query(READ))
    assert cached.results.hits == 1


def test_a_replicas_answer_from_before_a_write_is_not_kept(clock: Clock) -> None:
    cached = Cached(clock, replica=True)
    cached.cluster.hosts[1].fresh_as_of = cached.now - 1.0
    cached.client("bob").ask(query(WRITE))
    later(cached)
    cached.client().ask(query(READ))
    assert [len(each.sql) for each in cached.of("readonly", "two")] == [1]
    assert cached.results.stores == 0


def test_a_read_sent_once_more_is_kept_as_of_then(clock: Clock) -> None:
    cached = Cached(clock, replica=True)
    client = cached.client()
    client.ask(query("SELECT 1"))
    (backend,) = cached.of("readonly", "two")
    client.send(query(READ))
    later(cached, 1.0)
    backend.die()
    cached.settle()
    assert kinds(client.take()) == "T D C ZI T D C ZI"[len("T D C ZI ") :]
    assert [entry.as_of for entry in cached.results.entries.values()] == [cached.now]


# -- stale while it is asked for anew


class Refreshing:
    """Takes down what is to be asked anew."""

    def __init__(self, world: Cached) -> None:
        self.asked: list[bytes] = []
        world.database.refresh = self.refresh

    def refresh(self, asker: object, flight: object, data: bytes) -> bool:
        self.asked.append(data)
        return True


def test_a_stale_result_is_given_while_one_asks_anew(cached: Cached) -> None:
    refreshing = Refreshing(cached)
    cached.results.ttl, cached.results.stale = 5.0, 10.0
    client = cached.client()
    client.ask(query(READ))
    later(cached, 6.0)
    for _ in range(3):
        assert rows(client.ask(query(READ))) == ["alice"]
    assert refreshing.asked == [query(READ)]
    assert cached.results.stale_hits == 3
    later(cached, 10.0)
    client.send(query(READ))
    # It is waited for now.
    assert client.session.awaiting is not None


def test_what_is_asked_anew_needs_nothing_prepared(cached: Cached) -> None:
    refreshing = Refreshing(cached)
    cached.results.ttl, cached.results.stale = 5.0, 10.0
    client = cached.client()
    client.ask(parse("s", READ) + SYNC)
    asked = bind("s", values=(b"7",)) + describe("", b"P") + execute() + SYNC
    client.ask(asked)
    later(cached, 6.0)
    client.ask(asked)
    assert refreshing.asked == [
        parse("", READ) + bind(values=(b"7",)) + describe("", b"P") + execute() + SYNC
    ]


# -- what else a client sees


def test_it_is_in_the_access_log(cached: Cached) -> None:
    client = cached.client()
    client.ask(run(READ))
    client.ask(run(READ))
    asked, kept = [row for row in decode(cached.access.take()) if row["event"] == "statement"]
    assert (kept["pool"], kept["host"], kept["target"], kept["reason"]) == (
        "cache",
        None,
        "cache",
        "kept result",
    )
    for column in ("statement", "rows", "bytes_in", "bytes_out", "intent"):
        assert kept[column] == asked[column], column


def test_it_is_told_what_the_server_would_have_told_of_itself(cached: Cached) -> None:
    first = cached.client()
    first.ask(query(READ))
    (entry,) = cached.results.entries.values()
    cached.results.families[entry.family][b"TimeZone"] = b"Asia/Tokyo"
    second = cached.client()
    assert kinds(second.ask(query(READ))) == "S:TimeZone=Asia/Tokyo T D C ZI"
    assert kinds(second.ask(query(READ))) == "T D C ZI"


def test_what_is_unnamed_afterwards_is_what_was_parsed(cached: Cached) -> None:
    client = cached.client()
    client.ask(run(READ))
    later(cached)
    assert kinds(client.ask(run(READ))) == "1 2 D C ZI"
    assert kinds(client.ask(bind() + execute() + SYNC)) == "2 D C ZI"
    client.ask(query("SELECT 1"))
    client.ask(query(READ))
    later(cached)
    client.ask(parse("", READ) + SYNC)
    client.ask(query(READ))
    assert kinds(client.ask(bind() + execute() + SYNC)) == "E:26000 ZI"
    cached.check()


def test_paused_it_waits_as_everything_does(cached: Cached) -> None:
    client = cached.client()
    client.ask(query(READ))
    cached.cluster.pause(cached.now)
    assert client.ask(query(READ)) == b""
    cached.cluster.unpause(cached.now)
    cached.settle()
    assert kinds(client.take()) == "T D C ZI"


def test_off_nothing_is_looked_up(world: World) -> None:
    client = world.client()
    client.ask(query(READ))
    client.ask(query(READ))
    assert sum(each.sql.count(READ) for each in world.backends) == 2
    assert client.session.filling is None
    assert client.session.changed == {}
