from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer
import yaml
from typer.testing import CliRunner, Result

import proxy
from proxy.auth.key import Key, parse_key
from proxy.auth.keyfile import read_keys
from proxy.cli import app
from tests.certificates import Authority

SOUND = "databases: {app: {control: {user: sluice_control}}}\n"
WITHOUT_OUR_SQL = """\
databases: {app: {}}
identity: {mode: off}
auth: {keys: file, keys_file: keys.yaml}
access_log: {sinks: [stdout]}
"""


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Run in an empty directory, with no variables that configure anything."""
    monkeypatch.chdir(tmp_path)
    for name in ("DB_NAME", "DB_USER", "KEYS_FILE", "PGSLUICE_ADMIN_DSN"):
        monkeypatch.delenv(name, raising=False)


def run(*arguments: str, stdin: str | None = None) -> Result:
    return CliRunner().invoke(app, arguments, input=stdin, env={"COLUMNS": "200"})


def lines(result: Result) -> list[dict[str, Any]]:
    assert result.exit_code == 0, result.output
    return [json.loads(line) for line in result.stdout.splitlines()]


def test_version_tells_the_build() -> None:
    result = run("--version")
    assert result.exit_code == 0
    assert result.stdout.startswith(f"pgsluice {proxy.__version__} (")
    assert ("(compiled" in result.stdout) is proxy.compiled()


def test_help_names_every_command() -> None:
    result = run("--help")
    for command in ("serve", "check", "route", "logs", "keys", "setup", "migrate", "demo"):
        assert f" {command} " in result.stdout


def commands(group: typer.Typer = app, before: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    """Yield the words of each command that there is."""
    for command in group.registered_commands:
        assert command.callback is not None
        yield *before, command.name or command.callback.__name__
    for each in group.registered_groups:
        assert each.name is not None and each.typer_instance is not None
        yield from commands(each.typer_instance, (*before, each.name))


@pytest.mark.parametrize("command", list(commands()), ids=" ".join)
def test_help_of_each_command_has_examples_that_fit(command: tuple[str, ...]) -> None:
    told = CliRunner().invoke(app, [*command, "--help"], env={"COLUMNS": "80"}).stdout
    _, _, behind = told.partition("Example")
    examples = [line for line in behind.splitlines()[1:] if line.startswith("   ")]
    assert any(f"pgsluice {' '.join(command)}" in line for line in examples)
    assert max(len(line) for line in told.splitlines()) <= 80


def test_help_tells_exit_codes() -> None:
    assert "3  the configuration is wrong" in run("--help").stdout


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_shells_complete(shell: str) -> None:
    program = [sys.executable, "-m", "proxy"]
    named = {**os.environ, "_TYPER_COMPLETE_TEST_DISABLE_SHELL_DETECTION": "1"}
    script = subprocess.run(
        [*program, "--show-completion", shell], capture_output=True, text=True, check=True, env=named
    )
    assert "_PGSLUICE_COMPLETE" in script.stdout
    words = {"COMP_WORDS": "pgsluice keys rev", "COMP_CWORD": "2"}
    found = subprocess.run(
        program,
        capture_output=True,
        text=True,
        env={
            **os.environ,
            **words,
            "_TYPER_COMPLETE_ARGS": "pgsluice keys rev",
            "_PGSLUICE_COMPLETE": f"complete_{shell}",
            "_TYPER_COMPLETE_FISH_ACTION": "get-args",
        },
    )
    assert "revoke" in found.stdout and "rotate" not in found.stdout


def test_no_colour_where_none_is_wanted() -> None:
    environment = {**os.environ, "FORCE_COLOR": "1", "NO_COLOR": "1", "TERM": "xterm-256color"}
    Path("bad.yaml").write_text(SOUND + "workers: some\n")
    told = subprocess.run(
        [sys.executable, "-m", "proxy", "check", "-c", "bad.yaml"],
        capture_output=True,
        text=True,
        env=environment,
    ).stdout
    assert "1 problem" in told
    assert not re.search(r"\x1b\[(\d+;)*(3|4|9|10)\d", told)
    with_colour = {name: value for name, value in environment.items() if name != "NO_COLOR"}
    told = subprocess.run(
        [sys.executable, "-m", "proxy", "check", "-c", "bad.yaml"],
        capture_output=True,
        text=True,
        env=with_colour,
    ).stdout
    assert "\x1b[1;31m" in told


def test_a_bug_is_told_without_its_text(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object, **__: object) -> None:
        raise ValueError("hunter2")

    monkeypatch.setattr("proxy.explain.explain", broken)
    result = run("route", "SELECT 1")
    assert result.exit_code == 1
    assert "a bug: ValueError at test_cli.py:" in result.stderr
    assert "hunter2" not in result.output and "Traceback" not in result.output
    monkeypatch.setenv("PGSLUICE_TRACEBACK", "1")
    assert isinstance(run("route", "SELECT 1").exception, ValueError)


def test_a_reader_that_leaves_is_no_error() -> None:
    done = subprocess.run(
        f"yes 'SELECT 1;' | head -1000 | {sys.executable} -m proxy route | head -1",
        shell=True,
        capture_output=True,
        text=True,
    )
    assert (done.stdout.count("\n"), done.stderr) == (1, "")


def test_help_imports_nothing_heavy() -> None:
    program = """
