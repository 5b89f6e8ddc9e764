"""Pools where connections can't be opened, die, fall silent, or don't answer the test of what stood idle."""

from __future__ import annotations

from proxy.errors import ClientError, HostUnavailable, UpstreamUnavailable
from proxy.upstream.pool import TEST_AFTER, TEST_TIMEOUT
from proxy.upstream.server import CLOSED
from proxy.wire.messages import query
from tests.session.fakes import limits
from tests.session.frontend import message
from tests.upstream.pools import Rig, User, written

# -- opening fails, connections die


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
