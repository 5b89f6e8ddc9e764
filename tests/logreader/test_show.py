from __future__ import annotations

import json

import pytest
from rich.cells import cell_len

from proxy.logreader.show import JsonPrinter, TablePrinter, cells
from tests.logreader.records import record


def test_a_row_tells_the_essence() -> None:
    assert cells(record(sqlstate="22012", duration_us=1234)) == [
        "2026-11-28 12:00:00.000",
        "statement",
        "ctm_ab12cd34ef56",
        "ann@example.com",
        "read",
        "readonly",
        "1.2",
        "1",
        "22012",
        "SELECT $1",
    ]


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"event": "denied", "reason": "no right"}, "no right: SELECT $1"),
        ({"event": "login_failed", "reason": "expired", "statement": None}, "expired"),
        ({"event": "login", "reason": None, "statement": None}, ""),
        ({"statement": "SELECT\n\t1"}, "SELECT 1"),
        ({"statement": "SELECT '\x1b[2J\u202e'"}, "SELECT '\\x1b[2J\\u202e'"),
    ],
)
def test_the_last_column(changes: dict[str, str], said: str) -> None:
    assert cells(record(**changes))[-1] == said


def test_every_field_is_made_safe() -> None:
    hostile = dict.fromkeys(("at", "event", "key_id", "user_id", "intent", "sqlstate"), "\x1b]0;x\x07")
    shown = "".join(cells({**record(), **hostile, "rows": "\x1b", "duration_us": "\x1b"}))
    assert shown.isprintable()


def test_titles_stand_once(capsys: pytest.CaptureFixture[str]) -> None:
    printer = TablePrinter(wide=False, follow=True)
    printer.show([])
    printer.show([record(statement="SELECT 1")])
    printer.show([record(statement="SELECT 2", user_id="somebody-with-a-long-name@example.com")])
    titles, first, second = capsys.readouterr().out.splitlines()
    assert titles.split()[:2] == ["at", "(UTC)"]
    assert first.index("SELECT 1") == second.index("SELECT 2") == titles.index("statement")
    assert "somebody-with-a-lon…" in second


@pytest.mark.parametrize("wide", [False, True])
def test_a_pipe_gets_whole_statements(capsys: pytest.CaptureFixture[str], wide: bool) -> None:
    text = "SELECT " + "x" * 3000
    TablePrinter(wide=wide, follow=False).show([record(statement=text)])
    assert text in capsys.readouterr().out


@pytest.mark.parametrize(
    ("columns", "titles"),
    [
        (200, "at (UTC) event key user intent target ms rows state statement"),
        (120, "at (UTC) event user ms state statement"),
        (60, "at (UTC) statement"),
    ],
)
def test_a_narrow_terminal_gets_fewer_columns(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, columns: int, titles: str
) -> None:
    monkeypatch.setattr("sys.stdout.isatty", lambda: True)
    monkeypatch.setenv("COLUMNS", str(columns))
    TablePrinter(wide=False, follow=True).show([record(statement="SELECT " + "x" * 300)])
    first, second = capsys.readouterr().out.splitlines()
    assert " ".join(first.split()) == titles
    assert len(second) == columns and second.endswith("x…")


def test_a_terminal_gets_all_of_a_statement_where_it_may_be_wide(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.stdout.isatty", lambda: True)
    monkeypatch.setenv("COLUMNS", "120")
    TablePrinter(wide=True, follow=False).show([record(statement="SELECT " + "x" * 300)])
    assert "x" * 300 in capsys.readouterr().out


def test_characters_that_take_two_places_count_as_two(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.stdout.isatty", lambda: True)
    monkeypatch.setenv("COLUMNS", "200")
    TablePrinter(wide=False, follow=True).show([record(statement="中" * 300), record(user_id="中" * 30)])
    _, first, second = capsys.readouterr().out.splitlines()
    assert max(map(cell_len, (first, second))) <= 200
    assert cell_len(second[: second.index("SELECT")]) == cell_len(first[: first.index("中")])


def test_markup_in_a_statement_is_text(capsys: pytest.CaptureFixture[str]) -> None:
    TablePrinter(wide=False, follow=False).show([record(statement="SELECT a[1], '[red]'")])
    assert "SELECT a[1], '[red]'" in capsys.readouterr().out


def test_json_lines_are_ascii(capsys: pytest.CaptureFixture[str]) -> None:
    made = record(statement="é\x1b\x7f\n")
    JsonPrinter().show([made, made])
    out = capsys.readouterr().out
    assert out.isascii() and "\x1b" not in out and "\x7f" not in out
    assert [json.loads(each) for each in out.splitlines()] == [made, made]
