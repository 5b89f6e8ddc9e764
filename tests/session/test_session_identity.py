"""Whose claim a server connection holds when a statement runs, and what lies between two users."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.session.backend import Backend
from tests.session.conftest import Clock
from tests.session.fakes import Client, World
from tests.session.frontend import (
    COPY_DONE,
    FLUSH,
    SYNC,
    TERMINATE,
    bind,
    copy_data,
    error,
    execute,
    kinds,
    message,
    parse,
    query,
    run,
)

CLAIM = "SELECT pg_catalog.set_config($1, $2, false)"


def claims(backend: Backend) -> int:
    """Return how often an identity was set."""
    return sum("set_config($1" in ran.sql for ran in backend.ran)


def test_the_identity_goes_in_one_write_with_the_clients_first_bytes(world: World) -> None:
    client = world.client()
    first = parse("", "SELECT 1") + bind() + execute() + SYNC
    client.send(first)
    world.open()
    (backend,) = world.backends
    (written,) = backend.transport.writes
    assert written.endswith(first) and b"alice~100~readonly~" in written
    world.settle()
    assert [(ran.owner, ran.sql) for ran in backend.ran] == [("", CLAIM), ("alice", "SELECT 1")]
    client.ask(query("SELECT 2"))
    assert backend.transport.writes[1:] == [query("SELECT 2")], "the claim still holds"


def test_the_identity_goes_in_one_write_with_the_settings(world: World) -> None:
    client = world.client(settings={"timezone": "Asia/Tokyo"})
    client.ask(query("SELECT 1"))
    (backend,) = world.backends
    assert len(backend.transport.writes) == 1
    assert backend.owner == "alice" and backend.settings["timezone"] == "Asia/Tokyo"


def test_the_identity_is_renewed_after_half_of_its_time(clock: Clock) -> None:
    world = World()
    client = world.client()
    client.ask(query("SELECT 1"))
    (backend,) = world.backends
    clock.now += 59.9
    client.ask(query("SELECT 2"))
    assert claims(backend) == 1
    clock.now += 0.1
    client.ask(query("SELECT 3"))
    assert claims(backend) == 2
    assert backend.transport.all.count(b"SELECT pg_catalog.set_config") == 1, "parsed once"
    before, after = (part.split(b"\0")[0] for part in backend.transport.all.split(b"~readonly~")[1:])
    assert int(after) - int(before) == 60


def test_the_identity_is_renewed_on_a_pinned_connection(clock: Clock) -> None:
    world = World()
    client = world.client()
    client.ask(query("LISTEN a"))
    clock.now += 61
    client.ask(query("SELECT 1"))
    assert claims(world.backends[0]) == 2


def test_the_identity_is_never_renewed_inside_a_transaction(clock: Clock) -> None:
    world = World()
    client = world.client()
    client.ask(query("BEGIN"))
    clock.now += 61
    client.ask(query("SELECT 1"), run("SELECT 2"), query("COMMIT"))
    (backend,) = world.backends
    assert claims(backend) == 1
    client.ask(query("BEGIN"))
    assert claims(backend) == 2


def test_the_identity_is_never_renewed_between_flush_and_sync(clock: Clock) -> None:
    world = World()
    client = world.client()
    client.ask(parse("", "SELECT 1"), bind(), execute(), FLUSH)
    clock.now += 61
    client.ask(bind(), execute(), FLUSH)
    client.ask(SYNC)
    assert claims(world.backends[0]) == 1


def test_the_identity_is_set_again_after_an_error_in_the_unit_that_carried_it(world: World) -> None:
    client = world.client()
    client.ask(query("SELECT 1/0"))
    client.ask(query("SELECT 1"))
    client.ask(query("SELECT 2"))
    assert claims(world.backends[0]) == 2


@pytest.mark.parametrize("sql", ["RESET ALL", "DISCARD ALL"])
@pytest.mark.parametrize("way", [query, run])
def test_what_stands_behind_a_reset_runs_under_the_identity(world: World, sql: str, way: object) -> None:
    client = world.client()
    client.ask(query("SELECT 1"))
    (backend,) = world.backends
    reset = query(sql) if way is query else run(sql)
    client.ask(reset, query("SELECT 2"), run("SELECT 3"))
    selects = [ran for ran in backend.ran if ran.sql in ("SELECT 1", "SELECT 2", "SELECT 3")]
    assert [ran.owner for ran in selects] == ["alice"] * 3


@pytest.mark.parametrize("stands_behind", [query("SELECT 1"), run("SELECT 1"), query("BEGIN")])
def test_an_identity_that_is_refused_ends_the_client_and_its_connection(
    world: World, stands_behind: bytes
) -> None:
    client = world.client()
    client.send(stands_behind)
    world.open()
    (backend,) = world.backends
    backend.fails["set_config"] = "42501"
    world.settle()
    answer = client.take()
    assert kinds(answer) == "FATAL:08006"
    assert "identity" in error(answer)["M"]
    assert client.closed() and backend.transport.aborted
    assert all(pool.size == 0 for pool in world.cluster.hosts[0].pools.values())


def test_without_a_signing_key_nothing_is_sent(world: World) -> None:
    world.database.signer = None
    client = world.client()
    assert kinds(client.ask(query("SELECT 1"))) == "E:08006 ZI"
    assert kinds(client.ask(run("SELECT 1"))) == "E:08006 ZI"
    assert world.backends[0].transport.all == b""
    world.check()


def test_with_identity_off_none_is_set(world: World) -> None:
    world.database.signer = None
    world.database.signed = False
    client = world.client()
    assert kinds(client.ask(query("SELECT 1"))) == "T D C ZI"
    assert world.backends[0].transport.all == query("SELECT 1")


def test_another_users_bytes_wait_for_the_confirmed_reset() -> None:
    world = World(maximum=1)
    alice, bob = world.client("alice"), world.client("bob")
    alice.ask(query("SELECT 'alice'"))
    (backend,) = world.backends
    bob.send(query("SELECT 'bob'"))
    assert backend.transport.writes[-1] == query("DISCARD ALL")
    backend.answer()
    assert b"'bob'" in backend.transport.writes[-1]
    world.settle()
    assert kinds(bob.take()) == "T D C ZI"
    assert backend.ran[-1].owner == "bob"


def test_a_failed_reset_closes_the_connection() -> None:
    world = World(maximum=1)
    alice, bob = world.client("alice"), world.client("bob")
    alice.ask(query("SELECT 'alice'"))
    (backend,) = world.backends
    backend.fails["DISCARD ALL"] = "57014"
    assert kinds(bob.ask(query("SELECT 'bob'"))) == "T D C ZI"
    assert backend.transport.aborted
    assert [ran.owner for ran in world.backends[1].ran] == ["", "bob"]


def test_with_strict_isolation_a_connection_is_never_anothers() -> None:
    world = World(maximum=1, strict=True)
    alice, bob = world.client("alice"), world.client("bob")
    alice.ask(query("SELECT 'alice'"))
    bob.ask(query("SELECT 'bob'"))
    first, second = world.backends
    assert first.terminated and second.sql == ["SELECT 'bob'"]


@pytest.mark.parametrize("sql", ["DO $$ $$", "SELECT unheard_of()"])
def test_what_may_have_changed_the_session_unseen_is_reset_before_any_other(sql: str) -> None:
    world = World(maximum=1)
    alice = world.client("alice", ("admin",))
    alice.ask(query(sql))
    world.settle()
    (backend,) = world.backends
    assert backend.ran[-1].sql == "DISCARD ALL"
    alice.ask(query("SELECT 1"))
    assert backend.ran[-1].owner == "alice"


def test_what_outlives_a_reset_closes_the_connection(world: World) -> None:
    client = world.client("root", ("admin",))
    client.ask(query("LOAD 'x'"))
    client.send(TERMINATE)
    world.settle()
    assert world.backends[0].terminated


def test_a_copy_that_fails_in_the_middle_of_its_data_keeps_its_connection() -> None:
    world = World(maximum=1)
    alice, bob = world.client("alice"), world.client("bob")
    alice.ask(query("COPY t FROM STDIN"))
    data = copy_data(b"x" * 300_000)
    alice.send(copy_data(b"bad"), data[:100_000])
    world.settle()
    assert kinds(alice.take()) == "E:22P04 ZI"
    bob.send(query("INSERT INTO t VALUES ('bob')"))
    world.settle()
    assert bob.take() == b"", "the connection has half of alice's message"
    alice.send(data[100_000:], COPY_DONE)
    world.settle()
    assert kinds(bob.take()) == "C ZI"
    assert kinds(alice.ask(query("SELECT 1"))) == "T D C ZI"


def test_a_client_that_vanishes_in_the_middle_of_a_message_leaves_a_closed_connection(world: World) -> None:
    client = world.client()
    client.ask(query("COPY t FROM STDIN"))
    client.send(copy_data(b"bad"), copy_data(b"x" * 300_000)[:100_000])
    world.settle()
    client.vanish()
    assert world.backends[0].transport.aborted


# -- any order of things

USERS = ("alice", "bob", "carol")


def mark(user: str, sql: str) -> str:
    return sql.replace("?", f"'{user}'")


def step(user: str, number: int) -> bytes:
    """Return one thing that a client may do, with its user's name in each statement."""
    read, write = mark(user, "SELECT ?"), mark(user, "INSERT INTO t VALUES (?)")
    return [
        query(read),
        query(write),
        run(read),
        run(write),
        parse("", read) + bind() + execute() + FLUSH,
        SYNC,
        query("BEGIN"),
        query("COMMIT"),
        query("ROLLBACK"),
        query(mark(user, "SELECT 1/0, ?")),
        run(mark(user, "SELECT 1/0, ?")),
        query("RESET ALL") + query(read),
        query("DISCARD ALL") + run(read),
        parse("", "RESET ALL") + bind() + execute() + parse("", read) + bind() + execute() + FLUSH,
        parse("", "DISCARD ALL") + bind() + execute() + FLUSH + run(write),
        query("SET TimeZone = 'Asia/Tokyo'") + run(write),
        query(mark(user, "DO ?")),
        query("LISTEN a"),
        query("COPY t FROM STDIN") + copy_data(b"1") + COPY_DONE,
        query(write) + TERMINATE,
        run(write) + run(read) + query(read),
    ][number]


