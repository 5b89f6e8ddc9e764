"""Prepared statements that follow a client from one server connection to the next: names, errors, bounds."""

from __future__ import annotations

import pytest

from proxy.session.collect import MAX_STATEMENT_BYTES
from proxy.upstream.server import MAX_STATEMENTS
from tests.session.fakes import World, moved
from tests.session.frontend import (
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
    run,
    use,
)

READ = "SELECT 'alice'"
INSERT = "INSERT INTO t VALUES ('alice')"


def test_a_named_statement_works_on_another_connection(world: World) -> None:
    client, other = world.client(), world.client()
    assert kinds(client.ask(parse("s", INSERT), describe("s"), SYNC)) == "1 t n ZI"
    second = moved(world, client, other)
    assert kinds(client.ask(use("s"))) == "2 C ZT"
    assert kinds(client.ask(describe("s"), use("s"))) == "t n 2 C ZT"
    assert sum(INSERT.encode() in each for each in second.transport.writes) == 1


def test_the_unnamed_statement_works_on_another_connection(world: World) -> None:
    client, other = world.client(), world.client()
    assert kinds(client.ask(parse("", INSERT), SYNC)) == "1 ZI"
    second = moved(world, client, other)
    assert kinds(client.ask(parse("", INSERT), SYNC, query("SELECT 1"))) == "1 ZT T D C ZT"
    assert kinds(client.ask(use(""))) == "E:26000 ZE", "a simple query destroys it"
    client.ask(query("ROLLBACK"))
    client.ask(parse("", INSERT), SYNC)
    assert kinds(client.ask(use(""))) == "2 C ZI"
    assert second.sql


def test_the_unnamed_statement_of_another_client_is_not_taken_for_ones_own(world: World) -> None:
    world = World(maximum=1)
    client, other = world.client(), world.client()
    client.ask(parse("", "SELECT 1"), SYNC)
    other.ask(parse("", "SELECT 2"), SYNC)
    assert rows(client.ask(use(""))) == ["1"]
    assert rows(other.ask(use(""))) == ["2"]


def test_clients_with_the_same_statement_share_it(world: World) -> None:
    client, other = world.client(), world.client()
    client.ask(parse("one", READ), use("one"))
    assert kinds(other.ask(parse("two", READ), use("two"))) == "1 2 D C ZI"
    (backend,) = world.backends
    assert backend.transport.all.count(READ.encode()) == 1
    assert len([name for name in backend.statements if name.startswith("_sluice_1")]) == 1


def test_parses_that_a_server_is_sent_or_spared_are_counted() -> None:
    world = World(maximum=1)
    client, other = world.client(), world.client()
    pool = world.pool("primary")
    client.ask(parse("s", INSERT), SYNC)
    assert (pool.parses(), pool.spared()) == (1, 0)
    other.ask(parse("q", INSERT), describe("q"), SYNC)
    client.ask(parse("t", INSERT), use("t"))
    assert (pool.parses(), pool.spared()) == (1, 2)
    for server in list(pool.servers):
        server.close()
    assert (pool.parses(), pool.spared()) == (1, 2), "closed connections still count"


def test_closing_a_name_frees_it_for_its_client_alone(world: World) -> None:
    client, other = world.client(), world.client()
    client.ask(parse("s", READ), SYNC)
    other.ask(parse("s", READ), SYNC)
    assert kinds(client.ask(close("s"), SYNC)) == "3 ZI"
    assert kinds(client.ask(use("s"))) == "E:26000 ZI"
    assert kinds(other.ask(use("s"))) == "2 D C ZI"
    assert kinds(client.ask(parse("s", "SELECT 2"), use("s"))) == "1 2 D C ZI"


def test_closing_what_does_not_exist_is_no_error(world: World) -> None:
    client = world.client()
    assert kinds(client.ask(close("none"), close("none", b"P"), SYNC)) == "3 3 ZI"


