"""PostgreSQL's lexical rules over bytes, as far as literals, comments and words need them.

pglast's scan() knows the same rules, but takes seconds for 16 KiB of text with accents and 28 ms for 16 KiB
of commas; this takes as many microseconds, and doesn't mind a text that was cut off. It follows
src/backend/parser/scan.l with standard_conforming_strings on, and is tested against pglast's scan() on random
texts.
"""

from __future__ import annotations

from typing import Final, final

from librt.strings import BytesWriter
from mypy_extensions import i64, u8

END: Final = 0
WORD: Final = 1  # keyword or unquoted identifier
QUOTED: Final = 2  # "identifier" or U&"identifier"
STRING: Final = 3  # every kind of quoted constant, with its prefix and continuations
NUMBER: Final = 4
PARAM: Final = 5  # $1
COMMENT: Final = 6
OTHER: Final = 7  # one byte of an operator or punctuation, or ..
ERROR: Final = 8  # nothing that PostgreSQL would accept; the rest of the text isn't read

MAX_OPERATOR: Final = 32
MAX_OPERATORS: Final = 12_000  # of a text, also in its strings: more than any of 16 KiB can have
_OPERATOR_CHARACTERS: Final = b"~!@#^&|`?+-*/%<>="

# Quoted constants: '' is a quote in the first two, a backslash escapes in the second alone.
_PLAIN_STRING: Final = 0
_ESCAPE_STRING: Final = 1
_BIT_STRING: Final = 2

# Classes of bytes. Those above 0x7F are letters to PostgreSQL, in every server encoding.
_SPACE: Final = 1
_LETTER: Final = 2
_DIGIT: Final = 3
_PLAIN: Final = 4
_BAD: Final = 5


def _class_of(byte: int) -> int:
    if byte in b" \t\n\r\f\v":
        return _SPACE
    if byte >= 0x80 or chr(byte).isalpha() or byte == 0x5F:
        return _LETTER
    if chr(byte).isdigit():
        return _DIGIT
    return _BAD if byte < 0x20 or byte == 0x7F else _PLAIN


_CLASSES: Final = bytes([_class_of(byte) for byte in range(256)])
_OPERATORS: Final = bytes([byte in _OPERATOR_CHARACTERS for byte in range(256)])


