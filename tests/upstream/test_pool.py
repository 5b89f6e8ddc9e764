"""Pools: which connection is lent to whom, who waits, and what limits hold."""

from __future__ import annotations

import pytest

from proxy.errors import ClientError, HostUnavailable, UpstreamUnavailable
from proxy.upstream.pool import RESET_TIMEOUT, TEST_AFTER, TEST_TIMEOUT, Pool, PoolLimits
from proxy.upstream.server import CLOSED, Borrower, Server
from proxy.wire.messages import query
from proxy.wire.replies import Reply
from tests.session.backend import FakeTransport
from tests.session.fakes import limits
from tests.session.frontend import message

DISCARDED = message(b"C", b"DISCARD ALL\0") + message(b"Z", b"I")
FAILED = message(b"E", b"SERROR\0C57014\0Mtoo slow\0\0") + message(b"Z", b"I")


class User(Borrower):
    """Somebody who borrows, under a user's name."""

    def __init__(self, identity: str) -> None:
        self.identity = identity
        self.waiting_since = 0.0
        self.server: Server | None = None
        self.servers: list[Server | None] = []
        self.error: ClientError | None = None
        self.errors: list[ClientError] = []

    def granted(self, server: Server) -> None:
        self.server = server
        self.servers.append(server)

    def refused(self, error: ClientError) -> None:
        self.error = error
        self.errors.append(error)

    def lost(self, error: ClientError) -> None:
        self.error = error

    def undone(self, reply: Reply, later: Reply | None) -> None: ...


class Rig:
    """A pool whose connections open when told to."""

    def __init__(self, numbers: PoolLimits) -> None:
        self.pool = Pool("primary", "one", numbers, b"")
        self.wanted = 0
        self.pool.open = self._want

    def _want(self, pool: Pool) -> None:
        assert pool is self.pool
        self.wanted += 1

    def open(self, now: float = 0.0, label: str = "") -> Server:
        """Open one of the wanted connections."""
        assert self.wanted > 0
        self.wanted -= 1
        server = Server(FakeTransport(), "one:5432", 1, b"secr", {}, "app", self.pool.closed, now)
        server.label = label
        self.pool.opened(server, now)
        return server

    def idle(self, label: str, now: float) -> Server:
        """Have a connection idle under `label` since `now`."""
        self.wanted += 1
        self.pool.opening += 1
        return self.open(now, label)

    def take(self, identity: str, now: float = 0.0) -> User:
        """Let a user borrow."""
        user = User(identity)
        user.server = self.pool.take(user, now)
        user.servers.append(user.server)
        return user

    def release(self, user: User, now: float = 0.0) -> None:
        """Return what a user borrowed, under its label."""
        assert user.server is not None
        user.server.label = user.identity
        self.pool.give_back(user.server, now)


def written(server: Server) -> bytes:
    transport = server.transport
    assert isinstance(transport, FakeTransport)
    return transport.all


def confirm(server: Server, answer: bytes = DISCARDED) -> None:
    """Answer the reset that was sent."""
    assert written(server).endswith(query(b"DISCARD ALL"))
    server.data_received(answer)


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


# -- opening fails, connections die, the pool drains


def test_who_waits_is_told_when_no_connection_can_be_opened() -> None:
    rig = Rig(limits(2))
    users = [rig.take("alice"), rig.take("bob")]
    error = UpstreamUnavailable(extra="refused")
    rig.pool.open_failed(error)
    assert users[0].error is None, "another is still being opened"
    rig.pool.open_failed(error)
    assert [user.error for user in users] == [error, error]
    assert rig.pool.size == 0 and rig.pool.stats.connect_failures == 2


def test_who_waits_goes_on_waiting_while_there_is_another_connection() -> None:
    rig = Rig(limits(2))
    holder = rig.take("alice")
    server = rig.open()
    user = rig.take("alice")
    rig.pool.open_failed(UpstreamUnavailable())
    assert user.error is None
    rig.release(holder)
    assert user.server is server


def test_a_refused_waiter_may_ask_again_at_once() -> None:
    rig = Rig(limits(1))

    class Stubborn(User):
        def refused(self, error: ClientError) -> None:
            rig.pool.take(self, 1.0)

    user = Stubborn("alice")
    rig.pool.take(user, 0.0)
    rig.pool.open_failed(UpstreamUnavailable())
    assert rig.pool.waiters.length == 1 and rig.pool.opening == 1


def test_a_connection_that_dies_is_forgotten_and_replaced_for_who_waits() -> None:
    rig = Rig(limits(1))
    holder = rig.take("alice")
    server = rig.open()
    waiter = rig.take("alice")
    server.connection_lost(None)
    assert holder.error is not None and holder.error.sqlstate == "08006"
    assert rig.wanted == 1 and rig.open() is waiter.server
    idle = rig.idle("bob", 0.0)
    idle.connection_lost(None)
    assert rig.pool.idle_count == 0 and idle not in rig.pool.servers


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


# -- hosts that fail


REFUSED = HostUnavailable(extra="Connection refused")


