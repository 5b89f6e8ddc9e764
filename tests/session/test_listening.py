"""Listening at the primary: what is heard, what an interruption means, and another primary."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from typing import cast

import pytest

from proxy.auth.keystore import KeyStore
from proxy.errors import NoPrimary
from proxy.session import listening
from proxy.session.keeping import Keeping
from proxy.session.listening import Listening
from proxy.upstream.control import Control

Heard = Callable[[str], None]


class FakeControl:
    """A primary: who listens there, by channel."""

    def __init__(self) -> None:
        self.listening: dict[str, Heard] = {}
        self.ended = asyncio.Event()

    async def listen(self, channel: str, heard: Heard, begun: Callable[[], None] | None = None) -> None:
        self.listening[channel] = heard
        if begun is not None:
            begun()
        try:
            await self.ended.wait()
        finally:
            del self.listening[channel]


class Rig:
    """Keys and results that note what they are told."""

    def __init__(self) -> None:
        self.primary: FakeControl | None = FakeControl()
        self.keeps = True
        self.told: list[str] = []
        self.listening = Listening("app", self._control, cast(KeyStore, self), cast(Keeping, self))

    def _control(self) -> Control:
        if self.primary is None:
            raise NoPrimary()
        return cast(Control, self.primary)

    def changed(self, key_id: str) -> None:
        self.told.append(f"key {key_id}")

    def changed_all(self) -> None:
        self.told.append("any key")

    def heard(self, name: str) -> None:
        self.told.append(f"table {name}")

    def flush(self) -> None:
        self.told.append("any table")

    def take(self) -> list[str]:
        told, self.told = self.told, []
        return told


@pytest.fixture
async def rig(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Rig]:
    monkeypatch.setattr(listening, "_RETRY", 0.02)
    rig = Rig()
    yield rig
    await rig.listening.stop()


async def until(condition: Callable[[], object]) -> None:
    async with asyncio.timeout(5.0):
        while not condition():
            await asyncio.sleep(0.005)


async def test_what_is_notified_is_passed_on(rig: Rig) -> None:
    rig.listening.start()
    assert rig.primary is not None
    at = rig.primary.listening
    await until(lambda: len(at) == 2)
    # Nothing was known until now of keys that were changed behind their reading, nor of what was written.
    assert sorted(rig.take()) == ["any key", "any table"]
    at["sluice_keys"]("ctm_1")
    at["sluice_cache"]("public.notes")
    assert rig.take() == ["key ctm_1", "table public.notes"]


async def listened_to(rig: Rig) -> FakeControl:
    """Start, and return the primary once both channels are listened to there; what was told by then is forgotten."""
    rig.listening.start()
    primary = rig.primary
    assert primary is not None
    await until(lambda: len(primary.listening) == 2)
    rig.take()
    return primary


async def test_behind_an_interruption_anything_may_have_changed(rig: Rig) -> None:
    before = await listened_to(rig)
    rig.primary = after = FakeControl()
    before.ended.set()
    await until(lambda: len(after.listening) == 2)
    # As it is noticed, and when nothing is missed any more.
    assert sorted(rig.take()) == ["any key", "any key", "any table", "any table"]


async def test_another_primary_is_listened_to_though_the_last_one_lives_on(rig: Rig) -> None:
    before = await listened_to(rig)
    rig.primary = after = FakeControl()
    rig.listening.start_again()
    # At once, not when they listen.
    assert rig.take() == ["any key", "any table"]
    await until(lambda: len(after.listening) == 2)
    assert before.listening == {}


async def test_while_there_is_no_primary_every_key_is_in_doubt(rig: Rig) -> None:
    rig.primary = None
    rig.listening.start()
    await until(lambda: rig.told.count("any key") >= 3)
    assert "any table" not in rig.told


async def test_while_no_results_are_kept_nobody_hears_of_tables(rig: Rig) -> None:
    rig.keeps = False
    rig.listening.start()
    assert rig.primary is not None
    at = rig.primary.listening
    await until(lambda: at)
    await asyncio.sleep(0.05)
    assert list(at) == ["sluice_keys"]
    rig.keeps = True
    await until(lambda: "sluice_cache" in at)


@pytest.mark.parametrize("started", [False, True], ids=["before", "behind"])
async def test_another_primary_before_the_start_or_behind_the_end_is_not_listened_to(
    rig: Rig, started: bool
) -> None:
    if started:
        rig.listening.start()
        await rig.listening.stop()
    rig.take()
    rig.listening.start_again()
    assert rig.take() == ["any table"]
    await asyncio.sleep(0.05)
    assert rig.primary is not None
    assert rig.primary.listening == {}
