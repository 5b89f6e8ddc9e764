"""Pools: which connection is lent to whom, who waits, what is done to what comes back, and what limits hold."""

from __future__ import annotations

import pytest

from proxy.errors import UpstreamUnavailable
from proxy.upstream.pool import RESET_TIMEOUT, PoolLimits
from proxy.upstream.server import CLOSED
from proxy.wire.messages import query
from tests.session.backend import FakeTransport
from tests.session.fakes import limits
from tests.session.frontend import message
from tests.upstream.pools import Rig, User, confirm, written

FAILED = message(b"E", b"SERROR\0C57014\0Mtoo slow\0\0") + message(b"Z", b"I")


# -- who gets what


def test_an_idle_connection_of_ones_own_is_lent_at_once() -> None:
    rig = Rig(limits(5))
    clean, own, other = rig.idle("", 1.0), rig.idle("alice", 2.0), rig.idle("bob", 0.0)
    assert rig.take("alice").server is own
    assert rig.take("alice").server is clean
    assert rig.take("alice").server is None
    assert written(other) == query(b"DISCARD ALL")
    assert rig.wanted == 0, "a reset is on its way"


def test_the_last_used_of_ones_own_comes_first() -> None:
    rig = Rig(limits(5))
    rig.idle("alice", 1.0)
    last = rig.idle("alice", 2.0)
    assert rig.take("alice").server is last


def test_a_strangers_connection_is_the_least_recently_used_after_its_reset() -> None:
    rig = Rig(limits(5))
    newer, older = rig.idle("bob", 2.0), rig.idle("carol", 1.0)
    older.unnamed = None
    older.preludes.add(1)
    user = rig.take("alice")
    assert written(newer) == b""
    confirm(older)
    assert user.servers == [None, older]
    assert older.label == "" and not older.preludes and older.borrower is user
    assert rig.pool.stats.resets == 1


def test_where_none_is_idle_one_is_opened_up_to_the_maximum() -> None:
    rig = Rig(limits(2))
    users = [rig.take("alice") for _ in range(3)]
    assert rig.wanted == 2 and rig.pool.size == 2
    first, second = rig.open(), rig.open()
    assert [user.server for user in users] == [first, second, None]
    rig.release(users[0])
    assert users[2].server is first


def test_waiters_are_served_oldest_first_whoever_owns_the_connection() -> None:
    rig = Rig(limits(1))
    holder = rig.take("alice")
    server = rig.open()
    bob, alice = rig.take("bob"), rig.take("alice")
    rig.release(holder)
    assert alice.server is None
    confirm(server)
    assert bob.server is server and alice.server is None
    rig.release(bob)
    confirm(server)
    assert alice.server is server


def test_one_who_comes_later_does_not_overtake() -> None:
    rig = Rig(limits(2))
    rig.idle("carol", 0.0)
    bob = rig.take("bob")
    rig.idle("carol", 0.0)
    assert bob.server is None
    carol = rig.take("carol")
    assert carol.server is None and rig.pool.waiters.length == 2


def test_one_who_leaves_is_not_granted_anything() -> None:
    rig = Rig(limits(1))
    holder = rig.take("alice")
    rig.open()
    users = [rig.take("alice") for _ in range(3)]
    for at in (1, 2):
        rig.pool.leave(users[at])
    rig.pool.leave(users[1])
    rig.release(holder)
    assert [user.server is None for user in users] == [False, True, True]
    assert rig.pool.waiters.length == 0


def test_a_connection_that_nobody_waits_for_any_more_stands_idle_and_clean() -> None:
    rig = Rig(limits(1))
    server = rig.idle("bob", 0.0)
    user = rig.take("alice")
    rig.pool.leave(user)
    confirm(server)
    assert user.server is None and rig.pool.idle == {"bob": [], "": [server]}


def test_an_unclean_connection_is_reset_before_anybody_else_has_it() -> None:
    rig = Rig(limits(1))
    user = rig.take("alice")
    server = rig.open()
    server.unclean = "DO"
    rig.release(user)
    assert rig.take("alice").server is None
    assert rig.pool.idle_count == 0
    confirm(server)
    assert server.unclean == "" and rig.pool.waiters.length == 0


def test_each_time_that_a_connection_is_lent_to_somebody_counts() -> None:
    rig = Rig(limits(1))
    rig.idle("alice", 0.0)
    alice = rig.take("alice")
    waiting = rig.take("alice", 1.0)
    rig.release(alice, 2.0)
    assert waiting.server is not None
    assert rig.pool.stats.assignments == 2


# -- what comes back


