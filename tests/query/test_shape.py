"""Shapes: equal for texts that differ in constants alone, and for no others."""

from __future__ import annotations

from typing import Final

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pglast.parser import ParseError, fingerprint, scan

from proxy.query.shape import NUMBER_MARK, STRING_MARK, shape_key, template_of


@pytest.mark.parametrize(
    ("text", "shape"),
    [
        (b"", b""),
        (b"BEGIN", b"BEGIN"),
        (b"SELECT a1, b2_3c FROM t4", b"SELECT a1, b2_3c FROM t4"),
        (b"SELECT 1", b"SELECT \x01"),
        (b"SELECT 1, 23,456", b"SELECT \x01, \x01,\x01"),
        (b"SELECT 1.5, .5, 5., 1e5, 1.5E-3, .5e+10", b"SELECT \x01, \x01, \x01, \x01, \x01, \x01"),
        (b"SELECT -1, a-1, 1-a", b"SELECT -\x01, a-\x01, \x01-a"),
        (b"SELECT t.a, 1.5.5", b"SELECT t.a, \x01\x01"),
        (b"SELECT 'a', 'it''s', ''", b"SELECT \x02, \x02, \x02"),
        (b"SELECT 'a''', '''', 'b'", b"SELECT \x02, \x02, \x02"),
        (b"SELECT 'a'\n'b'", b"SELECT \x02\n\x02"),
        (b"SELECT E'a', n'a', u&'a'", b"SELECT E\x02, n\x02, u&\x02"),
        (b"SELECT date'2020-01-01'", b"SELECT date\x02"),
        (b"SELECT a[1:2], f(1)", b"SELECT a[\x01:\x01], f(\x01)"),
        (b"a/b - c*d", b"a/b - c*d"),
        (b"\tSELECT\r\n1", b"\tSELECT\r\n\x01"),
    ],
)
def test_shape(text: bytes, shape: bytes) -> None:
    assert shape_key(text) == shape


@pytest.mark.parametrize(
    "text",
    [
        b"SELECT $1",
        b"SELECT 'a\\b'",
        b'SELECT "a"',
        b"SELECT 1 -- x",
        b"SELECT 1 /* x */",
        b"SELECT 'a",
        b"SELECT 'a''",
        b"SELECT '\x01'",
        b"SELECT \x01",
        b"SELECT \x02, 1",
        b"SELECT 1\x00",
        "SELECT 'é'".encode(),
        "SELECT é".encode(),
        b"SELECT 1a",
        b"SELECT 1_000",
        b"SELECT 0x1F",
        b"SELECT b'01'",
        b"SELECT X'1f'",
        b"SELECT 1..2",
        b"SELECT a..b",
        b"SELECT 1e",
        b"SELECT 1e+",
        b"SELECT 1.5e5x",
    ],
)
def test_text_without_a_shape(text: bytes) -> None:
    assert shape_key(text) == b""


def test_text_without_constants_is_its_own_shape() -> None:
    text = b"SELECT a FROM t"
    assert shape_key(text) is text


NUMBERS: Final = st.one_of(
    st.integers(min_value=0).map(str),
    st.tuples(st.integers(0, 99), st.integers(0, 99)).map(lambda pair: f"{pair[0]}.{pair[1]}"),
    st.tuples(st.integers(0, 99), st.integers(-9, 9)).map(lambda pair: f"{pair[0]}e{pair[1]}"),
    st.integers(0, 99).map(lambda n: f".{n}"),
)
PRINTABLE: Final = st.characters(min_codepoint=0x20, max_codepoint=0x7E, exclude_characters='\\"$')
STRINGS: Final = st.text(PRINTABLE, max_size=12).map(lambda text: "'" + text.replace("'", "''") + "'")
CONSTANTS: Final = st.tuples(NUMBERS, STRINGS, NUMBERS, STRINGS)

TEMPLATES: Final = [
    "SELECT {0}, {1} FROM t1 WHERE a2 = {2} AND b LIKE {3} LIMIT 5",
    "SELECT f1({0},{1})+{2}||{3}",
    "INSERT INTO t (a, b, c, d) VALUES ({0}, {1}, -{2}, {3}::text)",
    "UPDATE t SET a={0}, b={1} WHERE c<{2} OR d>={3}",
    "WITH x AS (SELECT {0} AS n) DELETE FROM t USING x WHERE t.a={1} AND b = ANY (ARRAY[{2}, n]) AND c={3}",
    "SELECT CASE WHEN a>{0} THEN {1} ELSE b END FROM t ORDER BY c*{2}, {3}",
]


@given(st.sampled_from(TEMPLATES), CONSTANTS, CONSTANTS)
def test_texts_that_differ_in_constants_share_shape_and_fingerprint(
    template: str, one: tuple[str, ...], other: tuple[str, ...]
) -> None:
    first, second = template.format(*one), template.format(*other)
    shape = shape_key(first.encode())
    if any(mark in text for text in (*one, *other) for mark in ("--", "/*")):
        return  # inside a string they begin no comment, but such a text may go without a shape
    assert shape
    assert shape == shape_key(second.encode())
    assert fingerprint(first) == fingerprint(second)


