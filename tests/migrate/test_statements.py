"""Which statements of a migration destroy data."""

from __future__ import annotations

from pathlib import Path

import pytest

from proxy import migrate
from proxy.migrate.statements import statements


@pytest.mark.parametrize(
    ("sql", "destroys"),
    [
        ("DROP TABLE a", "DROP TABLE"),
        ("DROP TABLE IF EXISTS a, b CASCADE", "DROP TABLE"),
        ("DROP SCHEMA a", "DROP SCHEMA"),
        ("DROP SEQUENCE a", "DROP SEQUENCE"),
        ("DROP TYPE a CASCADE", "DROP … CASCADE"),
        ("DROP OWNED BY a", "DROP OWNED"),
        ("ALTER TABLE a ADD b int, DROP COLUMN c", "DROP COLUMN"),
        ("ALTER TYPE a DROP ATTRIBUTE b", "DROP COLUMN"),
        ("ALTER TABLE a ALTER b TYPE int USING 0", "ALTER COLUMN TYPE"),
        ("TRUNCATE a", "TRUNCATE"),
        ("DELETE FROM a", "DELETE without WHERE"),
        ("UPDATE a SET b = 1", "UPDATE without WHERE"),
        ("WITH gone AS (DELETE FROM a RETURNING *) INSERT INTO b SELECT * FROM gone", "DELETE without WHERE"),
        ("MERGE INTO a USING b ON a.i = b.i WHEN MATCHED THEN DELETE", "MERGE … DELETE"),
        ("DO $$BEGIN EXECUTE 'drop  table a'; END$$", "DROP TABLE in a DO block"),
        ("DO LANGUAGE plpgsql $$BEGIN TRUNCATE a; END$$", "TRUNCATE in a DO block"),
        ("DELETE FROM a WHERE b", ""),
        ("UPDATE a SET b = 1 WHERE c", ""),
        ("DROP VIEW a", ""),
        ("DROP INDEX a", ""),
        ("DROP FUNCTION a()", ""),
        ("ALTER TABLE a DROP CONSTRAINT b", ""),
        ("ALTER TABLE a ALTER b DROP DEFAULT", ""),
        ("MERGE INTO a USING b ON a.i = b.i WHEN MATCHED THEN UPDATE SET i = 1", ""),
        ("CREATE TABLE a (b text DEFAULT 'DROP TABLE c')", ""),
        ("CREATE FUNCTION a() RETURNS void LANGUAGE sql AS 'DELETE FROM b'", ""),
        ("DO $$BEGIN PERFORM 1; END$$", ""),
        ("DO $$BEGIN DROP TYPE a, b CASCADE; END$$", "DROP TYPE A, B CASCADE in a DO block"),
        ("DO $$BEGIN DELETE FROM a; END$$", "DELETE FROM in a DO block"),
        ("DO $$BEGIN GRANT TRUNCATE, DELETE ON a TO b; REVOKE TRUNCATE ON a FROM b; END$$", ""),
        ("DO $$BEGIN ALTER TABLE a ADD FOREIGN KEY (b) REFERENCES c ON DELETE CASCADE; END$$", ""),
    ],
)
def test_what_destroys_data(tmp_path: Path, sql: str, destroys: str) -> None:
    file = tmp_path / "x.sql"
    file.write_text(f"SELECT 'é';\n-- a comment\n{sql};\n")
    _, found = statements(file)
    assert (found.text, found.line, found.destroys) == (sql, 3, destroys)


def test_nothing_bundled_destroys_data_on_its_way_up() -> None:
    for migration in migrate.Migrations().migrations.values():
        assert [each for each in statements(migration.path) if each.destroys] == []
