from __future__ import annotations

import json
import logging
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.observe.text import MAX_ESCAPED, JsonFormatter, TextFormatter, escape

SECRET = "ctm_ab12cd34ef56_0123456789abcdefghijklmnopqrstuv"
HOSTILE = f"a\nERROR forged: \x1b[2Jb\x07\u202e\u2028 {SECRET}"

texts = st.text(st.characters(exclude_categories=[]))


@pytest.mark.parametrize(
    ("text", "escaped"),
    [
        ("", ""),
        ("plain, 'quoted' \"text\" — with ünï☃", "plain, 'quoted' \"text\" — with ünï☃"),
        ("a\nb\r\tc", "a\\nb\\r\\tc"),
        ("\x1b[31m\x00\x7f\x9b", "\\x1b[31m\\x00\\x7f\\x9b"),
        ("\u202eevil\u2066\u200b\ufeff", "\\u202eevil\\u2066\\u200b\\ufeff"),
        ("\u2028\u2029\x85\xa0", "\\u2028\\u2029\\x85\\xa0"),
        ("\ud800", "\\ud800"),
        ("\\n", "\\\\n"),
    ],
)
def test_what_does_not_print_is_escaped(text: str, escaped: str) -> None:
    assert escape(text) == escaped


@given(texts)
def test_escaped_text_prints_and_says_the_same(text: str) -> None:
    escaped = escape(text)
    assert escaped.isprintable()
    assert escaped.encode("utf-8").decode() == escaped
    assert escaped.encode("latin-1", "backslashreplace").decode("unicode_escape") == text


def test_long_text_is_cut() -> None:
    assert escape("x" * MAX_ESCAPED) == "x" * MAX_ESCAPED
    assert escape("x" * (MAX_ESCAPED + 1)) == "x" * MAX_ESCAPED + "…"
    assert escape("abc", 2) == "ab…"


def record(failing: bool = False) -> logging.LogRecord:
    trace = None
    if failing:
        try:
            raise ValueError(HOSTILE)
        except ValueError:
            trace = sys.exc_info()
    return logging.LogRecord("proxy.test", logging.ERROR, __file__, 1, "user %s", (HOSTILE,), trace)


def test_a_text_record_is_one_line() -> None:
    line = TextFormatter().format(record())
    assert line.isprintable()
    assert " ERROR proxy.test: user a\\nERROR forged" in line
    assert line.endswith("ctm_ab12cd34ef56_***")


def test_a_traceback_is_indented_and_escaped() -> None:
    text = TextFormatter().format(record(failing=True))
    first, *rest = text.split("\n")
    assert " ERROR proxy.test: " in first
    assert rest
    assert all(line.startswith("    ") and line.isprintable() for line in rest)
    assert any("ValueError: a" in line for line in rest)
    assert SECRET[17:] not in text


@pytest.mark.parametrize("failing", [False, True])
def test_a_json_record_is_one_line_of_ascii(failing: bool) -> None:
    line = JsonFormatter().format(record(failing))
    assert line.isascii()
    assert line.isprintable()
    assert SECRET[17:] not in line
    fields = json.loads(line)
    assert fields["level"] == "error"
    assert fields["logger"] == "proxy.test"
    assert fields["message"] == f"user {HOSTILE}".replace(SECRET, "ctm_ab12cd34ef56_***")
    assert ("traceback" in fields) == failing


def test_json_records_escape_del() -> None:
    made = logging.LogRecord("proxy", logging.INFO, __file__, 1, "\x7f", (), None)
    assert JsonFormatter().format(made).isprintable()
