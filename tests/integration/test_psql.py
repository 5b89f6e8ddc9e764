"""psql through the proxy prints what psql prints at PostgreSQL itself."""

from __future__ import annotations

import pytest

from tests.integration.conftest import MakeTable
from tests.integration.support import Installation, Login

# Each is run twice, by the proxy and directly; {t} is a table (id integer primary key, name text).
SCRIPTS = {
    "statements over several lines": """
        SELECT id,
               name
          FROM {t}
         ORDER BY id;
        SELECT count(*) FROM {t}; SELECT 'a;b' AS "quoted;name";
    """,
    "an empty statement": ";\n;;\nSELECT 1;\n",
    "comments alone": "-- nothing\n/* nor here */;\nSELECT 2;\n",
    "errors do not end the session": """
        SELECT 1/0;
        SELECT nothing FROM {t};
        SELEC 1;
        SELECT 'still here';
    """,
    "an error inside a transaction": """
        BEGIN;
        INSERT INTO {t} VALUES (50, 'fifty');
        SELECT 1/0;
        SELECT 1;
        COMMIT;
        SELECT count(*) FROM {t};
    """,
    "a unique violation tells its table": "\\set VERBOSITY verbose\nINSERT INTO {t} VALUES (1, 'again');\n",
    "savepoints": """
        BEGIN;
        INSERT INTO {t} VALUES (60, 'sixty');
        SAVEPOINT one;
        INSERT INTO {t} VALUES (1, 'again');
        ROLLBACK TO one;
        INSERT INTO {t} VALUES (61, 'sixty-one') RETURNING *;
        RELEASE one;
        ROLLBACK;
        SELECT count(*) FROM {t};
    """,
    "several statements in one message": """
        SELECT 1 \\; SELECT 2 \\; SELECT 3;
        INSERT INTO {t} VALUES (70, 'seventy') \\; SELECT 1/0 \\; SELECT 4;
        SELECT count(*) FROM {t} WHERE id = 70;
    """,
    "variables from a result": """
        SELECT id AS first, name FROM {t} ORDER BY id LIMIT 1 \\gset
        \\echo :first :name
        SELECT :'name' AS name, :first + 1 AS next;
        \\if :first
        \\echo yes
        \\endif
    """,
    "statements made by a statement": "SELECT format('SELECT %L', name) FROM {t} ORDER BY id \\gexec\n",
    "a cursor in its transaction": """
        BEGIN;
        DECLARE c CURSOR FOR SELECT * FROM {t} ORDER BY id;
        FETCH 2 FROM c;
        MOVE 1 FROM c;
        FETCH ALL FROM c;
        CLOSE c;
        COMMIT;
        FETCH 1 FROM c;
    """,
    "rows by a cursor of psql's own": "\\set FETCH_COUNT 2\nSELECT * FROM {t} ORDER BY id;\n",
    "COPY from the script": """
        COPY {t} FROM STDIN;
80\teighty
81\t\\N
\\.
        SELECT * FROM {t} WHERE id >= 80 ORDER BY id;
        COPY (SELECT * FROM {t} ORDER BY id) TO STDOUT WITH (FORMAT csv, HEADER);
    """,
    "COPY with a bad line": """
        COPY {t} FROM STDIN;
82\teighty-two
not a number\tx
\\.
        SELECT count(*) FROM {t} WHERE id = 82;
    """,
    "\\copy": """
        \\copy {t} TO PSTDOUT
        \\copy {t} FROM PSTDIN
        SELECT count(*) FROM {t};
    """,
    "settings stay with the session": """
        SET datestyle = 'German';
        SELECT DATE '2026-01-31';
        BEGIN;
        SET LOCAL timezone = 'Asia/Tokyo';
        SHOW timezone;
        ROLLBACK;
        SET timezone = 'America/New_York';
        SELECT TIMESTAMPTZ '2026-01-01 00:00:00+00';
        RESET timezone;
        SHOW timezone;
        SET search_path = pg_catalog;
        SHOW search_path;
        SELECT count(*) > 0 FROM pg_class;
        RESET ALL;
        SHOW datestyle;
    """,
    "a setting that is rolled back": """
        BEGIN;
        SET timezone = 'Asia/Tokyo';
        ROLLBACK;
        SHOW timezone;
        SET timezone = 'no such zone';
        SHOW timezone;
    """,
    "prepared in SQL": """
        PREPARE p (integer) AS SELECT name FROM {t} WHERE id = $1;
        EXECUTE p (1);
        EXECUTE p (2);
        PREPARE p AS SELECT 1;
        DEALLOCATE p;
        EXECUTE p (1);
    """,
    "the extended protocol": """
        SELECT $1::integer + $2::integer AS sum \\bind 20 22 \\g
        SELECT name FROM {t} WHERE id = $1 \\parse named
        \\bind_named named 1 \\g
        \\bind_named named 2 \\g
        \\close_prepared named
        \\bind_named named 1 \\g
        SELECT $1 \\bind \\g
    """,
    "a pipeline": """
        \\startpipeline
        SELECT $1::integer AS one \\bind 1 \\sendpipeline
        INSERT INTO {t} VALUES ($1, $2) RETURNING id \\bind 90 ninety \\sendpipeline
        \\syncpipeline
        SELECT 1/$1::integer \\bind 0 \\sendpipeline
        SELECT $1::text \\bind skipped \\sendpipeline
        \\syncpipeline
        SELECT $1::text AS three \\bind three \\sendpipeline
        \\endpipeline
        SELECT count(*) FROM {t} WHERE id = 90;
    """,
    "a pipeline with flushes": """
        \\startpipeline
        SELECT $1::integer AS one \\bind 1 \\sendpipeline
        \\flushrequest
        \\getresults
        SELECT $1::integer AS two \\bind 2 \\sendpipeline
        \\endpipeline
    """,
    "timing, expanded and a watchful prompt": "\\x on\nSELECT * FROM {t} ORDER BY id LIMIT 2;\n\\x off\n",
    "wide and odd texts": "SELECT 'Grüße, 世界, 🐘' AS \"ключ\", E'tab\\there', repeat('ä', 9);\n",
    "descriptions": "\\d {t}\n\\dt {t}\n\\d no_such_table\n",
    "what a statement would return": "SELECT id, name, now() FROM {t} \\gdesc\n",
}


