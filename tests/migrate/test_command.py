"""What the command says without a server: its help, and what is wrong with its arguments."""

from __future__ import annotations

import io
import os
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from proxy.cli import app
from proxy.migrate import Progress


def run(*arguments: str) -> Result:
    return CliRunner().invoke(app, ["migrate", *arguments], env={"COLUMNS": "200"})


@pytest.mark.parametrize("command", ["up", "status", "validate", "rollback", "create"])
def test_help_has_examples(command: str) -> None:
    shown = run(command, "--help").stdout.splitlines()
    start = next(number for number, line in enumerate(shown) if "Example" in line)
    assert shown[start + 1].strip().startswith(f"pgsluice migrate {command} ")


def test_a_directory_that_is_not_there_is_told(tmp_path: Path) -> None:
    result = run("up", "--directory", str(tmp_path / "nothing"))
    assert (result.exit_code, result.stderr) == (1, f"pgsluice: {tmp_path / 'nothing'} is no directory\n")


def test_create_asks_for_a_branch_where_there_are_none_or_several(tmp_path: Path) -> None:
    at = ("--directory", str(tmp_path / "own"))
    result = run("create", "first", *at)
    assert result.exit_code == 1 and "say by --branch which branch" in result.stderr
    for branch in ("notes", "bills"):
        assert run("create", "first", "--branch", branch, *at).exit_code == 0
    result = run("create", "second", *at)
    assert result.exit_code == 1 and "there are bills, notes" in result.stderr
    result = run("create", "second", "--branch", "core", *at)
    assert result.exit_code == 1 and "the branch core is bundled" in result.stderr


def test_a_terminal_shows_the_statement_at_work(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shutil.get_terminal_size", lambda *_, **__: os.terminal_size((20, 10)))
    terminal, said = io.StringIO(), list[str]()
    progress = Progress(said.append, terminal)
    progress.at_work("core_0001: statement\n  1 of 2: SELECT 1")
    assert terminal.getvalue() == "\r\x1b[2Kcore_0001: statemen"
    progress.say("core_0001 done")
    assert terminal.getvalue().endswith("\r\x1b[2K")
    assert said == ["core_0001 done"]
