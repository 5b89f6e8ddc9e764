"""SQL-level PREPARE, EXECUTE and DEALLOCATE: where in a text the names of prepared statements stand.

A client's names are its own; servers know a statement by another name. So the names in a text are exchanged before
it is sent, and put back in what the server says about it. PostgreSQL's parser tells that a text has such names, but not
where; the lexer finds them. They can stand in

    PREPARE name …    EXECUTE name …    EXPLAIN … EXECUTE name …    DEALLOCATE [PREPARE] name | ALL
    CREATE TABLE … AS EXECUTE name …, also behind EXPLAIN
"""

from __future__ import annotations

from typing import Final, final

from mypy_extensions import i64

from proxy.query.lexer import COMMENT, END, ERROR, OTHER, QUOTED, STRING, WORD, Lexer

PREPARE: Final = 1
EXECUTE: Final = 2
DEALLOCATE: Final = 3
DEALLOCATE_ALL: Final = 4

_MAX_NAME: Final = 63  # NAMEDATALEN - 1

_EXPLAINING: Final = frozenset({"analyze", "analyse", "verbose", ")"})


@final
class Site:
    """A name at sql[start:end], in the statement numbered `statement` (from 0), which has bounds of its own."""

    def __init__(self, verb: i64, name: bytes, start: i64, end: i64, statement: i64) -> None:
        self.verb: i64 = verb
        self.name = name
        self.start: i64 = start
        self.end: i64 = end
        self.statement: i64 = statement
        self.statement_start: i64 = 0
        self.statement_end: i64 = 0


def find_names(sql: bytes, statements: i64) -> list[Site] | None:
    """Return where names stand in `sql`, which the parser takes for so many statements; None where it's unclear."""
    found: list[Site] = []
    count: i64 = 0
    lexer = Lexer(sql)
    while True:
        tokens: list[tuple[int, str, int, int]] = []
        depth: i64 = 0
        kind: i64 = lexer.next()
        while kind != END and kind != ERROR:
            word = lexer.word() if kind in (WORD, OTHER) else ""
            if word == ";" and depth == 0:
                break
            depth += 1 if word == "(" else -1 if word == ")" else 0
            # Of what stands in parentheses nothing matters.
            if kind != COMMENT and depth == 0:
                tokens.append((int(kind), word, int(lexer.start), int(lexer.end)))
            kind = lexer.next()
        if kind == ERROR:
            return None
        if tokens:
            verb, at = _place(tokens)
            if verb:
                site = _site(sql, verb, tokens[at], count)
                if site is None:
                    return None
                site.statement_start = tokens[0][2]
                site.statement_end = lexer.start
                found.append(site)
            count += 1
        if kind == END:
            return found if count == statements else None


def _place(tokens: list[tuple[int, str, int, int]]) -> tuple[int, int]:
    """Return which verb a statement has, 0 for none, and the place of its name."""
    words = [word for _, word, _, _ in tokens]
    first, last = words[0], len(words) - 1
    at = 0
    if first == "explain":
        while at < last and (at == 0 or words[at] in _EXPLAINING):
            at += 1
        first = words[at]
    if at == last:
        return 0, 0
    if first == "prepare":
        transaction = words[1] == "transaction" and last >= 2 and tokens[2][0] == STRING
        return (0, 0) if transaction else (PREPARE, 1)
    if first == "execute":
        return EXECUTE, at + 1
    if first == "deallocate":
        place = 2 if words[1] == "prepare" and last >= 2 else 1
        return (DEALLOCATE_ALL if words[place] == "all" else DEALLOCATE), place
    if first == "create" and "as" in words:
        place = words.index("as") + 1
        if place < last and words[place] == "execute":
            return EXECUTE, place + 1
    return 0, 0


def _site(sql: bytes, verb: i64, token: tuple[int, str, int, int], statement: i64) -> Site | None:
    kind, _, start, end = token
    text = sql[start:end]
    if kind == WORD:
        # Unquoted names fold in ASCII alone, as in any multi-byte encoding.
        name = text.lower()
    elif kind == QUOTED and text[:1] == b'"':
        name = text[1:-1].replace(b'""', b'"')
    else:
        return None
    if len(name) > _MAX_NAME:
        name = name[:_MAX_NAME].decode("utf-8", "ignore").encode()
    return Site(verb, name, start, end, statement)