actions = st.one_of(
    st.tuples(st.sampled_from(["send"]), st.integers(0, 5), st.integers(0, 20)),
    st.tuples(st.sampled_from(["answer"]), st.integers(0, 9), st.integers(1, 8)),
    st.tuples(st.sampled_from(["open", "vanish", "settle", "fail"]), st.integers(0, 9), st.just(0)),
)


def act(world: World, clients: list[Client], users: list[str], what: tuple[str, int, int]) -> None:
    verb, which, number = what
    if verb == "send":
        client = clients[which]
        if not client.closed():
            client.send(step(users[which], number))
    elif verb == "open":
        world.open()
    elif verb == "settle":
        world.settle()
    elif verb == "vanish" and which < len(clients) and not clients[which].closed():
        clients[which].vanish()
        clients[which] = world.client(users[which], ("admin", "write:tasks"))
    elif world.backends and verb == "answer":
        backend = world.backends[which % len(world.backends)]
        backend.answer(number)
    elif world.backends and verb == "fail":
        backend = world.backends[which % len(world.backends)]
        backend.fails[["DISCARD ALL", "set_config", "ROLLBACK"][which % 3]] = "57014"


@pytest.mark.parametrize("first", ["SELECT 'alice'", "RESET ALL", "SELECT 1/0, 'alice'", "SELEC"])
def test_what_is_pipelined_behind_a_reset_all_behind_a_flush_runs_as_its_user(
    world: World, first: str
) -> None:
    client = world.client()
    client.send(parse("", first), bind(), execute(), FLUSH, query("RESET ALL"), query("SELECT 'alice'"), SYNC)
    world.settle()
    assert client.take()[-6:-5] == b"Z"
    for backend in world.backends:
        assert {ran.owner for ran in backend.ran if "'alice'" in ran.sql} <= {"alice"}


