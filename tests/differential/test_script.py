"""The notation of the corpus, and the verdicts."""

from __future__ import annotations

import pytest

from tests.differential.rules import RULES
from tests.differential.run import cases_of, judge
from tests.differential.script import ScriptError, build, parse
from tests.session import frontend

SCRIPT = """
# A comment.
== the first
known: some-bug
startup: options=-c a=b
+ Parse s1 (23,25) SELECT $1,
   $2
+ Bind p1 s1 [1, "a", null, "hex:00ff"] in=1 out=0,1
Sync
b: Query SELECT 1

== the second
Query
"""


def test_a_script_is_read() -> None:
    first, second = parse(SCRIPT)
    assert (first.name, first.known, first.startup) == ("the first", "some-bug", {"options": "-c a=b"})
    assert first.clients == ["a", "b"]
    assert [step.client for step in first.steps] == ["a", "b"]
    assert [line.word for line in first.steps[0].lines] == ["Parse", "Bind", "Sync"]
    assert first.steps[0].lines[0].data == frontend.message(
        b"P", b"s1\0SELECT $1,\n$2\0\0\2\0\0\0\x17\0\0\0\x19"
    )
    assert second.steps[0].lines[0].data == frontend.query("")


@pytest.mark.parametrize(
    ("text", "data"),
    [
        ('Query SELECT {{each 1..3 "+" $#}}', frontend.query("SELECT $1+$2+$3")),
        ("Parse - SELECT 1", frontend.parse("", "SELECT 1")),
        ("Bind - s1", frontend.bind("s1")),
        (
            'Bind p1 s1 [1, null, "hex:00ff"] in=1 out=0,1',
            frontend.message(
                b"B",
                b"p1\0s1\0\0\1\0\1\0\3\0\0\0\0011\xff\xff\xff\xff\0\0\0\2\0\xff\0\2\0\0\0\1",
            ),
        ),
        ("Describe S -", frontend.describe()),
        ("Close P p1", frontend.close("p1", b"P")),
        ("Execute p1 2", frontend.message(b"E", b"p1\0\0\0\0\2")),
        ("CopyData 1\\tone\\n", frontend.copy_data(b"1\tone\n")),
        ("CopyFail no", frontend.COPY_FAIL),
        ("Message Q a\\xff\\x00", frontend.message(b"Q", b"a\xff\0")),
        ("Bytes Q\\x00", b"Q\0"),
    ],
)
def test_a_line_stands_for_a_message(text: str, data: bytes) -> None:
    assert build(text).data == data


@pytest.mark.parametrize("text", ["Query SELECT 1", "== a\nParze s1 SELECT 1", "== a\nBind - - [1"])
def test_a_line_that_is_not_in_the_notation_is_told(text: str) -> None:
    with pytest.raises(ScriptError):
        list(parse(text))


def test_each_case_has_a_name_of_its_own_and_a_rule_that_exists() -> None:
    cases = cases_of()
    names = [(case.file, case.name) for case in cases]
    assert len(names) == len(set(names))
    assert {case.differs for case in cases if case.differs} <= RULES.keys()
    assert all(case.steps or case.startup for case in cases)


@pytest.mark.parametrize(
    ("head", "proxied", "verdict"),
    [
        ("", "one", "same"),
        ("", "two", "different"),
        ("known: bug", "two", "known"),
        ("known: bug", "one", "different"),
        ("differs: function-call", "ErrorResponse ERROR 0A000", "documented"),
        ("differs: function-call", "two", "different"),
        ("differs: function-call", "one", "different"),
    ],
)
def test_the_verdict(head: str, proxied: str, verdict: str) -> None:
    (case,) = parse(f"== a\n{head}\nQuery SELECT 1")
    assert judge(case, [[], ["one"], []], [[], [proxied], []]).verdict == verdict
