"""claim_request and answer_request: what the HTTP API remembers of requests, each user for themselves."""

from __future__ import annotations

from uuid import uuid4

import psycopg
import pytest

from tests.integration.users import READER, MakeUser, User

pytest_plugins = ["tests.integration.taskmaster"]

ASKED, OTHER = "a" * 64, "b" * 64
CLAIM = "SELECT outcome, response FROM taskmaster.claim_request(%s, %s)"
ANSWER = "SELECT taskmaster.answer_request(%s, %s)"


def test_a_request_is_new_once(alice: User, bob: User) -> None:
    key = str(uuid4())
    assert alice.execute(CLAIM, key, ASKED) == [("new", None)]
    alice.execute(ANSWER, key, "made")
    assert alice.execute(CLAIM, key, ASKED) == [("answered", "made")]
    assert alice.execute(CLAIM, key, OTHER) == [("differs", "made")]
    assert bob.execute(CLAIM, key, ASKED) == [("new", None)]


def test_an_answer_stays_as_it_is(alice: User, bob: User) -> None:
    key = str(uuid4())
    alice.execute(CLAIM, key, ASKED)
    alice.execute(ANSWER, key, "first")
    alice.execute(ANSWER, key, "second")
    bob.execute(ANSWER, key, "bob's")
    assert alice.execute(CLAIM, key, ASKED) == [("answered", "first")]


def test_who_comes_second_waits_for_the_first(make_user: MakeUser) -> None:
    first = make_user()
    second = make_user(name=first.name)
    key = str(uuid4())
    with first.connection.transaction():
        first.execute(CLAIM, key, ASKED)
        second.execute("SET lock_timeout = '200ms'")
        with pytest.raises(psycopg.errors.LockNotAvailable):
            second.execute(CLAIM, key, ASKED)
        first.execute(ANSWER, key, "made")
    assert second.execute(CLAIM, key, ASKED) == [("answered", "made")]


def test_what_is_rolled_back_was_never_claimed(alice: User) -> None:
    key = str(uuid4())
    with alice.connection.transaction(force_rollback=True):
        alice.execute(CLAIM, key, ASKED)
    assert alice.execute(CLAIM, key, OTHER) == [("new", None)]


def test_what_has_expired_is_forgotten(alice: User, bob: User, superuser: User) -> None:
    for user in (alice, bob):
        user.execute(CLAIM, "old", ASKED)
    old = "UPDATE taskmaster.idempotency_keys SET expires_at = now() WHERE user_id = ANY (%s)"
    superuser.execute(old, [alice.name, bob.name])
    assert alice.execute(CLAIM, "old", OTHER) == [("new", None)]
    left = "SELECT user_id FROM taskmaster.idempotency_keys WHERE user_id = ANY (%s)"
    assert superuser.execute(left, [alice.name, bob.name]) == [alice.name]


def test_nobody_reads_the_table_but_administrators(alice: User, boss: User, make_user: MakeUser) -> None:
    alice.execute(CLAIM, "mine", ASKED)
    for user in (alice, make_user(*READER, role="app_ro")):
        with pytest.raises(psycopg.errors.InsufficientPrivilege):
            user.execute("SELECT * FROM taskmaster.idempotency_keys")
    with pytest.raises(psycopg.errors.InsufficientPrivilege):
        alice.execute("DELETE FROM taskmaster.idempotency_keys")
    mine = "SELECT count(*) FROM taskmaster.idempotency_keys WHERE user_id = %s"
    assert boss.value(mine, alice.name) == 1


def test_readers_and_strangers_claim_nothing(make_user: MakeUser) -> None:
    with pytest.raises(psycopg.errors.InsufficientPrivilege):
        make_user(*READER, role="app_ro").execute(CLAIM, "mine", ASKED)
    stranger = make_user()
    stranger.execute("RESET sluice.identity")
    with pytest.raises(psycopg.errors.InsufficientPrivilege):
        stranger.execute(CLAIM, "mine", ASKED)