PIECES: Final = st.sampled_from(
    [
        *[
            "a",
            "b2",
            "_c3",
            "SELECT",
            "FROM",
            "e",
            "E",
            "b",
            "n",
            "x",
            "u&",
            "1",
            "23",
            "0",
            "4.5",
            ".6",
            "7.",
            "8e9",
            "1e-2",
        ],
        *["'p'", "'q''r'", "''", "'--'", "'1'"],
        *[
            ".",
            ",",
            ";",
            "(",
            ")",
            "[",
            "]",
            ":",
            "::",
            "-",
            "+",
            "*",
            "/",
            "<",
            ">",
            "=",
            "|",
            "&",
            "%",
            "^",
            "#",
            "@",
            "!",
            "~",
            "?",
            "..",
            "/*",
            "--",
            "$1",
        ],
        *['"', "\\", "\n"],
    ]
)
SOUPS: Final = st.lists(st.one_of(PIECES, st.just(" ")), max_size=8).map("".join)
CHOICES: Final = st.sampled_from(
    ["0", "12", "4.5", ".6", "7.", "8e9", "1e-2", "0x1F", "1_0", "'p'", "'q''r'", "''", "'0'"]
)
# Texts that differ in what stands at some places.
PAIRS: Final = st.lists(
    st.one_of(PIECES.map(lambda piece: (piece, piece)), st.tuples(CHOICES, CHOICES)), max_size=6
)


CONSTANT_TOKENS: Final = frozenset({"ICONST", "FCONST", "SCONST", "USCONST"})


def tokens(text: str) -> list[str] | None:
    """Return what PostgreSQL's lexer sees: words as they stand, constants by their kind alone."""
    try:
        scanned = scan(text)
    except ParseError:
        return None
    return [
        "constant" if token.name in CONSTANT_TOKENS else text[token.start : token.end + 1]
        for token in scanned
    ]


@settings(max_examples=300)
@given(PAIRS)
def test_one_shape_means_the_same_tokens(pairs: list[tuple[str, str]]) -> None:
    one, other = ("".join(column) for column in zip(*pairs, strict=True)) if pairs else ("", "")
    shape = shape_key(one.encode())
    if shape and shape == shape_key(other.encode()):
        first, second = tokens(one), tokens(other)
        if first is not None and second is not None:
            assert first == second


@settings(max_examples=200)
@given(SOUPS)
def test_marks_stand_for_constants_and_nothing_else(soup: str) -> None:
    shape = shape_key(soup.encode())
    seen = tokens(soup)
    if shape and seen is not None:
        literal = [token for token in seen if token == "constant"]
        # Two strings with a newline between them are one constant to PostgreSQL, two marks to us.
        assert shape.count(b"\x01") + shape.count(b"\x02") >= len(literal)
        if "\n" not in soup:
            assert shape.count(b"\x01") + shape.count(b"\x02") == len(literal)


@given(st.binary(max_size=200))
def test_any_bytes_are_taken(text: bytes) -> None:
    shape = shape_key(text)
    assert shape == b"" or len(shape) <= len(text)
    assert shape is text or b"'" not in shape


# What may stand beside a number, and what makes it something else there.
EDGES: Final = st.sampled_from(
    [
        "",
        "a",
        "a1",
        "_",
        " ",
        "=",
        "(",
        ")",
        ";",
        ",",
        "-",
        "/",
        ".",
        "1.",
        ".5",
        "e",
        "e5",
        "'b'",
        "*",
        "+",
        "x'",
    ]
)


@settings(max_examples=1000)
@given(
    before=st.lists(EDGES, max_size=3),
    after=st.lists(EDGES, max_size=3),
    digits=st.from_regex(r"\A[0-9]{1,32}\Z"),
)
def test_what_fits_a_template_has_its_shape(before: list[str], after: list[str], digits: str) -> None:
    prefix, suffix = "".join(before).encode(), "".join(after).encode()
    shape = shape_key(prefix + b"7" + suffix)
    template = template_of(shape) if shape else None
    text = prefix + digits.encode() + suffix
    if template is not None and template.fits(text):
        assert shape_key(text) == shape


@pytest.mark.parametrize(
    "text",
    [b"SELECT a FROM t WHERE b = 17;", b"SELECT a FROM t WHERE b=17 AND c < d", b"SELECT f(1)", b"SELECT 1"],
)
def test_a_template_fits_other_numbers(text: bytes) -> None:
    template = template_of(shape_key(text))
    assert template is not None
    number = bytes(byte for byte in text if 0x30 <= byte <= 0x39)
    prefix, suffix = text.split(number)
    for other in (b"0", b"42", b"9" * 32):
        assert template.fits(prefix + other + suffix)
    for other in (b"", b"9" * 33, b"1.5", b"-1", b"1e5", b" 1", b"1 ", b"a", b"1a", b"0x1F", b"1;2", b"'1'"):
        assert not template.fits(prefix + other + suffix)
    assert not template.fits(b"x" + text)
    assert not template.fits(text + b"x")
    assert not template.fits(prefix)


@pytest.mark.parametrize(
    "text",
    [
        b"SELECT",
        b"1",
        b"SELECT 1, 2",
        b"SELECT 1, 'a'",
        b"SELECT 'a'",
        b"SELECT -1",
        b"SELECT 1-a",
        b"SELECT 1.5.5",
        b"SELECT a/1",
        b"SELECT a.5",
    ],
)
def test_a_shape_without_a_template(text: bytes) -> None:
    shape = shape_key(text)
    assert shape.count(NUMBER_MARK) != 1 or shape.count(STRING_MARK) or template_of(shape) is None
    assert template_of(shape) is None