def test_a_connection_under_a_cancel_is_lent_to_nobody() -> None:
    rig = Rig(limits(1))
    holder = rig.take("alice")
    server = rig.open()
    waiter = rig.take("alice")
    server.cancels += 1
    rig.release(holder)
    assert waiter.server is None and rig.pool.idle_count == 0
    rig.pool.maintain(0.0)
    assert waiter.server is None
    server.cancels -= 1
    rig.pool.give_back(server, 0.0)
    assert waiter.server is server


def test_a_returned_connection_reads_again() -> None:
    rig = Rig(limits(1))
    user = rig.take("alice")
    server = rig.open()
    server.pause_reading()
    rig.release(user)
    assert isinstance(server.transport, FakeTransport) and not server.transport.paused


def test_a_transaction_left_behind_is_rolled_back_then_reset() -> None:
    rig = Rig(limits(1))
    rig.take("alice")
    server = rig.open()
    server.replies.status = 0x54
    rig.pool.roll_back(server, 10.0)
    assert written(server) == query(b"ROLLBACK") and rig.pool.idle_count == 0
    server.data_received(message(b"C", b"ROLLBACK\0") + message(b"Z", b"I"))
    confirm(server)
    assert rig.pool.idle_count == 1 and not rig.pool.errands


def test_a_rollback_that_takes_too_long_closes_the_connection() -> None:
    rig = Rig(limits(1))
    rig.take("alice")
    server = rig.open()
    server.replies.status = 0x54
    rig.pool.roll_back(server, 10.0)
    rig.pool.maintain(10.0 + RESET_TIMEOUT)
    assert server.state != CLOSED
    rig.pool.maintain(10.1 + RESET_TIMEOUT)
    assert server.state == CLOSED and not rig.pool.errands


# -- resets that fail


@pytest.mark.parametrize("answer", [FAILED, b"D\xff\xff\xff\xff"])
def test_a_failed_reset_closes_the_connection_and_another_is_opened(answer: bytes) -> None:
    rig = Rig(limits(1))
    server = rig.idle("bob", 0.0)
    user = rig.take("alice")
    confirm(server, answer)
    assert server.state == CLOSED and rig.pool.servers == []
    assert rig.wanted == 1
    assert user.server is None
    assert rig.open() is user.server


def test_a_reset_that_takes_too_long_closes_the_connection() -> None:
    rig = Rig(limits(1))
    server = rig.idle("bob", 0.0)
    rig.take("alice", 10.0)
    rig.pool.maintain(10.0 + RESET_TIMEOUT)
    assert server.state != CLOSED
    rig.pool.maintain(10.1 + RESET_TIMEOUT)
    assert server.state == CLOSED and rig.wanted == 1 and not rig.pool.errands


def test_with_strict_isolation_a_strangers_connection_is_closed() -> None:
    rig = Rig(limits(1, strict=True))
    server = rig.idle("bob", 0.0)
    user = rig.take("alice")
    assert server.state == CLOSED and written(server) == message(b"X")
    assert rig.open() is user.server
    user.server.unclean = "DO"
    rig.release(user)
    assert rig.pool.servers == []


# -- limits


def test_one_who_waits_too_long_is_refused_with_the_pools_numbers() -> None:
    rig = Rig(limits(1, acquire_timeout=5.0))
    rig.take("alice")
    rig.open()
    early, late = rig.take("bob", 1.0), rig.take("bob", 3.0)
    rig.pool.maintain(5.9)
    assert early.errors == []
    rig.pool.maintain(6.0)
    assert late.error is None
    (error,) = early.errors
    assert error.detail == "POOL_EXHAUSTED: pool=primary host=one size=1 waiting=2"
    assert error.sqlstate == "53300"
    assert rig.pool.waiters.length == 1 and rig.pool.stats.acquire_timeouts == 1


def test_the_minimum_is_kept_open() -> None:
    rig = Rig(limits(3, minimum=2))
    rig.pool.maintain(0.0)
    assert rig.wanted == 2
    rig.open().fail(UpstreamUnavailable())
    rig.pool.maintain(0.0)
    assert rig.wanted == 2


def test_the_minimum_is_not_insisted_on_while_opening_fails() -> None:
    rig = Rig(limits(3, minimum=1))
    rig.pool.maintain(0.0)
    rig.wanted = 0
    rig.pool.open_failed(UpstreamUnavailable(extra="refused"))
    rig.pool.maintain(1.0)
    assert rig.wanted == 0 and rig.pool.last_failure == "refused"


def test_what_is_unused_for_too_long_is_closed_down_to_the_minimum() -> None:
    rig = Rig(limits(3, minimum=1, idle_timeout=10.0))
    servers = [rig.idle("alice", at) for at in (0.0, 1.0, 5.0)]
    rig.pool.maintain(11.0)
    assert [server.state == CLOSED for server in servers] == [True, True, False]
    rig.pool.maintain(100.0)
    assert servers[2].state != CLOSED


