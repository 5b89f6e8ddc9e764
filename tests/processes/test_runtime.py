from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest

from proxy.errors import SluiceError
from proxy.processes.runtime import NUMBERS, Runtime


@pytest.fixture(autouse=True)
def below(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RUNTIME_DIRECTORY", str(tmp_path))


def test_the_directory_is_ours_alone_and_goes_with_the_last_process(tmp_path: Path) -> None:
    first = Runtime.make()
    assert first.directory.parent == tmp_path
    assert stat.S_IMODE(first.directory.stat().st_mode) == 0o700
    second = Runtime(first.directory)
    assert (first.take(1), second.take(2)) == ([0], [1, 2])
    first.close()
    assert second.socket_of(1).parent.is_dir()
    second.close()
    assert not list(tmp_path.iterdir())


def test_numbers_of_processes_that_live_are_not_given_again() -> None:
    first = Runtime.make()
    others = [Runtime(first.directory) for _ in range(3)]
    assert first.take(2) == [0, 1]
    assert [other.take(1) for other in others] == [[2], [3], [4]]
    others[1].close()
    assert first.take(2) == [3, 5]
    for each in (first, others[0], others[2]):
        each.close()


def test_there_is_an_end_to_numbers() -> None:
    runtime = Runtime.make()
    runtime.take(NUMBERS)
    with pytest.raises(SluiceError, match="256 processes at the most"):
        Runtime(runtime.directory).take(1)
    runtime.close()


@pytest.mark.parametrize("wrong", ["open", "file", "missing", "link"])
def test_a_directory_that_others_may_enter_is_refused(tmp_path: Path, wrong: str) -> None:
    path = tmp_path / "given"
    if wrong == "open":
        path.mkdir(mode=0o755)
    elif wrong == "file":
        path.touch(mode=0o700)
    elif wrong == "link":
        (tmp_path / "there").mkdir(mode=0o700)
        path.symlink_to(tmp_path / "there")
    with pytest.raises(SluiceError):
        Runtime(path)


def test_what_a_killed_process_has_left_is_removed(tmp_path: Path) -> None:
    runtime = Runtime.make()
    runtime.take(1)
    (runtime.directory / "7.lock").touch()
    (runtime.directory / "7.sock").touch()
    (runtime.directory / "limits").touch()
    runtime.close()
    assert os.listdir(tmp_path) == []
