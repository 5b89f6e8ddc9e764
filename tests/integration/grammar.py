"""Random statements over the scratch database of ground.py: reads and writes mixed, most of them well formed.

Each part of a FROM clause shows the columns id (an integer) and txt (text) under an alias, so that expressions fit
wherever they come to stand.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final, TypeAlias

from hypothesis import strategies as st

Draw: TypeAlias = Callable[[st.SearchStrategy[str]], str]

_LITERALS: Final = ("0", "1", "2", "7", "-3", "NULL::int")
_STRINGS: Final = ("'x'", "'it''s'", "$$y$$", "E'a\\nb'", "N'z'", "''")
# What writes, and what doesn't, mixed: a good half of all statements should be reads.
_CALLS: Final = (
    "pure({i})",
    "PURE({i})",
    "ground.pure({i})",
    "peek({i})",
    '"peek"({i})',
    "abs({i})",
    "mod({i}, 5)",
    "coalesce({i}, {i})",
    "greatest({i}, {i}, 3)",
    "nullif({i}, {i})",
    "length({t})",
    "position('x' IN {t})",
    "extract(year FROM now())::int",
    "(random() * 0)::int",
    "ascii(gen_random_uuid()::text)",
    "CASE WHEN {b} THEN {i} ELSE {i} END",
    "CASE {i} WHEN 1 THEN {i} END",
    "(ARRAY[{i}, {i}])[1]",
    "(SELECT max(id) FROM book)",
    "(SELECT total(id) FROM book WHERE id > {i})",
    "(SELECT count(*)::int FROM plain_books)",
    "{i} + {i}",
    "({i}) OPERATOR(pg_catalog.-) {i}",
    "({i})::positive",
    "CAST({i} AS bigint)::int",
    "json_value('[1]', '$[0]' RETURNING int)",
    "jsonb_array_length('[1, 2]')",
    "pg_backend_pid() * 0",
    "cardinality(ARRAY(SELECT {i}))",
)
_WRITING_CALLS: Final = (
    "record_it({t})",
    "Ground.Record_It({t})",
    'U&"record\\005fit"({t})',
    "advance()",
    '"Advance"()',
    "nextval('counter')::int",
    "NEXTVAL('counter')::int",
    "pg_catalog.\"nextval\"('counter')::int",
    "setval('counter', 5)::int",
    "length(current_setting(1))",
    "pg_advisory_note(1)",
    "abs({t})",
    "keep({i}, {i})",
    "(SELECT collect({i}) FROM book)",
    "lo_create(0)::int",
    "length(pg_current_xact_id()::text)",
    "length(set_config('ground.x', {t}, true))",
    "(SELECT max(r) FROM rows_of(2) r)",
    "to_ticket({i}) IS NULL",
)
_UNSEEN_CALLS: Final = ("({i} ## 1)", "(({i})::ticket).n", "({i})::stamped", "(SELECT max(id) FROM numbered)")
_TEXTS: Final = (
    "upper({t})",
    "{t} || {t}",
    "format('%s', {i})",
    "({i})::text",
    "to_char(now(), 'YYYY')",
    "current_setting('work_mem')",
    "replace({t}, 'x', {t})",
    "trim(BOTH 'x' FROM {t})",
    "(SELECT string_agg(name, ',') FROM author)",
    "(SELECT (a).label FROM author a LIMIT 1)",
    "json_serialize(json_array({i}, {t}))",
    "row_to_json(ROW({i}, {t}))::text",
    "version()",
    "current_user::text",
)
_TESTS: Final = (
    "{i} > {i}",
    "{i} IN ({i}, {i})",
    "{t} LIKE '%x%'",
    "{b} AND {b}",
    "NOT ({b})",
    "EXISTS (SELECT 1 FROM book WHERE id = {i})",
    "{i} IS NULL",
    "{i} = ANY (ARRAY[{i}, 2])",
    "{i} BETWEEN 0 AND {i}",
    "{i} IN (SELECT id FROM book)",
)
_SOURCES: Final = (
    "(SELECT id, name FROM author) AS {a}(id, txt)",
    "book AS {a}(id, author, txt, price)",
    "author AS {a}(id, txt)",
    "(TABLE author) AS {a}(id, txt)",
    "author AS {a}(id, txt) TABLESAMPLE bernoulli (50)",
    "(VALUES ({i}, {t}), (2, 'y')) AS {a}(id, txt)",
    "(SELECT id, title FROM plain_books) AS {a}(id, txt)",
    "LATERAL (SELECT {i}, {t}) AS {a}(id, txt)",
    "(SELECT g, {t} FROM generate_series(1, 3) g) AS {a}(id, txt)",
    "ROWS FROM (generate_series(1, 2), unnest(ARRAY['p', 'q'])) AS {a}(id, txt)",
    "json_table('[1, 2]', '$[*]' COLUMNS (id int PATH '$', txt text PATH '$')) AS {a}",
    "(SELECT id, (a).label FROM author a) AS {a}(id, txt)",
    "({q}) AS {a}(id, txt)",
)
_WRITING_SOURCES: Final = (
    "(SELECT r, 'z' FROM rows_of(2) r) AS {a}(id, txt)",
    "LATERAL record_it('s') WITH ORDINALITY AS {a}(id, n, txt)",
    "(SELECT id, name FROM author FOR UPDATE) AS {a}(id, txt)",
    "(SELECT id, shout(a) FROM author a) AS {a}(id, txt)",
)
_UNSEEN_SOURCES: Final = (
    "(SELECT id, name FROM numbered) AS {a}(id, txt)",
    "(SELECT id, (a).shout FROM author a) AS {a}(id, txt)",
    "(SELECT id, a.shout FROM author a) AS {a}(id, txt)",
)
_WRITES: Final = (
    "INSERT INTO ledger (note) {Q}",
    "INSERT INTO book (id, title) VALUES (100, {t}) ON CONFLICT (id) DO UPDATE SET title = {t} RETURNING id, title",
    "UPDATE book SET title = {t} WHERE id = {i} RETURNING id, title",
    "DELETE FROM ledger WHERE id > {i} RETURNING id, note",
    "MERGE INTO book b USING author a ON b.author_id = a.id WHEN MATCHED AND {i} = 1 THEN UPDATE SET title = 'm'"
    " RETURNING b.id, b.title",
)
_STATEMENTS: Final = (
    "TABLE book",
    "SHOW work_mem",
    "VALUES ({i}, {t})",
    "DECLARE c CURSOR FOR {q}",
    "EXPLAIN {q}",
    "EXPLAIN (COSTS off) {q}",
    "EXPLAIN ANALYZE {q}",
    "COPY ({q}) TO STDOUT",
    "COPY book TO STDOUT (FORMAT csv)",
    "{q}; {q}",
    "SELECT * FROM book; {q}",
)
_WRITING_STATEMENTS: Final = (
    "EXPLAIN ANALYZE {w}",
    "COPY ({w}) TO STDOUT",
    "SELECT 1; {w}",
    "{w}",
    "SELECT {i} AS a, {t} AS b INTO made",
    "CREATE TABLE made AS {q}",
    "CREATE TEMP TABLE made AS {q}",
    "CALL fill()",
    "DO $$BEGIN PERFORM ground.advance(); END$$",
    "LOCK TABLE book",
    "REFRESH MATERIALIZED VIEW prices",
    "NOTIFY here",
    "TRUNCATE ledger",
    "CREATE INDEX ON book (title)",
    "DROP VIEW plain_books CASCADE; ROLLBACK",
    "BEGIN; {w}; ROLLBACK",
)


class _Writer:
    """Fills templates: {i} {t} {b} are an integer, a text and a condition, {q} a query, {w} a write, {a} an alias."""

    def __init__(self, draw: Draw) -> None:
        self._draw = draw
        self._aliases = 0

    def statement(self) -> str:
        kind = self._one("query", "query", "query", "reading", "writing")
        if kind == "query":
            return self._query([], 3)
        return self._fill(self._of(_STATEMENTS if kind == "reading" else _WRITING_STATEMENTS), [], 3)

    def _one(self, *choices: str) -> str:
        return self._draw(st.sampled_from(choices))

    def _of(self, choices: tuple[str, ...]) -> str:
        return self._draw(st.sampled_from(choices))

    def _mixed(
        self, harmless: tuple[str, ...], writing: tuple[str, ...], unseen: tuple[str, ...] = ()
    ) -> str:
        """Choose mostly what is harmless: a statement has many of these choices."""
        kind = self._of(("h",) * 40 + ("w", "u"))
        return self._of(writing if kind == "w" else unseen if kind == "u" and unseen else harmless)

    def _fill(self, template: str, scope: list[str], depth: int, alias: str = "") -> str:
        out: list[str] = []
        rest = template
        while "{" in rest:
            before, _, rest = rest.partition("{")
            kind, _, rest = rest.partition("}")
            out.append(before)
            out.append(alias if kind == "a" else self._part(kind, scope, depth - 1))
        return "".join([*out, rest])

    def _part(self, kind: str, scope: list[str], depth: int) -> str:
        if kind == "q":
            return self._query(scope, depth)
        if kind == "Q":
            return f"SELECT txt FROM ({self._query([], depth)}) AS q(id, txt)"
        if kind == "w":
            return self._fill(self._of(_WRITES), scope, depth)
        if kind == "i":
            return self._integer(scope, depth)
        return self._text(scope, depth) if kind == "t" else self._condition(scope, depth)

    def _integer(self, scope: list[str], depth: int) -> str:
        if depth <= 0 or self._one("leaf", "call") == "leaf":
            return f"{self._of(tuple(scope))}.id" if scope else self._of(_LITERALS)
        return self._fill(self._mixed(_CALLS, _WRITING_CALLS, _UNSEEN_CALLS), scope, depth)

    def _text(self, scope: list[str], depth: int) -> str:
        if depth <= 0 or self._one("leaf", "call") == "leaf":
            return f"{self._of(tuple(scope))}.txt" if scope else self._of(_STRINGS)
        return self._fill(self._of(_TEXTS), scope, depth)

    def _condition(self, scope: list[str], depth: int) -> str:
        return "true" if depth <= 0 else self._fill(self._of(_TESTS), scope, depth)

    def _query(self, outer: list[str], depth: int) -> str:
        """Return a query of two columns, an integer and a text."""
        if depth <= 0:
            return "SELECT 1, 'x'"
        shape = self._one("plain", "plain", "plain", "group", "union", "cte", "values")
        if shape == "values":
            return self._fill("VALUES ({i}, {t})", outer, depth)
        if shape == "union":
            word = self._one("UNION", "UNION ALL", "EXCEPT", "INTERSECT")
            return f"({self._query(outer, depth - 1)}) {word} ({self._query(outer, depth - 1)})"
        if shape == "cte":
            return self._with(outer, depth)
        text, scope = self._from(outer, depth)
        where = f" WHERE {self._condition(scope, depth - 1)}" if self._one("w", "") else ""
        if shape == "group":
            name = scope[0]
            having = self._one("", f" HAVING count(*) > {self._integer([], depth - 1)}")
            return f"SELECT {name}.id, max({name}.txt) FROM {text}{where} GROUP BY {name}.id{having}"
        columns = f"{self._integer(scope, depth)}, {self._text(scope, depth)}"
        end = self._one("", "", " ORDER BY 1", " LIMIT 2", " ORDER BY 2 OFFSET 1", " FETCH FIRST ROW ONLY")
        lock = self._of(("",) * 30 + (" FOR UPDATE", " FOR KEY SHARE"))
        distinct = self._one("", "", "DISTINCT ") if not lock else ""
        return f"SELECT {distinct}{columns} FROM {text}{where}{end}{lock}"

    def _with(self, outer: list[str], depth: int) -> str:
        self._aliases += 1
        name = f"c{self._aliases}"
        writing = self._of(("r",) * 12 + ("w",))
        body = self._part("w", [], depth - 1) if writing == "w" else self._query([], depth - 1)
        kept = self._one("", "MATERIALIZED ", "NOT MATERIALIZED ") if writing == "r" else ""
        text, _ = self._from(outer, depth - 1)
        return (
            f"WITH {name}(id, txt) AS {kept}({body}) SELECT {name}.id, {name}.txt FROM {name}, {text}"
            if self._one("join", "") or writing == "w"
            else f"WITH {name}(id, txt) AS {kept}({body}) TABLE {name}"
        )

    def _from(self, outer: list[str], depth: int) -> tuple[str, list[str]]:
        """Return what stands behind FROM, and the aliases that may be used there."""
        scope: list[str] = []
        parts: list[str] = []
        for _ in range(1 if self._one("one", "one", "two") == "one" else 2):
            self._aliases += 1
            alias = f"s{self._aliases}"
            source = self._mixed(_SOURCES, _WRITING_SOURCES, _UNSEEN_SOURCES)
            # What is LATERAL sees what stands before it, and nothing else is allowed to.
            seen = [*outer, *scope] if source.startswith("LATERAL") else list(outer)
            parts.append(self._fill(source, seen, depth - 1, alias))
            scope.append(alias)
        join = self._one(", ", " CROSS JOIN ", " JOIN {2} ON {0}.id = {1}.id")
        if len(parts) == 1:
            return parts[0], [*scope, *outer]
        if "{2}" in join:
            return parts[0] + join.replace("{2}", parts[1]).replace("{0}", scope[0]).replace(
                "{1}", scope[1]
            ), [
                *scope,
                *outer,
            ]
        return parts[0] + join + parts[1], [*scope, *outer]


@st.composite
def statements(draw: Draw) -> str:
    """Give random statements."""
    return _Writer(draw).statement()