def far(strict: bool = False) -> PoolLimits:
    return PoolLimits(0, 3, 30.0, 0.0, 0.0, 0, strict, reset_idle=0.25)


def test_over_a_long_way_what_is_idle_is_reset_before_another_user_asks() -> None:
    rig = Rig(far())
    server = rig.idle("alice", 0.0)
    rig.pool.maintain(0.2)
    assert written(server) == b""
    rig.pool.maintain(0.3)
    assert written(server) == query(b"DISCARD ALL")
    rig.pool.maintain(0.6)
    assert rig.pool.idle_count == 0 and written(server) == query(b"DISCARD ALL")
    confirm(server)
    assert rig.pool.idle_count == 1
    rig.pool.maintain(5.0)
    assert written(server) == query(b"DISCARD ALL")
    assert rig.take("bob", 5.0).server is server


@pytest.mark.parametrize("numbers", [far(strict=True), limits(3)], ids=["strict", "a short way"])
def test_elsewhere_it_stays_its_users(numbers: PoolLimits) -> None:
    rig = Rig(numbers)
    server = rig.idle("alice", 0.0)
    rig.pool.maintain(20.0)
    assert (written(server), server.state == CLOSED) == (b"", False)
    assert rig.take("alice", 20.0).server is server


def test_what_is_too_old_is_closed_when_idle_or_returned() -> None:
    rig = Rig(limits(2, max_lifetime=100.0))
    idle = rig.idle("alice", 0.0)
    assert 80.0 <= idle.retire_at <= 100.0
    lent = rig.take("alice")
    rig.idle("bob", 0.0)
    rig.pool.maintain(101.0)
    assert idle.state != CLOSED and len(rig.pool.servers) == 1
    rig.release(lent, 101.0)
    assert idle.state == CLOSED and rig.pool.size == 0


def test_what_was_used_often_enough_is_closed() -> None:
    rig = Rig(limits(1, max_uses=2))
    server = rig.idle("alice", 0.0)
    rig.release(rig.take("alice"))
    assert server.state != CLOSED
    rig.release(rig.take("alice"))
    assert server.state == CLOSED


def test_all_but_one_may_be_pinned() -> None:
    pool = Rig(limits(3)).pool
    allowed = []
    for _ in range(3):
        allowed.append(pool.may_pin())
        pool.pinned += 1
    assert allowed == [True, True, False]
    assert not Rig(limits(1)).pool.may_pin()


# -- the console's commands, and the end


def test_reconnect_closes_what_is_idle_at_once_and_the_rest_as_it_comes_back() -> None:
    rig = Rig(limits(5))
    idle, lent = rig.idle("", 0.0), rig.idle("alice", 0.0)
    alice = rig.take("alice")
    assert alice.server is lent
    rig.pool.reconnect()
    assert (idle.state, rig.pool.idle_count) == (CLOSED, 0)
    assert lent.state != CLOSED
    rig.release(alice, 1.0)
    assert lent.state == CLOSED
    rig.take("alice", 2.0)
    assert rig.wanted == 1, "a new one may be opened"


def test_a_pause_closes_what_comes_back_and_sends_those_who_wait_elsewhere() -> None:
    rerouted: list[tuple[str, float]] = []

    class Patient(User):
        def reroute(self, now: float) -> None:
            rerouted.append((self.identity, now))

    rig = Rig(limits(1, minimum=1))
    rig.idle("alice", 0.0)
    alice = rig.take("alice")
    for name in ("bob", "carol"):
        assert rig.pool.take(Patient(name), 1.0) is None
    rig.pool.pause(2.0)
    assert rerouted == [("bob", 2.0), ("carol", 2.0)]
    assert rig.pool.waiters.length == 0
    rig.release(alice, 3.0)
    assert rig.pool.servers == []
    rig.pool.maintain(4.0)
    assert rig.wanted == 0, "not even the minimum"
    rig.pool.resume()
    rig.pool.maintain(5.0)
    assert rig.wanted == 1


def test_a_connection_that_was_being_opened_does_not_outlive_a_pause() -> None:
    rig = Rig(limits(2))

    class Patient(User):
        def reroute(self, now: float) -> None: ...

    rig.pool.take(Patient("alice"), 0.0)
    rig.pool.pause(1.0)
    assert rig.open(2.0).state == CLOSED
    assert rig.pool.size == 0


def test_a_draining_pool_closes_what_is_idle_now_and_the_rest_when_it_returns() -> None:
    rig = Rig(limits(3))
    idle, lent = rig.idle("alice", 0.0), rig.take("alice")
    busy = lent.server
    rig.idle("alice", 0.0)
    rig.pool.drain()
    assert len(rig.pool.servers) == 1 and busy is idle
    rig.release(lent)
    assert rig.pool.servers == []
    rig.take("alice")
    rig.pool.maintain(0.0)
    assert rig.wanted == 0