@final
class Lexer:
    """Steps through the tokens of one text; after each step `start` and `end` bound the token."""

    def __init__(self, text: bytes) -> None:
        self.text = text
        self.size: i64 = len(text)
        self.start: i64 = 0
        self.end: i64 = 0
        self.spaced: bool = False  # white space or a comment stood before the token

    def next(self) -> i64:
        """Step to the next token and return its kind, END behind the last one; comments count as tokens."""
        text = self.text
        size = self.size
        i = self.end
        begin = i
        while i < size and _CLASSES[text[i]] == _SPACE:
            i += 1
        self.spaced = i > begin
        self.start = i
        if i >= size:
            self.end = i
            return END
        c: u8 = text[i]
        kind: i64 = _CLASSES[c]
        if kind == _LETTER:
            return self._word(c)
        if kind == _DIGIT:
            return self._number(i)
        if kind == _BAD:
            return self._error()
        following: u8 = text[i + 1] if i + 1 < size else 0
        if c == 0x27:  # '
            return self._string(i + 1, _PLAIN_STRING)
        if c == 0x22:  # "
            return self._quoted(i + 1)
        if c == 0x24:  # $
            return self._dollar(following)
        if c == 0x2D and following == 0x2D:  # --
            self.end = self._line_end(i + 2)
            return COMMENT
        if c == 0x2F and following == 0x2A:  # /*
            return self._block_comment()
        if c == 0x2E and _CLASSES[following] == _DIGIT:
            return self._number(i)
        self.end = i + 2 if c == 0x2E and following == 0x2E else i + 1  # ".." is one token: 1..2
        return OTHER

    def word(self) -> str:
        """Return the current token in lower case, as PostgreSQL folds keywords."""
        return self.text[self.start : self.end].decode("utf-8", "replace").lower()

    def _error(self) -> i64:
        self.end = self.size
        return ERROR

    def _word(self, c: u8) -> i64:
        text = self.text
        size = self.size
        i = self.start + 1
        if i < size:
            following: u8 = text[i]
            if following == 0x27:
                folded: u8 = c | 0x20
                if folded == 0x65:  # e
                    return self._string(i + 1, _ESCAPE_STRING)
                if folded == 0x62 or folded == 0x78:  # b, x
                    return self._string(i + 1, _BIT_STRING)
                if folded == 0x6E:  # n
                    return self._string(i + 1, _PLAIN_STRING)
            elif following == 0x26 and (c == 0x75 or c == 0x55) and i + 1 < size:  # U&
                if text[i + 1] == 0x27:
                    return self._string(i + 2, _PLAIN_STRING)
                if text[i + 1] == 0x22:
                    return self._quoted(i + 2)
        while i < size:
            kind: i64 = _CLASSES[text[i]]
            if kind != _LETTER and kind != _DIGIT and text[i] != 0x24:
                break
            i += 1
        self.end = i
        return WORD

    def _number(self, i: i64) -> i64:
        """Read a decimal, hexadecimal, octal or binary constant that begins at `i`."""
        text = self.text
        size = self.size
        radix: u8 = text[i + 1] | 0x20 if i + 1 < size and text[i] == 0x30 else 0
        if radix == 0x78 or radix == 0x6F or radix == 0x62:  # x, o, b
            i += 2
            while i < size and (
                _CLASSES[text[i]] == _DIGIT or text[i] == 0x5F or 0x61 <= text[i] | 0x20 <= 0x66
            ):
                i += 1
        else:
            i = self._digits(i)
            if i < size and text[i] == 0x2E and not (i + 1 < size and text[i + 1] == 0x2E):
                i = self._digits(i + 1)
            if i < size and (text[i] == 0x65 or text[i] == 0x45):
                i += 1
                if i < size and (text[i] == 0x2B or text[i] == 0x2D):
                    i += 1
                if i >= size or _CLASSES[text[i]] != _DIGIT:
                    return self._error()
                i = self._digits(i)
        if text[i - 1] == 0x5F or (
            i < size and (_CLASSES[text[i]] == _LETTER or _CLASSES[text[i]] == _DIGIT)
        ):
            return self._error()  # "trailing junk after numeric literal"
        self.end = i
        return NUMBER

    def _digits(self, i: i64) -> i64:
        text = self.text
        while i < self.size and (
            _CLASSES[text[i]] == _DIGIT or (text[i] == 0x5F and _CLASSES[text[i - 1]] == _DIGIT)
        ):
            i += 1
        return i

    def _string(self, i: i64, kind: i64) -> i64:
        """Read a quoted constant from behind its opening quote, with the parts that continue it."""
        text = self.text
        size = self.size
        while i < size:
            c: u8 = text[i]
            if c == 0x5C and kind == _ESCAPE_STRING:
                i += 2
                continue
            i += 1
            if c != 0x27:
                continue
            if i < size and text[i] == 0x27 and kind != _BIT_STRING:
                i += 1
                continue
            continued = self._continuation(i)
            if continued < 0:
                self.end = i
                return STRING
            i = continued
        return self._error()

    def _continuation(self, i: i64) -> i64:
        """Return where a constant goes on behind its closing quote, -1 if it doesn't.

        It does behind white space with at least one newline in it ("Lexical Structure", "String Constants").
        """
        text = self.text
        size = self.size
        newline = False
        while i < size:
            c: u8 = text[i]
            if c == 0x0A or c == 0x0D:
                newline = True
            elif c == 0x2D and i + 1 < size and text[i + 1] == 0x2D:
                i = self._line_end(i + 2)
                continue
            elif _CLASSES[c] != _SPACE:
                return i + 1 if newline and c == 0x27 else -1
            i += 1
        return -1

    def _quoted(self, i: i64) -> i64:
        text = self.text
        size = self.size
        while i < size:
            if text[i] == 0x22:
                if i + 1 >= size or text[i + 1] != 0x22:
                    self.end = i + 1
                    return QUOTED
                i += 1
            i += 1
        return self._error()

    def _dollar(self, following: u8) -> i64:
        """Read a parameter or a dollar-quoted constant."""
        text = self.text
        size = self.size
        i = self.start + 1
        if _CLASSES[following] == _DIGIT:
            while i < size and _CLASSES[text[i]] == _DIGIT:
                i += 1
            if i < size and (_CLASSES[text[i]] == _LETTER):
                return self._error()
            self.end = i
            return PARAM
        if _CLASSES[following] == _LETTER:
            while i < size and (_CLASSES[text[i]] == _LETTER or _CLASSES[text[i]] == _DIGIT):
                i += 1
        if i >= size or text[i] != 0x24:
            return self._error()
        tag = text[self.start : i + 1]
        close: i64 = text.find(tag, i + 1)
        if close < 0:
            return self._error()
        self.end = close + len(tag)
        return STRING

    def _line_end(self, i: i64) -> i64:
        text = self.text
        while i < self.size and text[i] != 0x0A and text[i] != 0x0D:
            i += 1
        return i

    def _block_comment(self) -> i64:
        """Read a /* comment */, which may hold others."""
        text = self.text
        last = self.size - 1
        i = self.start + 2
        depth: i64 = 1
        while i < last:
            if text[i] == 0x2A and text[i + 1] == 0x2F:
                i += 2
                depth -= 1
                if depth == 0:
                    self.end = i
                    return COMMENT
            elif text[i] == 0x2F and text[i + 1] == 0x2A:
                i += 2
                depth += 1
            else:
                i += 1
        return self._error()