import sys
from typer.testing import CliRunner
from proxy.cli import app
assert CliRunner().invoke(app, ["--help"]).exit_code == 0
print(*sorted({name.partition(".")[0] for name in sys.modules}))
"""
    loaded = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    ).stdout
    assert not {"asyncpg", "pglast", "pydantic", "psycopg", "alembic", "fastapi", "uvloop"} & set(
        loaded.split()
    )


def test_check_of_a_sound_configuration() -> None:
    Path("pgsluice.yaml").write_text(SOUND)
    result = run("check", "-c", "pgsluice.yaml", "--config-only")
    assert (result.exit_code, result.stdout) == (0, "sound: 1 database, 1 host, 5 pools\n")


def test_check_shows_every_problem_with_its_place() -> None:
    Path("pgsluice.yaml").write_text(SOUND + "listen: {prot: 1}\nworkers: some\nhttp: {port: '[x]'}\n")
    result = run("check", "-c", "pgsluice.yaml")
    assert result.exit_code == 3
    table = [line.strip().split(maxsplit=2) for line in result.stdout.splitlines()]
    assert table == [
        ["key", "line", "problem"],
        ["listen.prot", "2", "unknown key; did you mean port?"],
        ["workers", "3", "a whole number is needed"],
        ["http.port", "4", "a whole number is needed"],
        ["3", "problems"],
    ]


def test_check_reads_certificates_and_keys() -> None:
    pair = Authority(Path()).issue("server")
    Path("other.key").touch(mode=0o600)
    Path("pgsluice.yaml").write_text(
        "listen: {tls: {mode: require, key_file: other.key}}\n"
        "databases: {app: {control: {user: x}, hosts: [{tls: {mode: verify-ca, ca_file: server.key}}]}}\n"
    )
    result = run("check", "-c", "pgsluice.yaml", "--json")
    problems = {each["path"]: each["message"] for each in json.loads(result.stdout)["problems"]}
    assert result.exit_code == 3
    assert problems.keys() == {"listen.tls", "databases.app.hosts[0].tls"}
    assert "other.key: holds no private key" in problems["listen.tls"]
    assert "server.key: holds no certificates" in problems["databases.app.hosts[0].tls"]
    Path("other.key").write_bytes(pair.key.read_bytes())
    Path("pgsluice.yaml").write_text(SOUND + "listen: {tls: {mode: require, key_file: other.key}}\n")
    assert run("check", "-c", "pgsluice.yaml", "--config-only").exit_code == 0


def test_check_as_json() -> None:
    Path("pgsluice.yaml").write_text(SOUND + "workers: some\n")
    result = run("check", "-c", "pgsluice.yaml", "--json")
    assert result.exit_code == 3
    problem = {"path": "workers", "line": 2, "message": "a whole number is needed"}
    assert json.loads(result.stdout) == {"ok": False, "problems": [problem]}
    Path("pgsluice.yaml").write_text(SOUND)
    sound = run("check", "-c", "pgsluice.yaml", "--json", "--config-only")
    assert (sound.exit_code, json.loads(sound.stdout)) == (0, {"ok": True, "problems": []})


def test_a_file_that_was_not_named_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    Path("pgsluice.yaml").write_text(SOUND + "workers: some\n")
    told = "pgsluice: reading pgsluice.yaml\n"
    assert run("check").stderr == told
    wrong = "pgsluice: workers (line 2): a whole number is needed\n"
    for command in (["serve"], ["keys", "list"]):
        result = run(*command)
        assert (result.exit_code, result.stderr) == (1, told + wrong)
    assert run("check", "-c", "pgsluice.yaml").stderr == ""
    monkeypatch.setenv("DB_NAME", "app")
    result = run("check")
    assert "DB_USER" in result.stdout
    assert result.stderr == ""


def test_check_tells_a_host_that_it_can_not_reach() -> None:
    Path("pgsluice.yaml").write_text(
        "databases: {app: {control: {user: sluice_control}, hosts: [{name: away, port: 1}]}}\n"
    )
    result = run("check", "-c", "pgsluice.yaml")
    assert result.exit_code == 1
    assert "away  127.0.0.1:1  not reached" in result.stdout
    assert "127.0.0.1:1 as sluice_control: " in result.stdout
    assert result.stdout.endswith("1 error\n")
    found = json.loads(run("check", "-c", "pgsluice.yaml", "--json").stdout)
    assert (found["ok"], found["hosts"][0]["reached"]) == (False, False)
    assert [(each["severity"], each["hosts"]) for each in found["findings"]] == [("error", ["away"])]


def test_check_of_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    assert "DB_USER" in run("check").stdout
    monkeypatch.setenv("DB_NAME", "app")
    monkeypatch.setenv("DB_USER", "web")
    assert run("check", "--config-only").exit_code == 0


@pytest.mark.parametrize("command", [["serve"], ["route", "SELECT 1"], ["keys", "list"]])
def test_a_configuration_that_cannot_be_used_ends_the_command(command: list[str]) -> None:
    Path("bad.yaml").write_text(SOUND + "workers: some\n")
    result = run(*command, "-c", "bad.yaml")
    assert (result.exit_code, result.stderr) == (1, "pgsluice: workers (line 2): a whole number is needed\n")
    missing = run(*command, "-c", "missing.yaml")
    assert missing.exit_code == 1
    assert missing.stderr == "pgsluice: cannot read missing.yaml: No such file or directory\n"


def test_wrong_arguments_are_told_from_failures() -> None:
    assert run("serve", "--bogus").exit_code == 2
    assert run("keys", "create").exit_code == 2


def test_route_takes_an_argument_as_one_message() -> None:
    (line,) = lines(run("route", "WITH gone AS (DELETE FROM t RETURNING 1) SELECT * FROM gone; SELECT 1"))
    assert list(line)[:5] == ["intent", "target", "reason", "statements", "pin"]
    assert {**line, "intent": "write", "target": "primary", "statements": 2, "pin": None} == line


def test_route_takes_standard_input_statement_by_statement() -> None:
    found = lines(run("route", stdin="SELECT 1;\nINSERT INTO t VALUES (1);\n"))
    assert [(line["intent"], line["target"]) for line in found] == [
        ("read", "readonly"),
        ("write", "primary"),
    ]


def test_route_names_the_databases_that_there_are() -> None:
    Path("pgsluice.yaml").write_text(SOUND)
    result = run("route", "-c", "pgsluice.yaml", "--database", "other", "SELECT 1")
    assert (result.exit_code, result.stderr) == (
        1,
        "pgsluice: the configuration has no database other; it has app\n",
    )


def test_route_tells_that_no_host_answers() -> None:
    Path("pgsluice.yaml").write_text(
        "databases: {app: {control: {user: x}, hosts: [{host: 127.0.0.1, port: 1}]}}\n"
    )
    result = run("route", "-c", "pgsluice.yaml", "SELECT 1")
    assert result.exit_code == 1
    assert "127.0.0.1:1" in result.stderr


@pytest.mark.parametrize(
    "command",
    [
        ["keys", "list", "--dsn", "host=127.0.0.1 port=1"],
        ["migrate", "status", "--dsn", "host=127.0.0.1 port=1"],
        ["setup", "--dsn", "host=127.0.0.1 port=1"],
    ],
)
def test_a_server_that_does_not_answer_is_told_in_a_sentence(command: list[str]) -> None:
    result = run(*command)
    assert result.exit_code == 1
    assert result.stderr.startswith("pgsluice: ")
    assert "Traceback" not in result.output


def with_key_file() -> None:
    Path("pgsluice.yaml").write_text(WITHOUT_OUR_SQL)
    Path("keys.yaml").touch(mode=0o600)


def stored() -> list[Key]:
    return list(read_keys(Path("keys.yaml").read_text()).values())


def test_keys_create_adds_to_a_file() -> None:
    with_key_file()
    result = run(
        "keys", "create", "--user", "ann", "--name", "x", "--permission", "read:tasks", "--expires", "30d"
    )
    assert result.exit_code == 0, result.output
    whole = result.stdout.removesuffix("\n")
    (key,) = stored()
    assert parse_key(whole) is not None and key.verify_secret(whole)
    assert (key.user_id, key.name, key.permissions_sorted) == ("ann", "x", ("read:tasks",))
    assert key.expires_at > 0
    assert f"shown this once; key {key.id} of ann: read:tasks" in result.stderr
    assert whole not in Path("keys.yaml").read_text()


def test_keys_create_makes_the_file_that_nothing_else_goes_without() -> None:
    Path("pgsluice.yaml").write_text(WITHOUT_OUR_SQL)
    for command, code in ((["check"], 3), (["keys", "list"], 1)):
        result = run(*command)
        assert result.exit_code == code
        assert "there is no file keys.yaml; `pgsluice keys create` makes it" in result.output
    assert run("keys", "create", "--user", "ann", "--address", "10.0.0.1/8").exit_code == 1
    assert not Path("keys.yaml").exists()
    result = run("keys", "create", "--user", "ann")
    assert result.exit_code == 0, result.output
    assert Path("keys.yaml").stat().st_mode & 0o777 == 0o600
    (key,) = stored()
    assert key.verify_secret(result.stdout.removesuffix("\n"))
    assert run("check", "--config-only").exit_code == 0


def test_keys_create_makes_the_file_that_a_variable_names(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in (("DB_NAME", "app"), ("DB_USER", "web"), ("KEYS_FILE", "keys.yaml")):
        monkeypatch.setenv(name, value)
    assert run("check").exit_code == 3
    assert run("keys", "create", "--user", "ann").exit_code == 0
    assert len(stored()) == 1
    assert run("check", "--config-only").exit_code == 0


def test_keys_create_as_json() -> None:
    with_key_file()
    options = [
        "--address",
        "10.0.0.0/8",
        "--rate-limit",
        "60",
        "--pool",
        "background",
        "--expires",
        "2030-01-01",
    ]
    made = json.loads(run("keys", "create", "--user", "ann", *options, "--json").stdout)
    (key,) = stored()
    assert key.verify_secret(made["api_key"])
    assert made["id"] == key.id
    assert made["expires_at"] == "2030-01-01T00:00:00+00:00"
    assert (key.default_pool, key.rate_limit_per_minute, key.allows("11.0.0.1")) == ("background", 60, False)


def test_keys_list_of_a_file() -> None:
    with_key_file()
    for user in ("ann", "bob"):
        run("keys", "create", "--user", user, "--permission", "admin")
    found = json.loads(run("keys", "list", "--json").stdout)
    assert [key["user_id"] for key in found] == ["ann", "bob"]
    assert not any("secret" in column or "scram" in column for key in found for column in key)
    only = run("keys", "list", "--user", "bob").stdout
    assert "bob" in only and "ann" not in only


@pytest.mark.parametrize("command", ["revoke", "rotate"])
def test_keys_of_a_file_are_ended_there(command: str) -> None:
    with_key_file()
    result = run("keys", command, "ctm_ab12cd34ef56")
    assert result.exit_code == 1
    assert "keys.yaml: set revoked_at or expires_at there" in result.stderr


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--expires", "soon"], "--expires: a duration (30d) or a time (2027-01-01) is needed, not soon"),
        (["--permission", "tasks"], "--permission tasks: admin, or verb:area such as read:tasks"),
        (["--permission", "Admin"], "--permission Admin: admin, or verb:area"),
        (["--permission", "read:a b"], "--permission read:a b: "),
        (["--pool", "fast"], "--pool fast: there are primary, readonly, priority, background, admin"),
        (["--pool", "admin"], "--pool admin: needs the permission admin"),
        (["--address", "here"], "--address here: a network such as 10.0.0.0/8"),
        (["--rate-limit", "3000000000"], "--rate-limit: 1 to 2147483647 statements a minute"),
        (["--expires", "2020-01-01"], "--expires: lies in the past"),
        (["--name", ""], "--name: 1 to 200 characters"),
        (
            ["--pool", "fast", "--permission", "x"],
            "verb:area such as read:tasks, of letters, digits and _ . * -; --pool fast",
        ),
        (
            ["--address", "10.0.0.1/8"],
            "--address 10.0.0.1/8: has bits behind its mask; 10.0.0.0/8 is that network",
        ),
    ],
)
def test_keys_create_refuses(options: list[str], message: str) -> None:
    with_key_file()
    result = run("keys", "create", "--user", "ann", *options)
    assert result.exit_code == 1
    assert message in result.stderr
    assert stored() == []


def test_a_file_that_is_no_list_of_keys_is_told() -> None:
    with_key_file()
    Path("keys.yaml").write_text(yaml.safe_dump({"a": 1}))
    result = run("keys", "list")
    assert (result.exit_code, result.stderr) == (
        1,
        "pgsluice: reading pgsluice.yaml\n"
        "pgsluice: cannot use the keys in keys.yaml: a list of keys is needed\n",
    )
