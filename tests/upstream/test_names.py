"""Host names that come to mean other addresses."""

from __future__ import annotations

import asyncio
import logging
import socket
import time
from typing import Any, cast

import pytest

from proxy.transport.asking import Security
from proxy.transport.way import Way
from proxy.upstream.cluster import Host
from proxy.upstream.control import Control
from proxy.upstream.names import Names
from proxy.upstream.pool import Pool
from proxy.upstream.server import CLOSED, Server
from tests.session.backend import FakeTransport
from tests.session.fakes import limits


class FakeControl:
    def __init__(self, follows_names: bool = True) -> None:
        self.way = Way("db.example.com", 5432, Security("disable", None))
        self.way.follows_names = follows_names
        self.forgotten = 0

    def forget(self) -> None:
        self.forgotten += 1


class Rig:
    """A host with two idle connections, and a name server."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, address: str = "db.example.com") -> None:
        self.now = 1000.0
        self.addresses: list[str] | None = ["10.0.0.1"]
        self.asked = 0
        self.host = Host("main", address, 5432, "auto")
        self.pool = self.host.pools["primary"] = Pool("primary", "main", limits(5), b"")
        self.servers = [self.connect("10.0.0.1"), self.connect("10.0.0.1")]
        self.control = FakeControl()
        self.names = Names()
        monkeypatch.setattr(time, "monotonic", lambda: self.now)
        monkeypatch.setattr(asyncio.get_running_loop(), "getaddrinfo", self._look_up, raising=False)

    def connect(self, address: str) -> Server:
        server = Server(
            FakeTransport(peer=(address, 5432)), "main:5432", 1, b"", {}, "app", self.pool.closed, self.now
        )
        self.pool.opening += 1
        self.pool.opened(server, self.now)
        return server

    async def _look_up(self, *_: Any, **__: Any) -> list[Any]:
        self.asked += 1
        if self.addresses is None:
            raise socket.gaierror("no answer")
        return [(2, 1, 6, "", (address, 5432)) for address in self.addresses]

    async def follow(self, seconds: float = 5.0) -> None:
        self.now += seconds
        await self.names.follow(self.host, cast(Control, self.control))
        self.pool.maintain(self.now)


@pytest.fixture
async def rig(monkeypatch: pytest.MonkeyPatch) -> Rig:
    rig = Rig(monkeypatch)
    await rig.follow()
    return rig


async def test_connections_to_an_address_that_the_name_lost_end(
    rig: Rig, caplog: pytest.LogCaptureFixture
) -> None:
    rig.addresses = ["10.0.0.2"]
    await rig.follow()
    assert [server.state for server in rig.servers] == [CLOSED, CLOSED]
    assert rig.control.forgotten == 1
    assert "db.example.com is now 10.0.0.2; 2 connections" in caplog.text
    new = rig.connect("10.0.0.2")
    await rig.follow()
    assert new.state != CLOSED


async def test_a_lent_connection_ends_when_it_comes_back(rig: Rig) -> None:
    lent = rig.servers[0]
    rig.pool.idle[""].remove(lent)
    rig.pool.idle_count -= 1
    lent.state = 2
    rig.addresses = ["10.0.0.2"]
    await rig.follow()
    assert lent.state == 2
    rig.pool.give_back(lent, rig.now)
    assert lent.state == CLOSED


async def test_an_address_more_changes_nothing(rig: Rig) -> None:
    rig.addresses = ["10.0.0.1", "10.0.0.2"]
    await rig.follow()
    assert CLOSED not in [server.state for server in rig.servers]


async def test_a_name_server_that_is_down_changes_nothing(rig: Rig) -> None:
    rig.addresses = None
    await rig.follow()
    assert CLOSED not in [server.state for server in rig.servers] and rig.control.forgotten == 0


async def test_names_are_not_looked_up_each_time(rig: Rig) -> None:
    before = rig.asked
    await rig.follow(1.0)
    await rig.follow(3.9)
    assert rig.asked == before
    await rig.follow(0.2)
    assert rig.asked == before + 1


async def test_addresses_that_take_turns_are_left_alone(rig: Rig, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    rig.addresses = ["10.0.0.2"]
    await rig.follow()
    server = rig.connect("10.0.0.2")
    for address in ("10.0.0.1", "10.0.0.2", "10.0.0.1"):
        rig.addresses = [address]
        await rig.follow()
    assert server.state != CLOSED
    assert "several addresses in turns" in caplog.text


@pytest.mark.parametrize("address", ["127.0.0.1", "::1", "/run/postgresql"])
async def test_what_is_no_name_is_not_looked_up(monkeypatch: pytest.MonkeyPatch, address: str) -> None:
    rig = Rig(monkeypatch, address)
    await rig.follow()
    assert rig.asked == 0


async def test_a_tunnels_name_is_not_followed(monkeypatch: pytest.MonkeyPatch) -> None:
    rig = Rig(monkeypatch)
    rig.control = FakeControl(follows_names=False)
    await rig.follow()
    assert rig.asked == 0
