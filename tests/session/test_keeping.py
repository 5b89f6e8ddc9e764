"""What keeps results current beside their sessions."""

from __future__ import annotations

import pytest

from proxy.config.model import Database
from proxy.session.keeping import MAX_ASKING, Keeping
from tests.session.conftest import Clock
from tests.session.fakes import World
from tests.session.frontend import SYNC, bind, describe, execute, message, parse, query, rows

READ = "SELECT owner FROM notes"


def settings(mode: str = "on", **cache: str) -> Database:
    return Database.model_validate({"database": "app", "cache": {"mode": mode, **cache}})


class Kept(World):
    """A world with results as the configuration says."""

    def __init__(self, clock: Clock, **cache: str) -> None:
        super().__init__()
        self.clock = clock
        self.keeping = Keeping(self.database)
        # As Served does, among other things.
        self.cluster.primary_changed = self.keeping.flush
        self.results = self.keeping.results
        self.keeping.take_over(settings(**cache))
        clock.now += 1.0


@pytest.fixture
def kept(clock: Clock) -> Kept:
    return Kept(clock, ttl="5s", stale_while_revalidate="10s")


@pytest.mark.parametrize(
    "asked",
    [
        query(READ),
        parse("", READ) + bind() + describe("", b"P") + execute() + SYNC,
        bind("s", values=(b"7",)) + execute() + SYNC,
        bind("s") + message(b"E", b"\0\0\0\0\1") + SYNC,
    ],
    ids=["simple", "unnamed", "named", "row limit"],
)
def test_a_stale_result_is_asked_for_anew_without_a_client(kept: Kept, asked: bytes) -> None:
    client = kept.client()
    client.ask(parse("s", READ) + SYNC)
    client.ask(asked)
    kept.clock.now += 6.0
    assert rows(client.ask(asked)) == ["alice"]
    assert kept.results.stale_hits == 1
    assert [entry.as_of for entry in kept.results.entries.values()] == [kept.clock.now]
    client.ask(asked)
    assert (kept.results.stale_hits, kept.results.hits) == (1, 2)
    kept.keeping.tick(kept.clock.now)
    kept.check()
    assert [each.server.label for each in kept.of("readonly")] == ["alice"]
    assert {ran.owner for each in kept.backends for ran in each.ran if ran.sql == READ} == {"alice"}


def test_no_more_than_so_many_are_asked_for_at_a_time(kept: Kept) -> None:
    client = kept.client()
    texts = [query(f"{READ} WHERE a = {number}") for number in range(MAX_ASKING + 1)]
    for text in texts:
        client.ask(text)
    kept.clock.now += 6.0
    for text in texts:
        client.send(text)
    assert len(kept.results.flights) == MAX_ASKING
    kept.settle()
    kept.keeping.tick(kept.clock.now)
    assert kept.results.flights == {}


def test_a_question_that_is_not_answered_is_given_up(kept: Kept) -> None:
    client = kept.client()
    client.ask(query(READ))
    kept.clock.now += 6.0
    client.send(query(READ))
    kept.clock.now += 31.0
    kept.keeping.tick(kept.clock.now)
    assert len(kept.abandoned) == 1
    assert kept.results.flights == {}
    kept.settle()
    kept.check()


def test_a_notification_drops_what_it_names(kept: Kept) -> None:
    client = kept.client()
    client.ask(query(READ))
    kept.keeping.heard("others")
    assert len(kept.results.entries) == 1
    kept.keeping.heard("notes")
    assert kept.results.entries == {}
    for payload in ("*", "", "x" * 1000):
        kept.clock.now += 1.0
        client.ask(query(READ))
        assert len(kept.results.entries) == 1
        kept.keeping.heard(payload)
        assert kept.results.entries == {}


def test_another_primary_drops_everything(kept: Kept) -> None:
    kept.client().ask(query(READ))
    kept.cluster.hosts[0].up = False
    kept.cluster.roles_changed()
    assert kept.results.entries == {}


def test_turned_off_and_on_again(kept: Kept) -> None:
    client = kept.client()
    client.ask(query(READ))
    kept.keeping.take_over(settings("off"))
    assert kept.database.results is None
    assert kept.results.entries == {}
    kept.clock.now += 1.0
    client.ask(query(READ))
    kept.keeping.take_over(settings("asked", max_bytes="1MiB", max_entry="1KiB"))
    kept.clock.now += 1.0
    client.ask(query(READ))
    assert kept.results.misses == 1
    assert (kept.results.max_bytes, kept.results.max_entry) == (1 << 20, 1 << 10)
    kept.keeping.take_over(Database.model_validate({"cache": {"mode": "on"}, "pool_mode": "session"}))
    assert kept.database.results is None
