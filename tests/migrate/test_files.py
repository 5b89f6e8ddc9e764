"""What counts as a migration, and how new ones are made."""

from __future__ import annotations

from pathlib import Path

import pytest

from proxy import migrate
from proxy.migrate import MigrationError
from proxy.migrate.statements import statements
from proxy.resources import sql_directory


def write(directory: Path, *names: str, text: str = "SELECT 1;") -> None:
    for name in names:
        for file in (directory / f"{name}.sql", directory / f"{name}.rollback.sql"):
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(text)


@pytest.mark.parametrize(
    ("files", "message"),
    [
        (["core/first.sql"], "is called BRANCH/NNNN_name.sql"),
        (["core/0001_First.sql"], "is called BRANCH/NNNN_name.sql"),
        (["core/0001_first.sql"], r"its rollback, 0001_first\.rollback\.sql, is missing"),
        (["base/0001_first.sql"], "a branch has a name of"),
        (
            ["core/0001_a.sql", "core/0001_a.rollback.sql", "core/0001_b.sql", "core/0001_b.rollback.sql"],
            "another migration core_0001",
        ),
        (["notes/0001_a.sql", "notes/0001_a.rollback.sql"], "needs a first line: -- depends: core_NNNN"),
    ],
)
def test_rejects_files_that_are_no_migrations(tmp_path: Path, files: list[str], message: str) -> None:
    for name in files:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("SELECT 1;")
    with pytest.raises(MigrationError, match=message):
        migrate.Migrations([tmp_path])


def test_rejects_a_branch_in_two_directories(tmp_path: Path) -> None:
    write(tmp_path, "core/0001_mine")
    with pytest.raises(MigrationError, match="holds the branch core already"):
        migrate.Migrations([sql_directory(), tmp_path])
    with pytest.raises(MigrationError, match="holds the branch core already"):
        migrate.create("mine", "core", directories=[sql_directory(), tmp_path])


def test_the_first_line_names_what_a_migration_depends_on(tmp_path: Path) -> None:
    write(tmp_path, "core/0001_a", "core/0002_b")
    write(tmp_path, "some_notes/0001_a", text="-- depends: core_0001\nSELECT 1;")
    write(tmp_path, "other/0001_a", text="-- depends: core_0002, some_notes_0001\nSELECT 1;")
    graph = migrate.Migrations([tmp_path])
    assert graph.needs["other_0001"] == ("core_0002", "some_notes_0001")
    order = [step.revision.revision for step in graph.upgrade(["other"], [])]
    assert order[0] == "core_0001" and order[-1] == "other_0001" and len(order) == 4
    write(tmp_path, "third/0001_a", text="-- depends: core_0009\nSELECT 1;")
    with pytest.raises(MigrationError, match="depends on core_0009, which doesn't exist"):
        migrate.Migrations([tmp_path])


@pytest.mark.parametrize(
    ("name", "branch", "message"),
    [(" !?", "core", "letters or digits"), ("x", "../core", "a branch has"), ("x", "head", "a branch has")],
)
def test_rejects_names_that_make_no_migration(tmp_path: Path, name: str, branch: str, message: str) -> None:
    with pytest.raises(MigrationError, match=message):
        migrate.create(name, branch, directories=[tmp_path])
    assert list(tmp_path.iterdir()) == []


def test_a_template_is_sql_that_does_nothing_yet(tmp_path: Path) -> None:
    first, undo = migrate.create("Two\nlines; DROP", "notes", directories=[sql_directory(), tmp_path / "new"])
    assert first.name == "0001_two_lines_drop.sql"
    last = migrate.Migrations().needs
    assert first.read_text().startswith(
        f"-- depends: {max(name for name in last if 'core' in name)}\n-- Two lines"
    )
    for file in (first, undo):
        assert [each.text for each in statements(file)] == ["SET LOCAL ROLE sluice_owner"]
    again, _ = migrate.create("more", "notes", directories=[sql_directory(), tmp_path / "new"])
    assert again.name == "0002_more.sql" and "depends" not in again.read_text()
    assert "notes_0002" in migrate.Migrations([sql_directory(), tmp_path / "new"]).migrations


def test_the_installed_sql_is_not_added_to(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    installed = tmp_path / "_sql"
    installed.mkdir()
    monkeypatch.setattr("proxy.migrate.files.sql_directory", lambda: installed)
    with pytest.raises(MigrationError, match="name a --directory of your own"):
        migrate.create("x", "core")


def test_what_a_template_offers_is_sql(tmp_path: Path) -> None:
    made = migrate.create("first", "notes", directories=[sql_directory(), tmp_path])
    for file in made:
        text = file.read_text()
        offered = text[text.index("\n\n") :].replace("\n-- ", "\n").replace("All of this file", "-- ")
        file.write_text(
            "\n".join(line for line in offered.splitlines() if not line.startswith(("-- ", "schema. ")))
        )
    kinds = [each.text.split()[:2] for each in statements(made[0])]
    assert kinds == [
        ["CREATE", "SCHEMA"],
        ["GRANT", "USAGE"],
        ["SET", "LOCAL"],
        ["CREATE", "TABLE"],
        ["GRANT", "SELECT,"],
        ["ALTER", "TABLE"],
        ["CREATE", "POLICY"],
    ]
    assert [each.destroys for each in statements(made[1])] == ["", "DROP TABLE"]
