from __future__ import annotations

import io
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing
from pathlib import Path

import pytest

from proxy.errors import SluiceError
from proxy.logreader.file import LogFile
from proxy.logreader.wanted import Wanted
from tests.logreader.records import line, record

ALL = Wanted()


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "access.log"


@pytest.fixture
def opened() -> Iterator[Callable[[Path], LogFile]]:
    """Give a function that opens a log, which is closed after the test."""
    with ExitStack() as stack:
        yield lambda path: stack.enter_context(closing(LogFile(path)))


Opened = Callable[[Path], LogFile]


def statements(found: list[dict[str, object]]) -> list[object]:
    return [each["statement"] for each in found]


def test_the_newest_are_the_last_that_are_wanted(path: Path, opened: Opened) -> None:
    path.write_text("".join(line(statement=f"{n}", intent="read" if n % 2 else "write") for n in range(9)))
    assert statements(opened(path).newest(Wanted(intent="read"), 3)) == ["3", "5", "7"]
    assert opened(path).newest(ALL, 0) == []


@pytest.mark.parametrize(
    "other",
    ["listening on 127.0.0.1\n", "\n", "{not json}\n", '{"level": "info"}\n', '{"id": 1, "at": 2}\n', "{\n"],
)
def test_what_is_no_record_is_passed_over(path: Path, opened: Opened, other: str) -> None:
    path.write_text(line(statement="1") + other + line(statement="2"))
    assert statements(opened(path).newest(ALL, 9)) == ["1", "2"]


def test_a_line_that_is_half_written_is_read_when_it_is_whole(path: Path, opened: Opened) -> None:
    whole = line(statement="1")
    path.write_text(whole[:40])
    log = opened(path)
    assert log.newest(ALL, 9) == []
    with path.open("a") as writer:
        writer.write(whole[40:])
        writer.write(line(statement="2")[:10])
    assert statements(list(log.more(ALL))) == ["1"]
    assert list(log.more(ALL)) == []


def test_a_line_without_an_end_is_not_held_whole(path: Path, opened: Opened) -> None:
    path.write_bytes(b"{" * (5 << 20) + b"\n" + line(statement="1").encode())
    log = opened(path)
    assert statements(log.newest(ALL, 9)) == ["1"]


def test_a_file_that_was_exchanged_is_followed(path: Path, opened: Opened) -> None:
    path.write_text(line(statement="1"))
    log = opened(path)
    assert statements(log.newest(ALL, 9)) == ["1"]
    with path.open("a") as writer:
        path.rename(path.with_suffix(".1"))
        writer.write(line(statement="2"))
    assert list(log.more(ALL)) == [record(statement="2")], "before there is another"
    path.write_text(line(statement="3"))
    assert statements(list(log.more(ALL))) == ["3"]


def test_a_file_that_was_emptied_is_read_from_its_start(path: Path, opened: Opened) -> None:
    path.write_text(line(statement="1") * 3)
    log = opened(path)
    assert len(log.newest(ALL, 9)) == 3
    path.write_text(line(statement="2"))
    assert statements(list(log.more(ALL))) == ["2"]


def test_standard_input_ends(opened: Opened, monkeypatch: pytest.MonkeyPatch) -> None:
    class Input:
        buffer = io.BytesIO(line(statement="1").encode())

    monkeypatch.setattr("sys.stdin", Input)
    log = opened(Path("-"))
    assert log.ends
    assert statements(list(log.more(ALL))) == ["1"]
    assert list(log.more(ALL)) == []


def test_a_file_that_cannot_be_read_is_told(tmp_path: Path) -> None:
    with pytest.raises(SluiceError, match=r"cannot read .*missing: No such file"):
        LogFile(tmp_path / "missing")