def test_closing_the_unnamed_statement_takes_it_from_nobody_else(world: World) -> None:
    world = World(maximum=1)
    client, other = world.client(), world.client()
    other.ask(parse("", READ), SYNC)
    client.ask(parse("", READ), close(""), SYNC)
    assert kinds(client.ask(use(""))) == "E:26000 ZI"
    assert kinds(other.ask(use(""))) == "2 D C ZI"


def test_a_name_that_is_taken_is_refused(world: World) -> None:
    client = world.client()
    client.ask(parse("s", READ), SYNC)
    answer = client.ask(parse("s", "SELECT 2"), bind("s"), execute(), SYNC)
    assert kinds(answer) == "E:42P05 ZI"
    assert error(answer)["M"] == 'prepared statement "s" already exists'
    assert rows(client.ask(use("s"))) == ["'alice'"]


def test_a_missing_statement_is_refused_and_the_rest_skipped_to_sync(world: World) -> None:
    client = world.client()
    answer = client.ask(use("s"), use(""), describe("s"), SYNC, query("SELECT 1"))
    assert kinds(answer) == "E:26000 ZI E:26000 ZI E:26000 ZI T D C ZI"
    assert 'prepared statement "s" does not exist' in answer.decode(errors="replace")
    client.ask(query("BEGIN"))
    assert kinds(client.ask(bind("s"), execute(), parse("x", READ), SYNC)) == "E:26000 ZE"


def test_what_stands_before_a_missing_statement_is_done(world: World) -> None:
    client = world.client()
    assert kinds(client.ask(parse("s", READ), close("x"), use("t"))) == "1 3 E:26000 ZI"
    assert kinds(client.ask(parse("s", READ), SYNC)) == "E:42P05 ZI", "the name is taken"
    assert rows(client.ask(use("s"))) == ["'alice'"]
    assert kinds(client.ask(parse("u", READ), parse("s", READ), SYNC, use("u"))) == "1 E:42P05 ZI 2 D C ZI"


def test_a_parse_that_fails_leaves_its_name_free(world: World) -> None:
    client = world.client()
    world.failing["SELECT nothing"] = "42703"
    assert kinds(client.ask(parse("s", "SELECT nothing"), SYNC)) == "E:42703 ZI"
    assert kinds(client.ask(parse("s", READ), use("s"))) == "1 2 D C ZI"


@pytest.mark.parametrize("failing", ["SELECT 1/0", "DROP TABLE t"])
@pytest.mark.parametrize("begun", [False, True])
def test_names_prepared_behind_an_error_are_free_again(world: World, failing: str, begun: bool) -> None:
    client = world.client()
    client.ask(parse("kept", READ), SYNC)
    if begun:
        client.ask(query("BEGIN"))
    pipeline = parse("", failing) + bind() + execute() + close("kept") + parse("s", READ) + use("s")
    assert " E:" in " " + kinds(client.ask(pipeline))
    if begun:
        client.ask(query("ROLLBACK"))
    assert kinds(client.ask(use("s"))) == "E:26000 ZI"
    assert kinds(client.ask(parse("s", "SELECT 2"), use("s"))) == "1 2 D C ZI"
    assert kinds(client.ask(use("kept"))) == "2 D C ZI"


def test_a_unit_behind_one_with_an_error_keeps_its_names(world: World) -> None:
    client = world.client()
    pipeline = parse("a", "SELECT 1/0") + use("a") + parse("b", READ) + use("b")
    assert kinds(client.ask(pipeline)) == "1 2 E:22012 ZI 1 2 D C ZI"
    assert kinds(client.ask(use("b"))) == "2 D C ZI"


def test_an_unnamed_statement_that_was_skipped_is_not_taken_for_parsed(world: World) -> None:
    world = World(maximum=1)
    client, other = world.client(), world.client()
    other.ask(parse("", "SELECT 2"), SYNC)
    client.ask(parse("", "SELECT 1/0"), bind(), execute(), parse("", "SELECT 2"), bind(), execute(), SYNC)
    assert rows(other.ask(use(""))) == ["2"]


