"""Connections that have not logged in: capped for each address and in all."""

from __future__ import annotations

import pytest

from proxy.session.logins import Unproven
from tests.session.door import LOGGED_IN, Door, key_id, startup, whole
from tests.session.frontend import error, kinds


@pytest.fixture
def door() -> Door:
    return Door()


def test_the_oldest_of_an_address_goes_first() -> None:
    unproven: Unproven[str] = Unproven(most=10, most_of_address=2)
    assert unproven.add("a1", "a", False) is None
    assert unproven.add("b1", "b", False) is None
    assert unproven.add("a2", "a", False) is None
    assert unproven.add("a3", "a", False) == "a1"
    assert unproven.add("b2", "b", False) is None
    assert len(unproven) == 4


def test_the_oldest_of_all_goes_where_the_whole_is_full() -> None:
    unproven: Unproven[str] = Unproven(most=3, most_of_address=2)
    for login in "abc":
        assert unproven.add(login, login, False) is None
    assert unproven.add("d", "d", False) == "a"
    assert len(unproven) == 3


def test_this_machine_has_no_limit_but_that_of_all() -> None:
    unproven: Unproven[int] = Unproven(most=3, most_of_address=1)
    assert [unproven.add(login, "127.0.0.1", True) for login in range(4)] == [None, None, None, 0]


def test_who_has_left_counts_no_more() -> None:
    unproven: Unproven[str] = Unproven(most=2, most_of_address=1)
    for _ in range(5):
        assert unproven.add("a", "a", False) is None
        unproven.discard("a")
        unproven.discard("a")
    assert len(unproven) == 0 and not unproven._of


async def test_silent_connections_make_room_for_new_ones(door: Door) -> None:
    door.gate.unproven = Unproven(most=100, most_of_address=3)
    silent = [door.knock("10.0.0.1") for _ in range(3)]
    caller = door.knock("10.0.0.1")
    assert kinds(await caller.say(startup(key_id("alice")))) == "R"
    told = await silent[0].hear()
    assert kinds(told) == "FATAL:53300" and silent[0].closed()
    assert error(told)["M"] == "too many connections that have not logged in"
    assert not silent[1].closed() and not silent[2].closed()
    assert door.world.stats.connections_refused == 1


async def test_sessions_and_failed_logins_are_not_counted(door: Door) -> None:
    door.gate.unproven = Unproven(most=100, most_of_address=1)
    for _ in range(3):
        came = kinds(await door.knock("10.0.0.1").scram(key_id("alice"), whole("alice")))
        assert came.startswith(LOGGED_IN)
        assert len(door.gate.unproven) == 0
    assert kinds(await door.knock("10.0.0.1").scram(key_id("alice"), "wrong")) == "R R FATAL:28P01"
    assert len(door.gate.unproven) == 0 and len(door.sessions) == 3


async def test_a_connection_that_vanishes_is_not_counted(door: Door) -> None:
    caller = door.knock()
    assert len(door.gate.unproven) == 1
    caller.login.connection_lost(None)
    await caller.hear()
    assert len(door.gate.unproven) == 0
