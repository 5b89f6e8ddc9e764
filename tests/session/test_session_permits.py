"""Keys whose limit several proxies share: what waits for the store of rate limits, and in which order it goes on."""

from __future__ import annotations

import pytest

from proxy.auth.ratelimit import LeasedBucket
from tests.session.conftest import Clock
from tests.session.fakes import Client, World
from tests.session.frontend import (
    FLUSH,
    SYNC,
    TERMINATE,
    bind,
    error,
    execute,
    kinds,
    parse,
    query,
    run,
)

INSERT = "INSERT INTO t VALUES ('alice')"


class Store:
    """Answers when a test has it do so."""

    def __init__(self, clock: Clock) -> None:
        self.clock = clock
        self.asked: list[tuple[LeasedBucket, int]] = []

    def lease(self, bucket: LeasedBucket, count: int) -> None:
        self.asked.append((bucket, count))

    def grant(self) -> None:
        bucket, count = self.asked.pop(0)
        bucket.granted(count, self.clock.now)

    def refuse(self, seconds: float) -> None:
        self.asked.pop(0)[0].refused(seconds, self.clock.now)

    def fail(self) -> None:
        self.asked.pop(0)[0].failed(self.clock.now)


@pytest.fixture
def store(clock: Clock) -> Store:
    return Store(clock)


@pytest.fixture
def world(clock: Clock) -> World:
    return World()


def limited(world: World, store: Store, per_minute: int = 600) -> Client:
    client = world.client()
    client.session.bucket = LeasedBucket(per_minute, store.clock.now, store.lease)
    client.session.key.rate_limit_per_minute = per_minute
    return client


def all_granted(client: Client, store: Store) -> bytes:
    """Grant whatever is asked for, until nothing is."""
    client.world.settle()
    while store.asked:
        store.grant()
        client.world.settle()
    return client.take()


@pytest.mark.parametrize(
    ("messages", "expected"),
    [
        ([query("SELECT 1")], "T D C ZI"),
        ([query("SELECT 1"), query("SELECT 2"), query(INSERT)], "T D C ZI T D C ZI C ZI"),
        ([run("SELECT 1"), run(INSERT)], "1 2 D C ZI 1 2 C ZI"),
        (
            [parse("", "SELECT 1"), bind(), execute(), FLUSH, parse("", INSERT), bind(), execute(), SYNC],
            "1 2 D C 1 2 C ZI",
        ),
        ([parse("", INSERT), bind(), execute(), bind(), execute(), SYNC], "1 2 C 2 C ZI"),
        ([parse("", INSERT), bind(), execute(), query("SELECT 1")], "1 2 C T D C ZI"),
        ([query("BEGIN"), run(INSERT), query("COMMIT")], "C ZT 1 2 C ZT C ZI"),
        ([query("SELECT '" + "x" * 20_000 + "'"), query("SELECT 2")], "T D C ZI T D C ZI"),
    ],
)
@pytest.mark.parametrize("piece", [0, 1, 7])
def test_what_waited_goes_on_in_its_order(
    world: World, store: Store, messages: list[bytes], expected: str, piece: int
) -> None:
    client = limited(world, store)
    data = b"".join(messages)
    if piece:
        for start in range(0, len(data), piece):
            client.send(data[start : start + piece])
    else:
        client.send(data)
    assert kinds(all_granted(client, store)) == expected
    assert client.session.waits == 0 and not client.session.pending
    world.check()


def test_nothing_is_sent_before_the_store_has_answered(world: World, store: Store) -> None:
    client = limited(world, store)
    assert client.ask(query("SELECT 1"), query("SELECT 2")) == b""
    assert not world.backends and not client.session.idle()
    store.grant()
    world.settle()
    assert kinds(client.take()) == "T D C ZI"
    assert kinds(all_granted(client, store)) == "T D C ZI"


def test_a_refusal_says_when_and_the_session_stays_usable(world: World, store: Store, clock: Clock) -> None:
    client = limited(world, store)
    client.send(query("SELECT 1"))
    store.refuse(12.0)
    answer = client.take()
    assert kinds(answer) == "E:53400 ZI"
    assert error(answer)["H"] == "Try again in 12.0 seconds."
    assert kinds(client.ask(run("SELECT 2"))) == "E:53400 ZI"
    clock.now += 12.0
    client.send(query("SELECT 3"))
    assert kinds(all_granted(client, store)) == "T D C ZI"


def test_without_the_store_the_session_goes_on(world: World, store: Store) -> None:
    client = limited(world, store)
    client.send(query("SELECT 1"))
    store.fail()
    assert kinds(client.ask(query("SELECT 2"))) == "T D C ZI T D C ZI"


def test_one_lease_serves_the_sessions_of_a_key(world: World, store: Store) -> None:
    first, second = limited(world, store), world.client()
    second.session.bucket = first.session.bucket
    for client in (first, second):
        client.send(query("SELECT 1"))
    assert len(store.asked) == 1
    assert kinds(all_granted(first, store)) == "T D C ZI"
    assert kinds(second.take()) == "T D C ZI"


def test_a_client_that_left_meanwhile_gets_nothing(world: World, store: Store) -> None:
    client = limited(world, store)
    client.send(query(INSERT))
    client.session.connection_lost(None)
    store.grant()
    world.settle()
    assert not world.backends
    world.check()


def test_what_stands_before_a_terminate_completes(world: World, store: Store) -> None:
    client = limited(world, store)
    client.send(query(INSERT), TERMINATE)
    all_granted(client, store)
    (backend,) = world.backends
    assert INSERT in backend.committed and client.session.ended
