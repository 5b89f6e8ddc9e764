"""Batches on disk: order, bounds, what a crash leaves, and what other processes left."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from proxy.observe.batches import Batch
from proxy.observe.spool import Spool, SpoolError


def segments(directory: Path) -> list[Path]:
    return sorted(directory.glob("*/*.log"))


def drain(spool: Spool) -> list[bytes]:
    found = []
    while (batch := spool.first()) is not None:
        found.append(batch.rows)
        spool.replace_first()
    return found


def fill(spool: Spool, *bodies: bytes) -> None:
    for body in bodies:
        assert spool.add(Batch(body, 1))


def test_what_comes_first_is_delivered_first(tmp_path: Path) -> None:
    spool = Spool(tmp_path)
    fill(spool, b"a", b"bb")
    assert (spool.rows, spool.bytes) == (2, 3)
    first = spool.first()
    assert first is not None and not first.again
    assert drain(spool) == [b"a", b"bb"]
    assert (spool.rows, spool.bytes, spool.first()) == (0, 0, None)


def test_what_was_not_delivered_is_found_again_and_may_be_known(tmp_path: Path) -> None:
    before = Spool(tmp_path)
    fill(before, b"a", b"b", b"c")
    before.first()
    before.replace_first()
    before.close()
    spool = Spool(tmp_path)
    assert spool.rows == 3, "whole segments are kept: what was delivered of one does no harm"
    first = spool.first()
    assert first is not None and first.again
    assert drain(spool)[-2:] == [b"b", b"c"]


def test_a_killed_process_leaves_what_it_had_added(tmp_path: Path) -> None:
    program = (
        "import os, pathlib, sys; from proxy.observe.spool import Spool; from proxy.observe.batches import Batch\n"
        "spool = Spool(pathlib.Path(sys.argv[1]))\n"
        "[spool.add(Batch(bytes([65 + n]) * 1000, 7)) for n in range(20)]\n"
        "os.kill(os.getpid(), 9)"
    )
    done = subprocess.run([sys.executable, "-c", program, str(tmp_path)], check=False)
    assert done.returncode == -9
    spool = Spool(tmp_path)
    assert spool.rows == 140
    assert drain(spool) == [bytes([65 + number]) * 1000 for number in range(20)]


def test_a_segment_goes_when_all_of_it_is_delivered(tmp_path: Path) -> None:
    spool = Spool(tmp_path, segment_bytes=100)
    fill(spool, *[bytes([65 + number]) * 60 for number in range(6)])
    assert len(segments(tmp_path)) == spool.segments == 3
    for left in (3, 2, 2, 1, 1, 1):
        spool.first()
        spool.replace_first()
        assert len(segments(tmp_path)) == left
    spool.close()
    assert segments(tmp_path) == []


def test_an_emptied_segment_is_written_anew_and_does_not_grow(tmp_path: Path) -> None:
    spool = Spool(tmp_path)
    for _ in range(50):
        fill(spool, b"x" * 1000)
        drain(spool)
    (path,) = segments(tmp_path)
    assert path.stat().st_size < 100
    fill(spool, b"y" * 1000)
    spool.close()
    assert drain(Spool(tmp_path)) == [b"y" * 1000]


def test_what_finds_no_room_is_not_taken(tmp_path: Path) -> None:
    spool = Spool(tmp_path, max_bytes=10)
    assert spool.add(Batch(b"x" * 100, 1)), "one of any size"
    assert not spool.add(Batch(b"x", 1))
    drain(spool)
    assert spool.add(Batch(b"x", 1))


def test_parts_of_a_batch_take_its_place_and_the_whole_stays_on_disk(tmp_path: Path) -> None:
    spool = Spool(tmp_path)
    fill(spool, b"ab", b"c")
    spool.first()
    spool.replace_first(Batch(b"a", 1), Batch(b"b", 1))
    first = spool.first()
    assert first is not None and first.rows == b"a"
    spool.replace_first()
    spool.close()
    again = Spool(tmp_path)
    assert drain(again) == [b"ab", b"c"], "a crash in between: its parts may be known"


@given(st.integers(0, 200), st.sampled_from(["cut", "flip"]))
@settings(max_examples=60, deadline=None)
def test_a_damaged_segment_gives_whole_batches_or_none(
    tmp_path_factory: pytest.TempPathFactory, at: int, how: str
) -> None:
    directory = tmp_path_factory.mktemp("spool")
    bodies = [b"a" * 30, b"b" * 40, b"c" * 50]
    before = Spool(directory)
    fill(before, *bodies)
    before.close()
    (path,) = segments(directory)
    data = bytearray(path.read_bytes())
    if how == "cut":
        data = data[:at]
    elif at < len(data):
        data[at] ^= 0x55
    path.write_bytes(data)
    spool = Spool(directory)
    found = drain(spool)
    assert all(body in bodies for body in found)
    assert found == sorted(found)
    if how == "flip" and at < len(data):
        assert len(found) < 3
    fill(spool, b"new")
    assert drain(spool) == [b"new"]


def test_living_processes_have_slots_of_their_own(tmp_path: Path) -> None:
    one, two = Spool(tmp_path), Spool(tmp_path)
    assert one.directory != two.directory
    fill(one, b"one")
    fill(two, b"two")
    three = Spool(tmp_path)
    assert three.rows == 0, "theirs is theirs while they live"
    for spool in (one, two, three):
        spool.close()
    after = Spool(tmp_path)
    assert sorted(drain(after)) == [b"one", b"two"]
    assert segments(tmp_path) == []


def test_what_a_process_leaves_that_ends_later_is_adopted_once(tmp_path: Path) -> None:
    old, new, third = Spool(tmp_path), Spool(tmp_path), Spool(tmp_path)
    fill(old, b"a", b"bb")
    fill(new, b"c")
    assert new.adopt() == 0, "the old one lives"
    old.close()
    assert (new.adopt(), new.rows) == (2, 3)
    assert (new.adopt(), third.adopt()) == (0, 0)
    assert drain(new) == [b"c", b"a", b"bb"]
    fill(new, b"d")
    assert drain(new) == [b"d"]
    new.close()
    third.close()
    assert Spool(tmp_path).rows == 0


def test_a_directory_that_cannot_be_used_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(SpoolError, match="file"):
        Spool(tmp_path / "file" / "spool")


def test_where_the_disk_takes_nothing_batches_wait_in_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    spool = Spool(tmp_path)
    fill(spool, b"before")
    whole = os.pwritev
    monkeypatch.setattr(os, "pwritev", lambda *_: 3)
    fill(spool, b"during")
    monkeypatch.setattr(os, "pwritev", whole)
    fill(spool, b"after")
    assert "the spool takes no records" in caplog.text and "takes records again" in caplog.text
    assert drain(spool) == [b"before", b"during", b"after"]


def test_much_is_held_on_disk_and_little_in_memory(tmp_path: Path) -> None:
    spool = Spool(tmp_path)
    for number in range(40):
        fill(spool, bytes([number]) * 1024 * 1024)
    held = sum(len(frame.batch.rows) for frame in spool._frames if frame.batch is not None)
    assert held <= 16 * 1024 * 1024
    assert [rows[0] for rows in drain(spool)] == list(range(40))
    assert spool._in_memory == spool._unwritten == 0


def test_its_files_are_its_users_alone(tmp_path: Path) -> None:
    spool = Spool(tmp_path / "spool")
    fill(spool, b"a")
    (path,) = segments(tmp_path / "spool")
    assert path.stat().st_mode & 0o077 == 0
    assert (tmp_path / "spool").stat().st_mode & 0o077 == 0


def test_syncing_leaves_nothing_to_sync(tmp_path: Path) -> None:
    spool = Spool(tmp_path)
    assert not spool.unsynced
    fill(spool, b"a")
    told = [spool.unsynced]
    spool.sync()
    assert [*told, spool.unsynced] == [True, False]
