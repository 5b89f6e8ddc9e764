"""The unnamed statement: what it is after a Parse, Close or Query that failed, or was skipped because of an error."""

from __future__ import annotations

import pytest

from tests.session.fakes import Client, World
from tests.session.frontend import (
    FLUSH,
    SYNC,
    bind,
    close,
    describe,
    error,
    execute,
    kinds,
    parse,
    query,
    rows,
)

READ = "SELECT 'alice'"
MISSING = bind("nothing")
FAILING = close("x") + parse("x", "SELECT 1/0") + bind("x") + execute()
USE = bind() + execute() + SYNC


@pytest.fixture
def client(world: World) -> Client:
    return world.client()


def test_a_parse_that_fails_leaves_none(world: World, client: Client) -> None:
    world.failing["SELEC nothing"] = "42601"
    client.ask(parse("", READ), SYNC)
    assert kinds(client.ask(parse("", "SELEC nothing"), SYNC)) == "E:42601 ZI"
    answer = client.ask(USE)
    assert kinds(answer) == "E:26000 ZI"
    assert error(answer)["M"] == "unnamed prepared statement does not exist"


@pytest.mark.parametrize("before", ["", READ])
@pytest.mark.parametrize("failing", [MISSING, FAILING])
@pytest.mark.parametrize(
    "skipped",
    [
        parse("", "SELECT 2"),
        parse("", "SELECT 2") + parse("", "SELECT 3"),
        close(""),
        parse("", "SELECT 2") + close("") + parse("", "SELECT 2"),
    ],
)
@pytest.mark.parametrize("flush", [b"", FLUSH])
def test_what_is_skipped_changes_nothing(
    client: Client, before: str, failing: bytes, skipped: bytes, flush: bytes
) -> None:
    if before:
        client.ask(parse("", before), SYNC)
    assert " E:" in " " + kinds(client.ask(failing, flush, skipped, flush, bind(), execute(), SYNC))
    answer = client.ask(USE)
    assert (rows(answer) == ["'alice'"]) if before else (kinds(answer) == "E:26000 ZI")


@pytest.mark.parametrize("before", ["", READ])
@pytest.mark.parametrize("pipelined", [False, True])
def test_a_query_that_is_skipped_changes_nothing(client: Client, before: str, pipelined: bool) -> None:
    if before:
        client.ask(parse("", before), SYNC)
    messages = [FAILING + FLUSH, query("SELECT 1"), SYNC]
    if pipelined:
        client.ask(*messages)
    else:
        for each in messages:
            client.ask(each)
    answer = client.ask(USE)
    assert (rows(answer) == ["'alice'"]) if before else (kinds(answer) == "E:26000 ZI")


def test_each_unit_of_a_pipeline_finds_what_the_one_before_left(client: Client) -> None:
    skipped = FAILING + parse("", "SELECT 2") + SYNC
    client.ask(parse("", READ), SYNC)
    answer = client.ask(skipped, skipped, USE)
    assert kinds(answer) == "3 1 2 E:22012 ZI 3 1 2 E:22012 ZI 2 D C ZI"
    assert rows(answer) == ["'alice'"]
    answer = client.ask(skipped, parse("", "SELECT 3"), SYNC, skipped, describe(""), USE)
    assert kinds(answer) == "3 1 2 E:22012 ZI 1 ZI 3 1 2 E:22012 ZI t n 2 D C ZI"
    assert rows(answer) == ["3"]


def test_a_pipeline_goes_on_behind_a_parse_that_fails(world: World, client: Client) -> None:
    world.failing["SELEC nothing"] = "42601"
    client.ask(parse("", READ), SYNC)
    failing = parse("", "SELEC nothing") + SYNC
    skipped = FAILING + parse("", "SELECT 2") + SYNC
    answer = client.ask(failing, skipped, USE)
    assert kinds(answer) == "E:42601 ZI 3 1 2 E:22012 ZI E:26000 ZI"


def test_a_pipeline_uses_a_name_as_the_unit_before_left_it(client: Client) -> None:
    skipped = FAILING + parse("s", READ) + SYNC
    use = bind("s") + execute() + SYNC
    assert kinds(client.ask(skipped, use)) == "3 1 2 E:22012 ZI E:26000 ZI"
    assert kinds(client.ask(skipped, parse("s", READ), use)) == "3 1 2 E:22012 ZI 1 2 D C ZI"
    assert kinds(client.ask(FAILING, close("s"), SYNC, use)) == "3 1 2 E:22012 ZI 2 D C ZI"
    answer = client.ask(FAILING, close("s"), SYNC, parse("s", "SELECT 2"), SYNC, use)
    assert kinds(answer) == "3 1 2 E:22012 ZI E:42P05 ZI 2 D C ZI"
    assert rows(answer) == ["'alice'"]


@pytest.mark.parametrize("flush", [b"", FLUSH])
def test_a_name_that_is_closed_and_taken_behind_an_error_is_what_it_was(client: Client, flush: bytes) -> None:
    client.ask(parse("s", READ), SYNC)
    client.ask(FAILING, flush, close("s"), parse("s", "SELECT 2"), SYNC)
    assert rows(client.ask(bind("s"), execute(), SYNC)) == ["'alice'"]


def test_what_is_sent_behind_an_error_leaves_nothing(world: World, client: Client) -> None:
    assert kinds(client.ask(FAILING, FLUSH)) == "3 1 2 E:22012"
    skipped = parse("", "LISTEN a") + bind() + execute() + query("LISTEN b") + parse("", "BEGIN") + FLUSH
    assert kinds(client.ask(skipped)) == ""
    assert kinds(client.ask(SYNC)) == "ZI"
    assert not client.session.pinned and client.server() is None
    assert kinds(client.ask(query(READ))) == "T D C ZI"
    world.check()


def test_a_discard_all_of_the_extended_protocol_keeps_it(client: Client) -> None:
    answer = client.ask(parse("", "DISCARD ALL"), bind(), execute(), SYNC, bind(), execute(), SYNC)
    assert kinds(answer) == "1 2 C ZI 2 C ZI"


def test_a_look_at_settings_takes_it_from_the_server(world: World) -> None:
    client = world.client(pool="background")
    client.ask(parse("s", "SET timezone = 'Asia/Tokyo'"), SYNC)
    client.ask(parse("", "INSERT INTO t VALUES ('alice')"), bind(), execute(), SYNC)
    assert kinds(client.ask(bind("s"), execute(), SYNC)).endswith("ZI")
    (backend,) = world.of("background")
    assert any("current_setting" in ran.sql for ran in backend.ran)
    assert kinds(client.ask(USE)) == "2 C ZI"
