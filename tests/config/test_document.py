from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.config.document import Document
from proxy.config.problems import ConfigError

ENVIRON = {"USER_NAME": "app", "EMPTY": "", "HOSTILE": "${EVIL} $${ : # {"}


@pytest.mark.parametrize(
    ("written", "read"),
    [
        ("off", "off"),
        ("no", "no"),
        ("1.20", "1.20"),
        ("0123", "0123"),
        ("2026-01-01", "2026-01-01"),
        ("null", None),
        ("~", None),
        ("", None),
        ('"null"', "null"),
        ("${USER_NAME}", "app"),
        ("a-${USER_NAME}-b", "a-app-b"),
        ("${USER_NAME}${USER_NAME}", "appapp"),
        ("${UNSET:-fallback}", "fallback"),
        ("${UNSET:-}", ""),
        ("${EMPTY:-fallback}", "fallback"),
        ("${EMPTY}", ""),
        ("${USER_NAME:-fallback}", "app"),
        ("${HOSTILE}", ENVIRON["HOSTILE"]),
        ("'$${USER_NAME}'", "${USER_NAME}"),
        ("a$b", "a$b"),
        ("$$", "$$"),
    ],
)
def test_scalars_stay_text_and_references_are_replaced(written: str, read: str | None) -> None:
    document = Document(f"key: {written}\n", ENVIRON)
    assert document.tree == {"key": read}
    assert document.problems == []


@pytest.mark.parametrize(
    ("written", "message"),
    [
        ("${UNSET}", "environment variable UNSET is not set"),
        ("a${UNSET}b${ALSO_UNSET}", "environment variable UNSET is not set"),
        ('"${1}"', "a reference is written ${VAR} or ${VAR:-default}; $${ stands for a plain ${"),
        ('"${"', "a reference is written ${VAR} or ${VAR:-default}; $${ stands for a plain ${"),
        ('"${A-b}"', "a reference is written ${VAR} or ${VAR:-default}; $${ stands for a plain ${"),
    ],
)
def test_a_reference_that_cannot_be_replaced_is_a_problem_with_its_place(written: str, message: str) -> None:
    document = Document(f"outer:\n  - first\n  - key: {written}\n", ENVIRON)
    assert [tuple(problem) for problem in document.problems] == [("outer[1].key", 3, message)]
    assert document.unusable == [("outer", 1, "key")]
    assert document.tree == {"outer": ["first", {"key": None}]}


def test_each_key_has_its_line() -> None:
    document = Document("a:\n  b: 1\n  c:\n    - x\n    - {d: 2}\n", {})
    assert {path: line for path, line in document.lines.items() if path} == {
        ("a",): 1, ("a", "b"): 2, ("a", "c"): 3, ("a", "c", 0): 4, ("a", "c", 1): 5, ("a", "c", 1, "d"): 5,
    }  # fmt: skip
    assert document.line(("a", "b", "unknown", 7)) == 2
    assert document.line(("elsewhere",)) == 1


def test_a_key_written_twice_is_a_problem_and_the_first_counts() -> None:
    document = Document("a: 1\nb: 2\na: 3\n", {})
    assert [str(problem) for problem in document.problems] == ["a (line 3): written twice, first in line 1"]
    assert document.tree == {"a": "1", "b": "2"}


def test_anchors_and_merge_keys() -> None:
    document = Document("base: &base {user: u, max: 1}\npool:\n  <<: *base\n  max: 2\nsame: *base\n", {})
    assert document.problems == []
    assert document.tree == {
        "base": {"user": "u", "max": "1"},
        "pool": {"user": "u", "max": "2"},
        "same": {"user": "u", "max": "1"},
    }


def test_an_alias_to_itself_is_a_problem() -> None:
    document = Document("a: &a\n  b: *a\n", {})
    assert [problem.path for problem in document.problems] == ["a.b"]


def test_aliases_that_multiply_without_end_are_a_problem() -> None:
    text = "a0: &a0 [x, x]\n" + "".join(
        f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]\n" for n in range(1, 12)
    )
    with pytest.raises(ConfigError, match="aliases within aliases"):
        Document(text, {})


@pytest.mark.parametrize(
    "text", ["a: [", "a: b: c", "a: 1\n---\nb: 2\n", "x: \x00", "\t- x", "<<: 3", "!!x y: ["]
)
def test_what_is_no_yaml_is_one_problem(text: str) -> None:
    with pytest.raises(ConfigError, match="not valid YAML: ") as caught:
        Document(text, {})
    assert len(caught.value.problems) == 1


def test_an_empty_document_is_nothing() -> None:
    assert Document("", {}).tree is None
    assert Document("# only a comment\n", {}).tree is None


@given(st.text(alphabet=st.sampled_from("ab:-[]{}&*!|>'\"%@`#, \n\t?<$\\0~é"), max_size=60))
def test_any_text_is_a_document_or_a_config_error(text: str) -> None:
    try:
        Document(text, {})
    except ConfigError as error:
        assert error.problems
