from __future__ import annotations

import asyncio
import os
from pathlib import Path

import pytest

from proxy.auth import keystore
from proxy.auth.key import Key
from proxy.auth.keystore import FileKeyStore, KeyStore
from proxy.errors import SluiceError, UpstreamUnavailable

ID = "ctm_ab12cd34ef56"
OTHER = "ctm_000000000000"


def key(key_id: str = ID, name: str = "") -> Key:
    return Key(key_id, name, "user", [], b"", "")


class Table:
    """A table of keys, a clock and a sleep that moves it; readings end at once, or when `gate` opens."""

    def __init__(self, *keys: Key) -> None:
        self.rows = {each.id: each for each in keys}
        self.reads: list[str] = []
        self.away = False
        self.broken = False
        self.gate: asyncio.Event | None = None
        self.now = 1000.0
        self.slept: list[float] = []
        self.told: list[tuple[str, Key | None]] = []

    async def fetch(self, key_id: str) -> Key | None:
        self.reads.append(key_id)
        row = self.rows.get(key_id)
        if self.gate is not None:
            await self.gate.wait()
        if self.away:
            raise UpstreamUnavailable()
        if self.broken:
            raise ValueError(f"key {key_id}: broken")
        return row

    async def sleep(self, seconds: float) -> None:
        assert seconds > 0
        self.slept.append(seconds)
        self.now += seconds
        await asyncio.sleep(0)

    def store(self, ttl: float = 30.0) -> KeyStore:
        store = KeyStore(self.fetch, ttl, lambda: self.now, self.sleep)
        store.on_change = lambda key_id, found: self.told.append((key_id, found))
        return store


async def settle() -> None:
    """Let every task that can go on do so."""
    for _ in range(50):
        await asyncio.sleep(0)


async def test_a_key_is_read_once_in_ttl() -> None:
    table = Table(key())
    store = table.store()
    assert await store.get(ID) is table.rows[ID]
    table.now += 29.9
    assert await store.get(ID) is table.rows[ID]
    assert table.reads == [ID]
    table.now += 0.1
    assert await store.get(ID) is table.rows[ID]
    assert table.reads == [ID, ID]
    assert (store.hits, store.misses, store.entries()) == (1, 2, 1)


async def test_a_key_that_is_known_not_to_exist_counts_as_found() -> None:
    store = Table().store()
    for _ in range(3):
        assert await store.get(ID) is None
    assert (store.hits, store.misses, store.entries()) == (2, 1, 0)


async def test_what_can_be_no_id_is_not_asked_for() -> None:
    table = Table()
    store = table.store()
    for text in ("", "app", "ctm_", "ctm_ab12cd34ef56' OR true --", "ctm_ab12cd34ef56_" + "x" * 32):
        assert await store.get(text) is None
    assert table.reads == []


async def test_an_unknown_id_is_not_asked_for_again_for_a_while() -> None:
    table = Table()
    store = table.store()
    assert await store.get(ID) is None
    table.now += keystore.UNKNOWN_TTL - 0.1
    assert await store.get(ID) is None
    assert table.reads == [ID]
    table.now += 0.1
    table.rows[ID] = key()
    assert await store.get(ID) is table.rows[ID]


async def test_a_new_key_works_at_once_when_it_is_announced() -> None:
    table = Table()
    store = table.store()
    assert await store.get(ID) is None
    table.rows[ID] = key()
    store.changed(ID)
    assert await store.get(ID) is table.rows[ID]


