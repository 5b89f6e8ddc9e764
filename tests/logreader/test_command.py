"""`pgsluice logs --file`: no database is needed."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from proxy.cli import app
from tests.logreader.records import line


@pytest.fixture
def log(tmp_path: Path) -> Path:
    path = tmp_path / "access.log"
    texts = [line(statement=f"SELECT {n}", duration_us=n * 100_000) for n in range(60)]
    path.write_text("".join(texts) + line(event="denied", sqlstate="42501", code="INSUFFICIENT_PERMISSIONS"))
    return path


def run(*arguments: str, stdin: str | None = None) -> Result:
    return CliRunner().invoke(app, ["logs", *arguments], input=stdin, env={"COLUMNS": "200"})


def test_the_newest_fifty_are_shown(log: Path) -> None:
    shown = run("--file", str(log))
    assert shown.exit_code == 0, shown.output
    lines = shown.stdout.splitlines()
    assert len(lines) == 51 and lines[0].startswith("at (UTC)")
    assert "SELECT 11" in lines[1]


def test_options_filter(log: Path) -> None:
    shown = run("--file", str(log), "--slower", "5s", "--json", "-n", "3")
    assert [json.loads(each)["statement"] for each in shown.stdout.splitlines()] == [
        "SELECT 57",
        "SELECT 58",
        "SELECT 59",
    ]
    shown = run("--file", str(log), "--sqlstate", "42", "--json", "--code", "insufficient_permissions")
    assert [json.loads(each)["event"] for each in shown.stdout.splitlines()] == ["denied"]
    assert run("--file", str(log), "--user", "nobody").stdout == ""


def test_standard_input_is_read(log: Path) -> None:
    for more in ((), ("--follow",)):
        shown = run("--file", "-", "--event", "denied", "--json", *more, stdin=log.read_text())
        assert [json.loads(each)["event"] for each in shown.stdout.splitlines()] == ["denied"]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--event", "x"], "--event: one of "),
        (["--since", "soon"], "--since: how long ago"),
        (["--follow", "--until", "1m"], "--until: what is followed has no end"),
    ],
)
def test_what_makes_no_sense_is_told(log: Path, arguments: list[str], said: str) -> None:
    shown = run("--file", str(log), *arguments)
    assert (shown.exit_code, shown.stdout) == (1, "")
    assert shown.stderr.startswith(f"pgsluice: {said}")


@pytest.mark.parametrize(
    ("sinks", "where"),
    [
        ("stdout", "what the proxy's standard output goes to"),
        ("'file:/var/log/access.log'", "/var/log/access.log"),
    ],
)
def test_a_configuration_without_a_table_points_at_the_file(tmp_path: Path, sinks: str, where: str) -> None:
    config = tmp_path / "pgsluice.yaml"
    config.write_text(
        f"databases: {{app: {{control: {{user: sluice_control}}}}}}\naccess_log: {{sinks: [{sinks}]}}\n"
    )
    shown = run("-c", str(config))
    assert (shown.exit_code, shown.stdout) == (1, "")
    assert f"keeps no access log in a table (access_log.sinks): read {where} with --file" in shown.stderr


@pytest.fixture
def following(log: Path) -> Iterator[subprocess.Popen[str]]:
    process = subprocess.Popen(
        [sys.executable, "-m", "proxy", "logs", "--file", str(log), "-f", "--json", "-n", "1"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONUNBUFFERED": "1"},
    )
    with process:
        yield process
        process.kill()


def test_a_file_is_followed_until_it_is_interrupted(log: Path, following: subprocess.Popen[str]) -> None:
    assert following.stdout is not None
    assert json.loads(following.stdout.readline())["event"] == "denied"
    with log.open("a") as writer:
        writer.write(line(statement="SELECT 'new'"))
    assert json.loads(following.stdout.readline())["statement"] == "SELECT 'new'"
    following.send_signal(signal.SIGINT)
    assert following.communicate(timeout=20) == ("", "")
    assert following.returncode == 0


def test_a_reader_that_goes_away_is_no_error(log: Path, following: subprocess.Popen[str]) -> None:
    assert following.stdout is not None and following.stderr is not None
    following.stdout.readline()
    following.stdout.close()
    with log.open("a") as writer:
        writer.write(line(statement="SELECT 'new'"))
    assert following.stderr.read() == ""
    assert following.wait(20) == 0
