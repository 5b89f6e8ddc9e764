"""Texts on the console, and what they are taken for."""

from __future__ import annotations

import contextlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.admin.commands import ADMINISTRATIVE, SUBJECTS, Command, parse
from proxy.errors import ClientError, FeatureNotSupported, InvalidParameter, UnknownCommand

TEXTS = {
    "": [],
    " ;; -- nothing\n;": [],
    "SHOW POOLS": [Command("show", "pools")],
    "show Pools;": [Command("show", "pools")],
    "/* a tool */ SHOW STATS ; SHOW LISTS;": [Command("show", "stats"), Command("show", "lists")],
    "PAUSE": [Command("pause")],
    "pause app;": [Command("pause", argument="app")],
    'PAUSE "My ""own"" app"': [Command("pause", argument='My "own" app')],
    "RESUME 'it''s'": [Command("resume", argument="it's")],
    "Reconnect App": [Command("reconnect", argument="App")],
    "WAIT_CLOSE": [Command("wait_close")],
    "KILL app": [Command("kill", argument="app")],
    "KILL_CLIENT 42": [Command("kill_client", argument="42")],
    "KILL_CLIENT '42'": [Command("kill_client", argument="42")],
    "ENABLE app": [Command("enable", argument="app")],
    "DISABLE app": [Command("disable", argument="app")],
    "RELOAD": [Command("reload")],
    "SHUTDOWN": [Command("shutdown")],
    "shutdown wait_for_clients": [Command("shutdown", argument="wait_for_clients")],
    "SHOW ROUTE 'SELECT ''x'''": [Command("route", "", "SELECT 'x'")],
    "ROUTE app $q$SELECT 'x';$q$": [Command("route", "app", "SELECT 'x';")],
    "SELECT 1": [Command("value", "?column?", "1")],
    "select pg_catalog.version();": [Command("value", "version()")],
    "SELECT databases": [Command("show", "databases")],
    "SHOW server_version": [Command("value", "server_version")],
    "SHOW TIME ZONE": [Command("value", "timezone", "GMT")],
    "SHOW TRANSACTION ISOLATION LEVEL": [Command("value", "transaction_isolation", "read committed")],
    "SET client_encoding TO 'UTF8'": [Command("nothing", "SET")],
    "SET extra_float_digits = 3": [Command("nothing", "SET")],
    "SET SESSION CHARACTERISTICS AS TRANSACTION READ ONLY": [Command("nothing", "SET")],
    "BEGIN; SHOW POOLS; COMMIT": [
        Command("nothing", "BEGIN"),
        Command("show", "pools"),
        Command("nothing", "COMMIT"),
    ],
    "DISCARD ALL": [Command("nothing", "DISCARD ALL")],
    "FLUSH CACHE": [Command("flush_cache")],
    "flush cache app; FLUSH_CACHE": [Command("flush_cache", argument="app"), Command("flush_cache")],
}


@pytest.mark.parametrize("text", TEXTS)
def test_a_text_is_taken_for_its_commands(text: str) -> None:
    assert parse(text) == TEXTS[text]


@pytest.mark.parametrize("subject", SUBJECTS)
def test_all_that_can_be_shown_is_understood(subject: str) -> None:
    assert parse(f"SHOW {subject.upper()}") == [Command("show", subject)]


@pytest.mark.parametrize(
    "text",
    [
        "nonsense",
        "SHOW",
        "SHOW NOTHING",
        "SHOW POOLS app",
        "PAUSE a b",
        "PAUSE 7",
        "ENABLE",
        "DISABLE a b",
        "RELOAD app",
        "SHUTDOWN now",
        "SHUTDOWN 'x'",
        "KILL_CLIENT",
        "SELECT * FROM pg_class",
        "SELECT 1, 2",
        "SELECT 12345678901",
        "SHOW ROUTE",
        "SHOW ROUTE SELECT 1",
        "SHOW POOLS; nonsense",
        "PAUSE 'unfinished",
        "SHOW ROUTE E'\\n'",
        "INSERT INTO t VALUES (1)",
    ],
)
def test_anything_else_is_no_command(text: str) -> None:
    with pytest.raises(UnknownCommand) as refused:
        parse(text)
    assert refused.value.sqlstate == "42601"


def test_the_error_says_what_there_is_and_shows_only_the_start_of_a_long_text() -> None:
    with pytest.raises(UnknownCommand) as refused:
        parse("nonsense " * 1000)
    assert len(refused.value.message) < 150
    assert "KILL_CLIENT <id>" in refused.value.hint


@pytest.mark.parametrize("text", ["SUSPEND", "SHOW FDS", "SET max_client_conn = 5", "SET sluice.pool = 'x'"])
def test_what_pgbouncer_has_and_this_has_not_is_said_so(text: str) -> None:
    with pytest.raises(FeatureNotSupported):
        parse(text)


@pytest.mark.parametrize(
    "text", ["KILL_CLIENT app", "KILL_CLIENT 1.5", "KILL_CLIENT '-1'", "KILL_CLIENT '²'"]
)
def test_a_client_is_named_by_a_number(text: str) -> None:
    with pytest.raises(InvalidParameter):
        parse(text)


def test_the_log_is_told_the_command_and_no_sql() -> None:
    (command,) = parse("show route app 'SELECT 42'")
    assert command.summary == "ROUTE APP"
    assert parse("pause 'app'")[0].summary == "PAUSE app"


def test_what_changes_something_needs_admin_and_what_tells_nothing_is_free() -> None:
    assert all(Command(verb).needs_admin for verb in ADMINISTRATIVE)
    assert not parse("SHOW POOLS")[0].needs_admin
    assert not parse("SHOW POOLS")[0].is_free
    assert parse("SELECT 1")[0].is_free
    assert parse("BEGIN")[0].is_free


@given(st.text())
def test_any_text_is_commands_or_an_error_for_its_client(text: str) -> None:
    with contextlib.suppress(ClientError):
        parse(text)


@given(st.text(alphabet=st.characters(exclude_characters="\0", exclude_categories=["Cs"]), min_size=1))
def test_any_name_can_be_quoted(name: str) -> None:
    quoted = name.replace('"', '""')
    assert parse(f'PAUSE "{quoted}"') == [Command("pause", argument=name)]


@given(st.sampled_from(sorted(TEXTS)), st.sampled_from(["", " ", "\n", "-- x\n", "/* ; */"]))
def test_space_and_comments_around_commands_mean_nothing(text: str, filler: str) -> None:
    assert parse(f"{filler}{text}\n{filler};{filler}") == TEXTS[text]