async def test_unknown_ids_are_kept_in_bounds(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(keystore, "MOST_UNKNOWN", 3)
    table = Table()
    store = table.store()
    ids = [f"ctm_00000000000{n}" for n in range(4)]
    for each in ids:
        await store.get(each)
    await store.get(ids[3])
    assert table.reads == ids
    await store.get(ids[0])
    assert table.reads == [*ids, ids[0]]


async def test_known_keys_are_kept_in_bounds(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(keystore, "MOST_KEYS", 1)
    table = Table(key(ID), key(OTHER))
    store = table.store()
    for each in (ID, OTHER, OTHER, ID):
        assert await store.get(each) is table.rows[each]
    assert table.reads == [ID, OTHER, ID]


async def test_many_who_ask_at_once_share_one_reading() -> None:
    table = Table(key())
    table.gate = asyncio.Event()
    store = table.store()
    waiting = [asyncio.create_task(store.get(ID)) for _ in range(5)]
    await settle()
    waiting[0].cancel()
    await settle()
    table.gate.set()
    assert await asyncio.gather(*waiting[1:]) == [table.rows[ID]] * 4
    assert waiting[0].cancelled()
    assert table.reads == [ID]


async def test_known_keys_go_on_ten_times_as_long_while_the_table_is_away() -> None:
    table = Table(key())
    store = table.store()
    await store.get(ID)
    table.away = True
    table.now += 299.9
    assert await store.get(ID) is table.rows[ID]
    table.now += 0.1
    with pytest.raises(UpstreamUnavailable):
        await store.get(ID)
    table.away = False
    assert await store.get(ID) is table.rows[ID]


async def test_unknown_keys_are_unavailable_while_the_table_is_away() -> None:
    table = Table(key())
    table.away = True
    store = table.store()
    for _ in range(2):
        with pytest.raises(UpstreamUnavailable):
            await store.get(ID)
    assert table.reads == [ID, ID]
    table.away = False
    assert await store.get(ID) is table.rows[ID]


async def test_a_reading_that_failed_is_not_waited_for_by_each_login() -> None:
    table = Table(key())
    store = table.store()
    await store.get(ID)
    table.away = True
    table.now += 31
    assert await store.get(ID) is table.rows[ID]
    table.now += keystore.RETRY - 0.1
    assert await store.get(ID) is table.rows[ID]
    assert len(table.reads) == 2
    table.now += 0.1
    assert await store.get(ID) is table.rows[ID]
    assert len(table.reads) == 3


async def test_a_row_that_cannot_be_used_is_no_key(caplog: pytest.LogCaptureFixture) -> None:
    table = Table(key())
    store = table.store()
    await store.get(ID)
    table.broken = True
    table.now += 31
    assert await store.get(ID) is None
    assert "broken: it can't be used" in caplog.text


async def test_a_change_is_read_and_told() -> None:
    table = Table(key())
    store = table.store()
    await store.get(ID)
    table.now += 10
    table.rows[ID] = key(name="new")
    store.changed(ID)
    await settle()
    assert table.told == [(ID, table.rows[ID])]
    assert table.slept == []
    assert await store.get(ID) is table.rows[ID]
    del table.rows[ID]
    table.now += 10
    store.changed(ID)
    await settle()
    assert table.told[1:] == [(ID, None)]
    assert await store.get(ID) is None


async def test_notifications_about_keys_that_nobody_uses_lead_to_no_reading() -> None:
    table = Table(key())
    store = table.store()
    for text in (ID, OTHER, "", "x" * 8000):
        store.changed(text)
    await settle()
    assert table.reads == []


async def test_a_flood_of_notifications_leads_to_few_readings() -> None:
    table = Table(key())
    store = table.store()
    await store.get(ID)
    began = table.now
    for _ in range(1000):
        store.changed(ID)
        await asyncio.sleep(0)
    await settle()
    assert len(table.reads) - 1 <= (table.now - began) / keystore.REREAD_GAP
    assert set(table.slept) == {keystore.REREAD_GAP}


async def test_a_change_right_after_a_reading_is_told_within_the_gap() -> None:
    table = Table(key())
    store = table.store()
    await store.get(ID)
    table.now += 0.1
    table.rows[ID] = key(name="new")
    store.changed(ID)
    await settle()
    assert table.told == [(ID, table.rows[ID])]
    assert table.slept == [pytest.approx(keystore.REREAD_GAP - 0.1)]


async def test_a_reading_from_before_the_change_is_not_kept() -> None:
    table = Table(key(name="old"))
    store = table.store()
    table.gate = old_gate = asyncio.Event()
    early = asyncio.create_task(store.get(ID))
    await settle()
    table.rows[ID] = key(name="new")
    table.gate = None
    store.changed(ID)
    await settle()
    assert table.told == [(ID, table.rows[ID])]
    old_gate.set()
    assert await early is not None
    assert await store.get(ID) is table.rows[ID]
    assert table.reads == [ID, ID]


async def test_a_change_that_cannot_be_read_is_tried_again() -> None:
    table = Table(key())
    store = table.store()
    await store.get(ID)
    table.now += 10
    table.away = True
    store.changed(ID)
    await asyncio.sleep(0)
    while len(table.slept) < 3:
        await asyncio.sleep(0)
    assert table.told == []
    table.away = False
    await settle()
    assert table.told == [(ID, table.rows[ID])]
    assert set(table.slept) == {keystore.RETRY}


async def test_missed_notifications_mean_that_any_key_may_have_changed() -> None:
    table = Table(key(ID), key(OTHER))
    store = table.store()
    await store.get(ID)
    await store.get(OTHER)
    await store.get("ctm_unknown00000")
    table.now += 1
    store.changed_all()
    await settle()
    assert table.told == [(ID, table.rows[ID]), (OTHER, table.rows[OTHER])]
    await store.get("ctm_unknown00000")
    assert table.reads.count("ctm_unknown00000") == 2


async def test_recheck_reads_what_is_older_than_ttl() -> None:
    table = Table(key(ID), key(OTHER))
    store = table.store()
    await store.get(ID)
    table.now += 20
    await store.get(OTHER)
    table.now += 10
    store.recheck([ID, OTHER, "ctm_unknown00000"])
    await settle()
    assert table.told == [(ID, table.rows[ID])]


async def test_close_ends_what_is_under_way() -> None:
    table = Table(key())
    store = table.store()
    await store.get(ID)
    table.gate = asyncio.Event()
    table.now += 1
    store.changed(ID)
    await settle()
    await store.close()
    await settle()
    assert asyncio.all_tasks() == {asyncio.current_task()}


def write(path: Path, *keys: str) -> None:
    path.write_text("".join(f"- {{id: {each}, user_id: u, secret_sha256: {'ab' * 32}}}\n" for each in keys))


async def test_a_file_that_changes_takes_effect(tmp_path: Path) -> None:
    path = tmp_path / "keys.yaml"
    write(path, ID)
    now = 0.0
    store = FileKeyStore(path, lambda: now)
    assert await store.get(ID) is not None
    assert await store.get(OTHER) is None
    write(path, OTHER)
    now += keystore.UNKNOWN_TTL
    assert await store.get(ID) is None
    assert await store.get(OTHER) is not None


async def test_a_file_that_became_bad_leaves_the_keys_as_they_were(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "keys.yaml"
    write(path, ID)
    now = 0.0
    store = FileKeyStore(path, lambda: now)
    path.write_text("- {id: ")
    now += 10
    assert await store.get(ID) is not None
    assert "going on with the keys as they were" in caplog.text
    os.remove(path)
    now += 10
    assert await store.get(ID) is not None


def test_a_file_has_to_be_sound_at_the_start(tmp_path: Path) -> None:
    with pytest.raises(SluiceError, match=r"cannot use the keys in .*missing"):
        FileKeyStore(tmp_path / "missing.yaml")
    path = tmp_path / "keys.yaml"
    path.write_text("word")
    with pytest.raises(SluiceError, match="a list of keys is needed"):
        FileKeyStore(path)


async def test_keys_are_read_as_often_as_a_reload_says() -> None:
    now = 0.0
    reads: list[str] = []

    async def fetch(key_id: str) -> Key | None:
        reads.append(key_id)
        return None

    store = KeyStore(fetch, 30.0, lambda: now)
    store.read_each(5.0)
    store._keep("ctm_a93e7e55392e", Key("ctm_a93e7e55392e", "a", "a", ["read:tasks"], b"", ""))
    assert await store.get("ctm_a93e7e55392e") is not None and not reads
    now = 6.0
    await store.get("ctm_a93e7e55392e")
    assert reads == ["ctm_a93e7e55392e"]