def normalize(text: bytes) -> bytes:
    """Return `text` without comments and with each literal as $n, counting on from its highest parameter.

    White space shrinks to one space. TRUE and FALSE count as literals where they are values, and so does what
    a SET assigns; what stands behind UESCAPE doesn't. Returns b"" for what PostgreSQL couldn't read either, and
    where nothing is left.
    """
    lexer = Lexer(text)
    out = BytesWriter()
    number = _highest_parameter(text)
    copied: i64 = 0  # text[copied:kept] is to be copied as it stands
    kept: i64 = 0
    opening = True  # the next word opens a statement
    altering = False  # in an ALTER, which may end in SET name = value
    assigning: i64 = 0  # 1: in a SET; 2: behind its = or TO
    before: i64 = 0  # the keyword just before
    while True:
        kind = lexer.next()
        if kind == COMMENT:
            continue
        start = lexer.start
        end = lexer.end
        if kind == END:
            out.write(text[copied:kept])
            return out.getvalue()
        if kind == ERROR:
            return b""
        keyword: i64 = 0
        # The character behind UESCAPE decides what an identifier's name is.
        literal = kind == NUMBER or (kind == STRING and before != _UESCAPE)
        if kind == WORD:
            keyword = _keyword(text, start, end - start)
            if assigning == 2:
                literal = True
            elif keyword == _BOOLEAN:
                literal = before != _TEST and before != _DOT
            elif keyword == _SET and (opening or altering):
                assigning = 1
            elif keyword == _ALTER and opening:
                altering = True
            elif keyword == _TO and assigning == 1:
                assigning = 2
            opening = False
        elif kind == QUOTED:
            literal = assigning == 2
        elif kind == OTHER:
            if text[start] == 0x3B:  # ;
                opening = True
                altering = False
                assigning = 0
            elif text[start] == 0x3D and assigning == 1:  # =
                assigning = 2
            elif text[start] == 0x2E:  # "."
                keyword = _DOT  # s.true() is a function's name
        before = keyword
        if start != kept and (start != kept + 1 or text[kept] != 0x20 or kept == 0):
            out.write(text[copied:kept])
            if kept > 0:
                out.append(0x20)
            copied = start
        if literal:
            out.write(text[copied:start])
            number += 1
            out.write(b"$%d" % number)
            copied = end
        kept = end


