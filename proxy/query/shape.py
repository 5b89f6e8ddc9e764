"""The shape of a simple text: its bytes with number and plain string constants blanked.

Many drivers write values into the text, so that each text is new while its shape is old. Two texts with one
shape have the same tokens but for their constants. It is kept apart from the full lexer (proxy.query.lexer)
because it is on the path of each such query: one pass, and no shape at all where the text holds anything that
takes thought.
"""

from __future__ import annotations

from typing import Final, final

from librt.strings import BytesWriter
from mypy_extensions import i64, u8

NUMBER_MARK: Final = 0x01
STRING_MARK: Final = 0x02
# Marks can't be taken for text: a text with control characters has no shape.

_PLAIN: Final = 0
_LETTER: Final = 1  # identifiers go on with letters and digits
_DIGIT: Final = 2
_QUOTE: Final = 3
_POINT: Final = 4
_DOUBLED: Final = 5  # - and /: two of them, or / and *, begin a comment
_REFUSED: Final = 6


def _class_of(byte: int) -> int:
    character = chr(byte)
    if byte >= 0x7F or character in '\\"$' or (byte < 0x20 and character not in "\t\n\r\f\v"):
        return _REFUSED
    if character.isalpha() or character == "_":
        return _LETTER
    if character.isdigit():
        return _DIGIT
    return {"'": _QUOTE, ".": _POINT, "-": _DOUBLED, "/": _DOUBLED}.get(character, _PLAIN)


_CLASSES: Final = bytes([_class_of(byte) for byte in range(256)])


def shape_key(sql: bytes) -> bytes:
    """Return the shape of `sql`, `sql` itself where it holds no constant, b"" where it has no shape.

    A text has none if it holds a backslash, dollar, double quote, comment, control character or non-ASCII
    byte, or a constant that PostgreSQL wouldn't read.
    """
    size: i64 = len(sql)
    copied: i64 = 0
    i: i64 = 0
    out: BytesWriter | None = None
    while i < size:
        kind: i64 = _CLASSES[sql[i]]
        if kind == _PLAIN:
            i += 1
            continue
        if kind == _LETTER:
            i += 1
            while i < size and 1 <= _CLASSES[sql[i]] <= 2:
                i += 1
            continue
        if kind == _DOUBLED:
            following: u8 = sql[i + 1] if i + 1 < size else 0
            if following == sql[i] or (following == 0x2A and sql[i] == 0x2F):
                return b""
            i += 1
            continue
        if kind == _REFUSED:
            return b""
        if kind == _POINT and not (i + 1 < size and _CLASSES[sql[i + 1]] == _DIGIT):
            i += 1
            if i < size and sql[i] == 0x2E:
                return b""  # .. is a token of its own: 1..2 isn't 1. and .2
            continue
        if kind == _QUOTE and i > 0 and (sql[i - 1] | 0x20 == 0x62 or sql[i - 1] | 0x20 == 0x78):
            return b""  # in b'' and x'' a doubled quote isn't a quote
        end = string_end(sql, i + 1, size) if kind == _QUOTE else number_end(sql, i, size)
        if end < 0:
            return b""
        if out is None:
            out = BytesWriter()
        out.write(sql[copied:i])
        out.append(STRING_MARK if kind == _QUOTE else NUMBER_MARK)
        i = end
        copied = end
    if out is None:
        return sql
    out.write(sql[copied:size])
    return out.getvalue()


def string_end(sql: bytes, i: i64, size: i64) -> i64:
    """Return where the constant ends whose text begins at `i`; -1 if it doesn't, or has no shape."""
    while i < size:
        kind: i64 = _CLASSES[sql[i]]
        i += 1
        if kind == _QUOTE:
            if i >= size or sql[i] != 0x27:
                return i
            i += 1
        elif kind == _REFUSED:
            return -1
    return -1


def number_end(sql: bytes, i: i64, size: i64) -> i64:
    """Return where the numeric constant that begins at `i` ends; -1 where it isn't a plain one.

    Those with a radix (0x1F) or underscores are left to the parser.
    """
    while i < size and _CLASSES[sql[i]] == _DIGIT:
        i += 1
    if i < size and sql[i] == 0x2E:
        i += 1
        if i < size and sql[i] == 0x2E:
            return -1
        while i < size and _CLASSES[sql[i]] == _DIGIT:
            i += 1
    if i < size and sql[i] | 0x20 == 0x65:  # e
        i += 1
        if i < size and (sql[i] == 0x2B or sql[i] == 0x2D):
            i += 1
        if i >= size or _CLASSES[sql[i]] != _DIGIT:
            return -1
        while i < size and _CLASSES[sql[i]] == _DIGIT:
            i += 1
    return -1 if i < size and 1 <= _CLASSES[sql[i]] <= 2 else i


_MAX_DIGITS: Final = 32
"""Digits of a template's number; a longer one is rare, and the text may be longer than what is parsed."""


@final
class Template:
    """A shape with one number in it, as what stands around the number: the cheapest test that a text has that shape."""

    def __init__(self, prefix: bytes, suffix: bytes) -> None:
        self.prefix: Final = prefix
        self.suffix: Final = suffix
        self._length: Final[i64] = len(prefix) + len(suffix)

    def fits(self, sql: bytes) -> bool:
        """Tell whether `sql` is the prefix, some digits, and the suffix."""
        size: i64 = len(sql)
        if size <= self._length or size > self._length + _MAX_DIGITS:
            return False
        if not sql.startswith(self.prefix) or not sql.endswith(self.suffix):
            return False
        i: i64 = len(self.prefix)
        end: i64 = size - len(self.suffix)
        while i < end:
            if sql[i] < 0x30 or sql[i] > 0x39:
                return False
            i += 1
        return True


def template_of(shape: bytes) -> Template | None:
    """Return the template of a shape; None where its constants aren't one number between blanks and operators.

    What stands beside the number must neither go on with it nor make it part of something else, whatever its digits.
    """
    at: i64 = shape.find(NUMBER_MARK)
    size: i64 = len(shape)
    if at < 1 or shape.find(NUMBER_MARK, at + 1) >= 0 or shape.find(STRING_MARK) >= 0:
        return None
    if _CLASSES[shape[at - 1]] != _PLAIN or (at + 1 < size and _CLASSES[shape[at + 1]] != _PLAIN):
        return None
    return Template(shape[:at], shape[at + 1 :])