@pytest.mark.parametrize("name", ["s", ""])
def test_a_statement_that_no_longer_parses_elsewhere_is_an_error_of_its_own(world: World, name: str) -> None:
    client, other = world.client(), world.client()
    client.ask(parse(name, READ), SYNC)
    other.ask(query("SELECT 1"), query("BEGIN"))
    reader = world.of("readonly")[0]
    reader.die()
    client.send(use(name))
    world.open()
    world.of("readonly")[1].fails[READ] = "42P01"
    world.settle()
    assert kinds(client.take()) == "E:42P01 ZI"
    assert kinds(client.ask(query("SELECT 1"))) == "T D C ZI"
    if name:
        assert kinds(client.ask(use(name))) == "2 D C ZI"


def test_a_connection_holds_a_bounded_number_of_statements(world: World) -> None:
    world = World(maximum=1)
    client = world.client()
    for number in range(MAX_STATEMENTS + 10):
        assert kinds(client.ask(parse(f"s{number}", f"SELECT x{number}"), SYNC)) == "1 ZI"
    (backend,) = world.backends
    held = [name for name in backend.statements if name[len("_sluice_")].isdigit()]
    assert len(held) == MAX_STATEMENTS
    for number in range(MAX_STATEMENTS + 10):
        assert kinds(client.ask(use(f"s{number}"))) == "2 D C ZI"


def test_a_statement_whose_eviction_was_skipped_is_still_known(world: World) -> None:
    world = World(maximum=1)
    client = world.client()
    for number in range(MAX_STATEMENTS):
        client.ask(parse(f"s{number}", f"SELECT x{number}"), SYNC)
    assert "E:22012" in kinds(
        client.ask(parse("", "SELECT 1/0"), bind(), execute(), parse("one", "SELECT more"), SYNC)
    )
    for number in range(MAX_STATEMENTS):
        assert kinds(client.ask(use(f"s{number}"))) == "2 D C ZI"


def test_discard_all_empties_the_names(world: World) -> None:
    client = world.client()
    client.ask(parse("s", READ), SYNC)
    assert kinds(client.ask(query("DISCARD ALL"))) == "C ZI"
    assert kinds(client.ask(use("s"))) == "E:26000 ZI"
    assert kinds(client.ask(parse("s", READ), use("s"))) == "1 2 D C ZI"


def test_what_is_prepared_behind_a_discard_all_in_one_packet_stays(world: World) -> None:
    client = world.client()
    answer = client.ask(query("DISCARD ALL"), parse("s", READ), SYNC, use("s"))
    assert kinds(answer) == "C ZI 1 ZI 2 D C ZI"
    assert kinds(client.ask(use("s"))) == "2 D C ZI"


def test_a_portal_lives_as_long_as_its_transaction(world: World) -> None:
    client = world.client()
    client.ask(query("BEGIN"), parse("s", READ), bind("s", "p"), SYNC)
    assert kinds(client.ask(execute("p"), describe("p", b"P"), close("p", b"P"), SYNC)) == "D C n 3 ZT"
    client.ask(query("COMMIT"))
    assert kinds(client.ask(execute("p"), SYNC)) == "E:34000 ZI"


def test_a_name_of_too_long_a_text_is_refused(world: World) -> None:
    client = world.client()
    text = "SELECT '" + "x" * 70_000 + "'"
    assert kinds(client.ask(parse("s", text), use("s"))) == "E:0A000 ZI"
    assert kinds(client.ask(run(text))) == "1 2 D C ZI"
    assert kinds(client.ask(parse("s", READ), use("s"))) == "1 2 D C ZI"


def test_the_texts_that_a_client_may_name_are_bounded(world: World) -> None:
    client = world.client()
    text = "SELECT '" + "x" * 60_000 + "'"
    client.session.statements.named_bytes = MAX_STATEMENT_BYTES - 100_000
    assert kinds(client.ask(parse("a", text), SYNC)) == "1 ZI"
    assert kinds(client.ask(parse("b", text), SYNC)) == "E:54000 ZI"
    assert kinds(client.ask(close("a"), parse("b", text), SYNC)) == "3 1 ZI"