# What normalize() asks of a word. IS and NOT are tests: `a IS TRUE` is no comparison with a value.
_TEST: Final = 1
_TO: Final = 2
_SET: Final = 3
_BOOLEAN: Final = 4
_ALTER: Final = 5
_UESCAPE: Final = 6
_DOT: Final = 7


def _keyword(text: bytes, start: i64, length: i64) -> i64:
    if length == 2:
        return _TEST if _is(text, start, b"is") else _TO if _is(text, start, b"to") else 0
    if length == 3:
        return _TEST if _is(text, start, b"not") else _SET if _is(text, start, b"set") else 0
    if length == 4:
        return _BOOLEAN if _is(text, start, b"true") else 0
    if length == 5:
        return _BOOLEAN if _is(text, start, b"false") else _ALTER if _is(text, start, b"alter") else 0
    return _UESCAPE if length == 7 and _is(text, start, b"uescape") else 0


def _is(text: bytes, start: i64, word: bytes) -> bool:
    """Compare the word at `start` with `word`, which is lower-case ASCII letters."""
    size: i64 = len(word)
    k: i64 = 0
    while k < size:
        if text[start + k] | 0x20 != word[k]:
            return False
        k += 1
    return True


MODIFYING: Final = 1
INTO: Final = 2
FOR: Final = 4
NEWER: Final = 8
"""What words_in() returns: INSERT, UPDATE, DELETE, MERGE; INTO; FOR; and words of which newer versions made syntax."""


def words_in(text: bytes) -> i64:
    """Return which of some keywords `text` may hold, in its comments and strings too; all that it has are told."""
    size: i64 = len(text)
    found: i64 = 0
    i: i64 = 0
    while i < size - 2:
        c: u8 = text[i] | 0x20
        if c == 0x69:  # i
            if size - i >= 4 and _is(text, i, b"into"):
                found |= INTO
            elif size - i >= 6 and _is(text, i, b"insert"):
                found |= MODIFYING
        elif c == 0x66:  # f
            if _is(text, i, b"for"):
                found |= FOR
        elif c == 0x75 or c == 0x64:  # u, d
            if size - i >= 6 and (_is(text, i, b"update") or _is(text, i, b"delete")):
                found |= MODIFYING
        elif c == 0x6D:  # m
            if size - i >= 5 and _is(text, i, b"merge"):
                found |= MODIFYING | NEWER
        elif c == 0x6A:  # j
            if size - i >= 4 and _is(text, i, b"json"):
                found |= NEWER
        i += 1
    return found


def wears_out_parsers(text: bytes) -> bool:
    """Tell whether operators would keep PostgreSQL's parser busy: one that is longer than MAX_OPERATOR, or too many.

    Its lexer takes cubic time over a long one.
    """
    size: i64 = len(text)
    run: i64 = 0
    count: i64 = 0
    i: i64 = 0
    while i < size and run <= MAX_OPERATOR:
        if _OPERATORS[text[i]] != 0:
            run += 1
        elif run > 0:
            count += 1
            run = 0
        i += 1
    if count > MAX_OPERATORS:
        return True
    if run <= MAX_OPERATOR:
        return False
    # They may be part of a comment or a string, which is common, and harmless.
    lexer = Lexer(text)
    run = 0
    while True:
        kind = lexer.next()
        if kind in (END, ERROR):
            return kind == ERROR  # PostgreSQL might read on
        if kind != OTHER or text[lexer.start] not in _OPERATOR_CHARACTERS:
            run = 0
        elif lexer.spaced:
            run = 1
        else:
            run += 1
            if run > MAX_OPERATOR:
                return True


def _highest_parameter(text: bytes) -> i64:
    highest: i64 = 0
    if b"$" not in text:
        return highest
    lexer = Lexer(text)
    while True:
        kind = lexer.next()
        if kind in (END, ERROR):
            return highest
        # PostgreSQL refuses numbers above 65535; longer ones are not worth counting on from.
        if kind == PARAM and lexer.end - lexer.start <= 6:
            highest = max(highest, i64(int(text[lexer.start + 1 : lexer.end])))