@given(st.lists(actions, max_size=40), st.integers(1, 3), st.booleans())
@settings(max_examples=80, deadline=None)
def test_whatever_the_order_each_statement_runs_as_its_own_user(
    what: list[tuple[str, int, int]], maximum: int, strict: bool
) -> None:
    # The fake server itself refuses bytes of a user before the reset behind another was answered.
    world = World(maximum=maximum, strict=strict)
    users = [USERS[at % 3] for at in range(6)]
    clients = [world.client(user, ("admin", "write:tasks")) for user in users]
    for each in what:
        act(world, clients, users, each)
    world.settle()
    for client in clients:
        if not client.closed():
            client.vanish()
    world.settle()
    world.check()
    for backend in world.backends:
        for ran in backend.ran:
            marked = [user for user in USERS if f"'{user}'" in ran.sql]
            # RESET ALL takes the identity away until the transaction ends: nobody's is safe, and no rows.
            nobody = ran.owner == "" and (ran.status == "T" or backend.refused_claim)
            assert not marked or nobody or [ran.owner] == marked, ran.sql
    for host in world.cluster.hosts:
        for pool in host.pools.values():
            assert pool.idle_count == pool.size and pool.pinned == 0 and pool.waiters.length == 0


def test_the_fake_server_tells_of_bytes_before_a_reset() -> None:
    world = World()
    alice = world.client("alice")
    world.client("bob")
    alice.ask(query("SELECT 'alice'"))
    with pytest.raises(AssertionError, match="bytes of bob"):
        world.backends[0].transport.write(message(b"Q", b"SELECT 'bob'\0"))


def test_preludes_and_their_claims_are_counted() -> None:
    world = World(maximum=1)
    alice, bob = world.client("alice", settings={"timezone": "Asia/Tokyo"}), world.client("bob")
    for _ in range(3):
        alice.ask(query("SELECT 1"))
    pool = world.pool("readonly")
    assert (pool.stats.preludes, pool.stats.claims, pool.stats.assignments) == (1, 1, 3), (
        "the others find what it has set"
    )
    bob.ask(query("SELECT 1"))
    assert pool.stats.resets == 1
    assert (pool.stats.preludes, pool.stats.claims, pool.stats.assignments) == (2, 2, 4)