@pytest.mark.parametrize("script", SCRIPTS.values(), ids=SCRIPTS)
def test_prints_what_psql_prints_at_the_server(
    script: str, writer: Login, installation: Installation, make_table: MakeTable
) -> None:
    printed = []
    table = make_table("id integer PRIMARY KEY, name text", "VALUES (1, 'one'), (2, 'two'), (3, 'three')")
    for login in (installation.role("app_rw"), writer):
        done = login.psql(script.format(t=table))
        printed.append((done.stdout, done.stderr, done.returncode))
        installation.execute(f"DELETE FROM {table} WHERE id > 3")
        installation.replicated()
    direct, through = printed
    assert through == direct
    assert direct[0] or direct[1]


def test_stops_at_the_first_error_when_told_to(writer: Login) -> None:
    done = writer.psql("SELECT 1/0;\nSELECT 'not reached';\n", "-v", "ON_ERROR_STOP=1")
    assert done.returncode == 3
    assert "division by zero" in done.stderr
    assert "not reached" not in done.stdout


def test_rolls_back_a_script_that_fails_as_a_whole(writer: Login, make_table: MakeTable) -> None:
    table = make_table("id integer")
    done = writer.psql(f"INSERT INTO {table} VALUES (1);\nSELECT 1/0;\n", "-1", "-v", "ON_ERROR_STOP=1")
    assert done.returncode == 3
    assert writer.psql(f"SELECT count(*) FROM {table}", "-At").stdout == "0\n"


def test_lists_what_psql_lists(writer: Login, make_table: MakeTable) -> None:
    table = make_table("id integer")
    listed = writer.psql("\\d\n\\dn\n\\du\n\\l\n\\df pg_catalog.now\n\\conninfo\n", "-v", "ON_ERROR_STOP=1")
    assert listed.returncode == 0, listed.stderr
    assert table in listed.stdout
    assert "timestamp with time zone" in listed.stdout


def test_notices_reach_the_client(admin: Login) -> None:
    done = admin.psql("DO $$ BEGIN RAISE NOTICE 'seen by %', 'the client'; END $$;\n")
    assert done.stderr == "NOTICE:  seen by the client\n"


def test_tables_that_an_admin_makes_are_open_to_writers_and_readers(
    admin: Login, writer: Login, reader: Login, installation: Installation, request: pytest.FixtureRequest
) -> None:
    request.addfinalizer(lambda: installation.execute("DROP TABLE IF EXISTS made_by_admin"))
    made = admin.psql("CREATE TABLE made_by_admin (id integer);\n\\dt made_by_admin\n")
    assert "made_by_admin" in made.stdout, made.stderr
    assert writer.psql("INSERT INTO made_by_admin VALUES (1) RETURNING id", "-At").stdout == "1\nINSERT 0 1\n"
    installation.replicated()
    assert reader.psql("SELECT id FROM made_by_admin", "-At").stdout == "1\n"


def test_a_temporary_table_lives_as_long_as_its_session(writer: Login) -> None:
    script = "CREATE TEMPORARY TABLE mine (id integer);\nINSERT INTO mine VALUES (7);\nSELECT id FROM mine;\n"
    assert writer.psql(script, "-At").stdout == "CREATE TABLE\nINSERT 0 1\n7\n"
    assert 'relation "mine" does not exist' in writer.psql("SELECT id FROM mine;\n").stderr
