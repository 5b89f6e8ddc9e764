from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from proxy.auth.ratelimit import TokenBucket
from proxy.auth.shared_limits import SLOTS, SharedLimits


def test_two_processes_share_a_key_s_tokens(tmp_path: Path) -> None:
    one, other = SharedLimits(tmp_path / "limits"), SharedLimits(tmp_path / "limits")
    here, there = one.bucket("ctm_a", 10, 100.0), other.bucket("ctm_a", 10, 100.0)
    assert [here.take(100.0) for _ in range(6)] == [0.0] * 6
    assert [there.take(100.0) for _ in range(4)] == [0.0] * 4
    assert here.take(100.0) == there.take(100.0) == pytest.approx(6.0)
    assert there.take(106.0) == 0.0
    assert here.take(106.0) > 0.0


def test_it_behaves_as_a_bucket_of_one_process(tmp_path: Path) -> None:
    shared, plain = SharedLimits(tmp_path / "limits").bucket("ctm_a", 7, 50.0), TokenBucket(7, 50.0)
    for step in range(200):
        now, count = 50.0 + step * 1.7, step % 4
        assert shared.take(now, count) == plain.take(now, count)


def test_keys_and_limits_don_t_mix(tmp_path: Path) -> None:
    limits = SharedLimits(tmp_path / "limits")
    for number in range(1000):
        bucket = limits.bucket(f"ctm_{number}", 1, 100.0)
        assert bucket.take(100.0) == 0.0
        assert bucket.take(100.0) > 0.0
    assert limits.bucket("ctm_5", 2, 100.0).take(100.0) == 0.0, "another limit begins anew"


def test_where_there_is_no_room_the_one_that_was_used_longest_ago_makes_room(tmp_path: Path) -> None:
    limits = SharedLimits(tmp_path / "limits")
    for number in range(2 * SLOTS):
        limits.bucket(f"ctm_{number}", 60, 100.0 + number * 0.01).take(100.0 + number * 0.01)
    now = 100.0 + 2 * SLOTS * 0.01
    last = limits.bucket("ctm_last", 1, now)
    assert last.take(now) == 0.0
    assert last.take(now) > 0.0


def test_processes_at_once_give_no_token_twice(tmp_path: Path) -> None:
    program = (
        "import sys, pathlib; from proxy.auth.shared_limits import SharedLimits\n"
        "bucket = SharedLimits(pathlib.Path(sys.argv[1])).bucket('ctm_a', 5000, 100.0)\n"
        "print(sum(bucket.take(100.0) == 0.0 for _ in range(4000)))\n"
    )
    arguments = [sys.executable, "-c", program, str(tmp_path / "limits")]
    running = [subprocess.Popen(arguments, stdout=subprocess.PIPE) for _ in range(2)]
    assert sum(int(process.communicate(timeout=50)[0]) for process in running) == 5000


def test_the_file_is_its_user_s_alone(tmp_path: Path) -> None:
    SharedLimits(tmp_path / "limits")
    assert (tmp_path / "limits").stat().st_mode & 0o777 == 0o600