def test_a_pool_without_connections_that_gets_none_is_failing_until_there_is_hope() -> None:
    rig = Rig(limits(2))
    rig.take("alice")
    rig.pool.open_failed(REFUSED)
    failing = [rig.pool.failing]
    rig.pool.hope()
    failing.append(rig.pool.failing)
    rig.take("alice")
    rig.pool.open_failed(REFUSED)
    failing.append(rig.pool.failing)
    rig.wanted = 1
    rig.pool.opening += 1
    rig.open()
    assert [*failing, rig.pool.failing] == [True, False, True, False]


def test_a_pool_that_has_a_connection_is_not_failing() -> None:
    rig = Rig(limits(2))
    rig.take("alice")
    rig.open()
    waiter = rig.take("bob")
    rig.pool.open_failed(REFUSED)
    assert not rig.pool.failing and waiter.error is None


def test_nobody_waits_for_other_attempts_where_one_was_refused() -> None:
    rig = Rig(limits(3))
    users = [rig.take(name) for name in ("alice", "bob", "carol")]
    assert rig.pool.opening == 3
    rig.pool.open_failed(REFUSED)
    assert [user.error for user in users] == [REFUSED] * 3 and rig.pool.failing


def test_a_login_that_is_refused_for_good_is_no_failing_host() -> None:
    rig = Rig(limits(2))
    user = rig.take("alice")
    rig.pool.open_failed(UpstreamUnavailable(extra="password authentication failed"))
    assert not rig.pool.failing and user.error is not None


def test_connections_on_which_nothing_came_are_given_up() -> None:
    rig = Rig(limits(3))
    silent, heard = rig.idle("alice", 0.0), rig.idle("alice", 0.0)
    silent.last_byte_at, heard.last_byte_at = 9.0, 11.0
    holder = rig.take("alice")
    assert holder.server is heard
    rig.pool.give_up_silent(10.0, REFUSED)
    assert (silent.state == CLOSED, heard.state == CLOSED, holder.error) == (True, False, None)
    rig.pool.give_up_silent(12.0, REFUSED)
    assert heard.state == CLOSED and holder.error is REFUSED


def test_closing_all_tells_whoever_holds_a_connection() -> None:
    rig = Rig(limits(3))
    rig.idle("bob", 0.0)
    rig.idle("alice", 0.0)
    holder = rig.take("alice")
    rig.pool.close_all(REFUSED)
    assert holder.error is REFUSED and rig.pool.servers == [] and rig.pool.idle_count == 0


# -- the test of idle connections


ANSWERED = message(b"I") + message(b"Z", b"I")


def test_a_connection_that_stood_idle_for_long_is_tested_before_it_is_lent() -> None:
    rig = Rig(limits(2))
    server = rig.idle("alice", 0.0)
    uses = server.uses
    user = rig.take("alice", TEST_AFTER + 0.1)
    assert written(server) == query(b"")
    assert rig.wanted == 0, "no other is opened meanwhile"
    server.data_received(ANSWERED)
    assert user.servers == [None, server] and server.label == "alice"
    assert server.uses == uses + 1, "the test is nobody's use of it"
    assert not rig.pool.errands


def test_a_connection_that_was_used_lately_is_lent_as_it_is() -> None:
    rig = Rig(limits(2))
    server = rig.idle("alice", 0.0)
    assert rig.take("alice", TEST_AFTER).server is server and written(server) == b""


def test_a_connection_that_fails_its_test_is_replaced() -> None:
    rig = Rig(limits(2))
    server = rig.idle("alice", 0.0)
    user = rig.take("alice", 100.0)
    server.connection_lost(None)
    assert rig.wanted == 1 and user.errors == []
    new = rig.open()
    assert user.servers == [None, new]


def test_a_connection_that_does_not_answer_its_test_is_given_up() -> None:
    rig = Rig(limits(2))
    server = rig.idle("alice", 0.0)
    user = rig.take("alice", 100.0)
    rig.pool.maintain(100.0 + TEST_TIMEOUT)
    assert rig.wanted == 0
    rig.pool.maintain(100.1 + TEST_TIMEOUT)
    assert server.state == CLOSED
    assert rig.open() is user.server


def test_who_left_while_a_connection_was_tested_leaves_it_idle() -> None:
    rig = Rig(limits(2))
    server = rig.idle("alice", 0.0)
    rig.pool.leave(rig.take("alice", 100.0))
    server.data_received(ANSWERED)
    assert rig.pool.idle == {"alice": [server]} and rig.pool.idle_count == 1


# -- the console's commands


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


def test_each_time_that_a_connection_is_lent_to_somebody_counts() -> None:
    rig = Rig(limits(1))
    rig.idle("alice", 0.0)
    alice = rig.take("alice")
    waiting = rig.take("alice", 1.0)
    rig.release(alice, 2.0)
    assert waiting.server is not None
    assert rig.pool.stats.assignments == 2


def test_an_attempt_that_counts_for_nothing_is_made_again_for_who_waits() -> None:
    rig = Rig(limits())
    user = rig.take("alice")
    assert rig.wanted == 1 and not rig.pool.is_empty
    rig.wanted = 0
    rig.pool.opened_in_vain()
    assert rig.wanted == 1 and user.error is None
    assert rig.pool.failures_in_a_row == 0
    rig.open()
    assert user.server is not None
    rig.pool.drain()
    rig.release(user)
    assert rig.pool.is_empty
